//! GPipe (Huang et al. 2019): every forward, then every backward.
//!
//! Idle (p−1)(F+B) on each rank; all m microbatches are live at the turn.

use super::{Action, Kind, Shape};

pub(super) fn rank(shape: Shape, rank: u16) -> Vec<Action> {
    let all = |kind| (0..shape.microbatches).map(move |mb| Action::compute(kind, rank, mb));
    all(Kind::Forward).chain(all(Kind::Backward)).collect()
}
