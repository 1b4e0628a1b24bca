//! Who differs, where the ranks of a group have called what does not go together.

use crate::op::{Difference, Signature};

/// A call, as it is compared.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heard<'a> {
    /// Who called, in the world.
    pub(crate) rank: usize,
    /// Which of those that take part it is: the rank in the group; of a message, 0.
    pub(crate) index: usize,
    pub(crate) signature: &'a Signature,
}

/// The odd one out, by its place in what was heard, and one that it differs from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) odd: usize,
    pub(crate) other: usize,
    pub(crate) difference: Difference,
}

fn difference(a: Heard<'_>, b: Heard<'_>) -> Option<Difference> {
    Signature::difference((a.index, a.signature), (b.index, b.signature))
}

/// Who differs from most others, among calls in the order of their ranks; where it is open, the later of the two. `None`
/// where all agree.
///
/// A rank that agrees with nobody is a worse one than a rank that agrees with some; so where more than half of
/// the ranks agree, the one that is named is none of them. The same calls give the same verdict on every rank.
pub(crate) fn verdict(calls: &[Heard<'_>]) -> Option<Verdict> {
    let agreeing: Vec<usize> = (0..calls.len())
        .map(|a| {
            let others = calls.iter();
            others
                .filter(|other| difference(calls[a], **other).is_none())
                .count()
        })
        .collect();
    // The last of those that have the fewest with them, and the first of those that have the most.
    let odd = (0..calls.len()).rev().min_by_key(|&a| agreeing[a])?;
    let differing = (0..calls.len()).filter(|&a| difference(calls[odd], calls[a]).is_some());
    let other = differing.rev().max_by_key(|&a| agreeing[a])?;
    Some(Verdict {
        odd,
        other,
        difference: difference(calls[odd], calls[other])?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{Op, ReduceOp};
    use phalanx_tensor::{DType, Shape};
    use smallvec::smallvec;

    fn of(len: usize) -> Signature {
        Signature {
            op: Op::AllReduce(ReduceOp::Sum),
            tensors: smallvec![(DType::F32, Shape::from([len]))],
            label: None,
            beside: None,
        }
    }

    fn judge(lens: &[usize]) -> Option<(usize, usize)> {
        let calls: Vec<Signature> = lens.iter().map(|&len| of(len)).collect();
        let heard: Vec<Heard<'_>> = calls
            .iter()
            .enumerate()
            .map(|(rank, signature)| Heard {
                rank,
                index: rank,
                signature,
            })
            .collect();
        verdict(&heard).map(|v| (v.odd, v.other))
    }

    #[test]
    fn the_odd_one_out_is_named_wherever_it_stands() {
        assert_eq!(judge(&[1, 1, 1]), None);
        assert_eq!(judge(&[2, 1, 1]), Some((0, 1)));
        assert_eq!(judge(&[1, 2, 1]), Some((1, 0)));
        assert_eq!(judge(&[1, 1, 2, 1, 2]), Some((4, 0)));
        assert_eq!(judge(&[3, 1, 2, 1, 2, 1]), Some((0, 1)));
    }

    #[test]
    fn of_two_halves_the_later_one_is_named() {
        assert_eq!(judge(&[1, 2]), Some((1, 0)));
        assert_eq!(judge(&[1, 2, 2, 1]), Some((3, 1)));
    }

    /// A rank of the majority is never named, whatever the others call.
    #[test]
    fn no_rank_of_a_majority_is_named() {
        for code in 0..3_usize.pow(5) {
            let lens: Vec<usize> = (0..5).map(|at| code / 3_usize.pow(at) % 3).collect();
            let with = |len| lens.iter().filter(|l| **l == len).count();
            if let Some((odd, other)) = judge(&lens) {
                assert!(with(lens[odd]) * 2 <= 5, "{lens:?}");
                assert!((0..3).all(|len| with(len) <= with(lens[other])), "{lens:?}");
            } else {
                assert_eq!(with(lens[0]), 5);
            }
        }
    }
}
