//! 1F1B (PipeDream-Flush in Narayanan et al. 2021, Megatron-LM): rank r runs p−r forwards ahead,
//! then one backward and one forward in turn.
//!
//! Idle (p−1)(F+B) on each rank, as GPipe; but at most p−r microbatches are live on rank r. The
//! order is that of PyTorch's runtime; the plan that its `_get_pipeline_order` prints is wrong on
//! the last rank.

use super::{Action, Kind, Shape};

pub(super) fn rank(shape: Shape, rank: u16) -> Vec<Action> {
    let m = shape.microbatches;
    let ahead = (shape.ranks - rank).min(m);
    let mut actions = Vec::with_capacity(2 * usize::from(m));
    actions.extend((0..ahead).map(|mb| Action::compute(Kind::Forward, rank, mb)));
    for mb in 0..m {
        actions.push(Action::compute(Kind::Backward, rank, mb));
        if mb < m - ahead {
            actions.push(Action::compute(Kind::Forward, rank, mb + ahead));
        }
    }
    actions
}
