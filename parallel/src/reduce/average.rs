//! How much each rank's gradients count in the average of a step.

use crate::{Error, Result, talk};
use phalanx_comm::ProcessGroup;
use phalanx_tensor::Tensor;

/// What a rank brings to a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Turn {
    /// Its data has run out.
    Joined,
    /// Gradients that count as much as any other's.
    Plain,
    /// Gradients that count with this weight. A weight of 0 is no farewell.
    Weighted(f64),
}

/// How the gradients of all ranks become one. Every rank of a group has the same in a step.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Average(Option<Weights>);

/// Multiplied by a weight for each rank, not all zero and none above 1, summed, then divided. Where the
/// weights are 0 and 1 nothing is rounded before the sum, as in the plain mean.
#[derive(Debug, Clone, PartialEq)]
struct Weights {
    weights: Vec<f64>,
    divisor: f64,
}

impl Average {
    /// The plain mean over the ranks.
    pub const EQUAL: Average = Average(None);

    /// The gradients of rank *r* count *wᵣ* / Σ*w*, where this rank's weight is `weight`. Every rank must call
    /// it, and it waits for all of them.
    ///
    /// # Errors
    /// [`Error::InvalidWeight`] on every rank where one is negative or not finite, or all are zero; errors of
    /// the communication.
    pub fn weighted(group: &dyn ProcessGroup, weight: f64) -> Result<Average> {
        let average = gather(group, Turn::Weighted(weight), false)?;
        Ok(average.unwrap_or(Average::EQUAL)) // this rank has not joined: there is one
    }

    /// The sum over the ranks, not divided by anything.
    pub(crate) fn sums(ranks: usize) -> Average {
        Average(Some(Weights {
            weights: vec![1.0; ranks],
            divisor: 1.0,
        }))
    }

    /// Where nothing is uneven, the average is the plain one: the same bits, and no multiplication.
    fn of(weights: Vec<f64>, divisor: Option<f64>) -> Average {
        if weights.iter().all(|&w| w == weights[0]) {
            return Average::EQUAL;
        }
        // At most 1, so that no product overflows where the gradient does not.
        let largest = weights.iter().copied().fold(0.0, f64::max);
        let weights: Vec<f64> = weights.iter().map(|w| w / largest).collect();
        Average(Some(Weights {
            divisor: divisor.unwrap_or_else(|| weights.iter().sum()),
            weights,
        }))
    }

    /// Whether it is the plain mean.
    pub(crate) fn is_equal(&self) -> bool {
        self.0.is_none()
    }

    /// Whether it is one of so many ranks.
    pub(crate) fn is_of(&self, ranks: usize) -> bool {
        self.0.as_ref().is_none_or(|w| w.weights.len() == ranks)
    }

    /// The first rank that has data: the one whose buffers and order of gradients are taken.
    pub(crate) fn leader(&self) -> usize {
        let weighted = self.0.as_ref();
        let first = weighted.and_then(|w| w.weights.iter().position(|&w| w > 0.0));
        first.unwrap_or(0)
    }

    /// Whether `rank`'s gradients count at all.
    pub(crate) fn counts(&self, rank: usize) -> bool {
        self.0.as_ref().is_none_or(|w| w.weights[rank] > 0.0)
    }

    /// What `rank`'s gradients are multiplied by before they are summed, and the sum divided by.
    pub(crate) fn factors(&self, rank: usize, size: usize) -> (f64, f64) {
        match &self.0 {
            None => (1.0, size as f64),
            Some(w) => (w.weights[rank], w.divisor),
        }
    }
}

/// The average of a step, from what this rank brings. `over_all`: where no rank gives a weight,
/// the sum is divided by the number of all ranks, joined ones too. `None`: all ranks have joined.
pub(crate) fn gather(
    group: &dyn ProcessGroup,
    turn: Turn,
    over_all: bool,
) -> Result<Option<Average>> {
    let (weight, kind) = match turn {
        Turn::Joined => (0.0, 0.0),
        Turn::Plain => (1.0, 1.0),
        Turn::Weighted(weight) => (weight, 2.0),
    };
    let mine = [weight, kind];
    let all = match group.size() {
        1 => mine.to_vec(), // it knows
        _ => {
            let mine = Tensor::from_slice(&mine, [2], talk::device(group))?;
            group.all_gather(mine)?.wait()?.to_vec::<f64>()?
        }
    };
    if all.chunks_exact(2).all(|rank| rank[1] == 0.0) {
        return Ok(None);
    }
    let weighted = all.chunks_exact(2).any(|rank| rank[1] == 2.0);
    let weights: Vec<f64> = all.chunks_exact(2).map(|rank| rank[0]).collect();
    let bad = weights.iter().position(|w| !(w.is_finite() && *w >= 0.0));
    match bad {
        Some(rank) => Err(Error::InvalidWeight {
            rank: Some(group.world_ranks()[rank]),
            weight: weights[rank],
        }),
        None if weights.iter().all(|&w| w == 0.0) => Err(Error::InvalidWeight {
            rank: None,
            weight: 0.0,
        }),
        None => {
            let divisor = (over_all && !weighted).then_some(weights.len() as f64);
            Ok(Some(Average::of(weights, divisor)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_weights_are_the_plain_mean() {
        assert_eq!(Average::of(vec![0.3; 4], None), Average::EQUAL);
        assert_eq!(Average::of(vec![1.0; 4], Some(4.0)), Average::EQUAL);
    }

    #[test]
    fn ranks_that_have_joined_leave_the_others_unrounded() {
        let average = Average::of(vec![1.0, 0.0, 1.0, 1.0], None);
        assert_eq!(average.factors(0, 4), (1.0, 3.0));
        assert_eq!(average.factors(1, 4), (0.0, 3.0));
        let average = Average::of(vec![7.0, 7.0, 0.0, 7.0], None);
        assert_eq!(average.factors(1, 4), (1.0, 3.0));
        let average = Average::of(vec![1.0, 0.0, 1.0, 1.0], Some(4.0));
        assert_eq!(average.factors(0, 4), (1.0, 4.0));
    }

    #[test]
    fn weights_are_at_most_one() {
        let average = Average::of(vec![1e300, 2e300, 0.0], None);
        assert_eq!(average.factors(0, 3), (0.5, 1.5));
        assert_eq!(average.factors(1, 3), (1.0, 1.5));
        assert_eq!(average.leader(), 0);
        assert!(!average.counts(2));
    }
}
