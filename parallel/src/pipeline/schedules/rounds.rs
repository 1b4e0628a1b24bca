//! The rounds of interleaved schedules: a round of microbatches goes through all of a rank's
//! stages before the next round begins.

use super::{PlanError, Shape};

/// Microbatches in a round: p, or a little more where p does not divide m but some number of
/// rounds does (Narayanan et al. 2021 want p to divide m; PyTorch relaxes it like this).
///
/// # Errors
/// Where the rounds would not be equal.
pub(super) fn round_length(shape: Shape) -> Result<u16, PlanError> {
    let (m, p) = (shape.microbatches, shape.ranks);
    let rounds = (m / p).max(1);
    if m % rounds == 0 {
        return Ok(m / rounds);
    }
    let fits = |&m: &u16| m % (m / p).max(1) == 0;
    let fewer = (1..m).rev().find(fits).unwrap_or(1);
    let more = (m + 1..=u16::MAX).find(fits).unwrap_or(fewer);
    shape.refuse(format!(
        "the microbatches go round in {rounds} rounds of equal length, and {m} is no multiple of \
         {rounds}; {fewer} or {more} would do"
    ))
}

/// Which of a rank's stages does the `step`-th forward.
pub(super) fn forward_stage(shape: Shape, round: u16, step: usize) -> usize {
    step / usize::from(round) % usize::from(shape.per_rank)
}

/// Which of a rank's stages does the `step`-th backward: the same, last stage first.
pub(super) fn backward_stage(shape: Shape, round: u16, step: usize) -> usize {
    usize::from(shape.per_rank) - 1 - forward_stage(shape, round, step)
}

/// The stages of `rank` where they are dealt out like cards.
pub(super) fn looped_stages(shape: Shape, rank: u16) -> Vec<u16> {
    (0..shape.per_rank)
        .map(|k| k * shape.ranks + rank)
        .collect()
}
