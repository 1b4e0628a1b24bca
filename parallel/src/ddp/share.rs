//! How much each rank's gradients count in the average of a step.

use crate::{Error, Result};
use phalanx_comm::ProcessGroup;
use phalanx_tensor::Tensor;

/// What a rank brings to a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Turn {
    /// Its data has run out.
    Joined,
    /// Gradients that count as much as any other's.
    Plain,
    /// Gradients that count with this weight. A weight of 0 is no farewell.
    Weighted(f64),
}

/// How the gradients of all ranks become one.
#[derive(Debug, PartialEq)]
pub(super) enum Share {
    /// Their plain mean.
    Equal,
    /// Multiplied by a weight for each rank, not all zero and none above 1, summed, then divided. Where
    /// the weights are 0 and 1 nothing is rounded before the sum, as in the plain mean.
    Weighted { weights: Vec<f64>, divisor: f64 },
}

impl Share {
    /// Where nothing is uneven, the average is the plain one: the same bits, and no multiplication.
    fn of(weights: Vec<f64>, divisor: Option<f64>) -> Share {
        if weights.iter().all(|&w| w == weights[0]) {
            return Share::Equal;
        }
        // At most 1, so that no product overflows where the gradient does not.
        let largest = weights.iter().copied().fold(0.0, f64::max);
        let weights: Vec<f64> = weights.iter().map(|w| w / largest).collect();
        Share::Weighted {
            divisor: divisor.unwrap_or_else(|| weights.iter().sum()),
            weights,
        }
    }

    /// The first rank that has data: the one whose buffers and order of gradients are taken.
    pub(super) fn leader(&self) -> usize {
        match self {
            Share::Equal => 0,
            Share::Weighted { weights, .. } => weights.iter().position(|&w| w > 0.0).unwrap_or(0),
        }
    }

    /// Whether `rank`'s gradients count at all.
    pub(super) fn counts(&self, rank: usize) -> bool {
        match self {
            Share::Equal => true,
            Share::Weighted { weights, .. } => weights[rank] > 0.0,
        }
    }

    /// What `rank`'s gradients are multiplied by before they are summed, and the sum divided by.
    pub(super) fn factors(&self, rank: usize, size: usize) -> (f64, f64) {
        match self {
            Share::Equal => (1.0, size as f64),
            Share::Weighted { weights, divisor } => (weights[rank], *divisor),
        }
    }
}

/// Every rank's share of a step, from what this rank brings. `over_all`: where no rank gives a weight,
/// the sum is divided by the number of all ranks, joined ones too. `None`: all ranks have joined.
pub(super) fn gather(
    group: &dyn ProcessGroup,
    turn: Turn,
    over_all: bool,
) -> Result<Option<Share>> {
    let (weight, kind) = match turn {
        Turn::Joined => (0.0, 0.0),
        Turn::Plain => (1.0, 1.0),
        Turn::Weighted(weight) => (weight, 2.0),
    };
    let mine = [weight, kind];
    let all = match group.size() {
        1 => mine.to_vec(), // it knows: nothing is read from its device
        _ => {
            let mine = Tensor::from_slice(&mine, [2], group.device())?;
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
            Ok(Some(Share::of(weights, divisor)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_weights_are_the_plain_mean() {
        assert_eq!(Share::of(vec![0.3; 4], None), Share::Equal);
        assert_eq!(Share::of(vec![1.0; 4], Some(4.0)), Share::Equal);
    }

    #[test]
    fn ranks_that_have_joined_leave_the_others_unrounded() {
        let share = Share::of(vec![1.0, 0.0, 1.0, 1.0], None);
        assert_eq!(share.factors(0, 4), (1.0, 3.0));
        assert_eq!(share.factors(1, 4), (0.0, 3.0));
        let share = Share::of(vec![7.0, 7.0, 0.0, 7.0], None);
        assert_eq!(share.factors(1, 4), (1.0, 3.0));
        let share = Share::of(vec![1.0, 0.0, 1.0, 1.0], Some(4.0));
        assert_eq!(share.factors(0, 4), (1.0, 4.0));
    }

    #[test]
    fn weights_are_at_most_one() {
        let share = Share::of(vec![1e300, 2e300, 0.0], None);
        assert_eq!(share.factors(0, 3), (0.5, 1.5));
        assert_eq!(share.factors(1, 3), (1.0, 1.5));
        assert_eq!(share.leader(), 0);
        assert!(!share.counts(2));
    }
}
