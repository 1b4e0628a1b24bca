//! Looped breadth-first (Lamy-Poirier 2023): each of a rank's v stages takes all microbatches
//! before the next does; backward in the opposite order.
//!
//! Idle (p−1)(F+B)/v for m ≥ p, as interleaved 1F1B; but all vm pairs are live at the turn. In
//! return a stage's parameters are needed in two spans only, which suits sharded parameters.

use super::rounds::looped_stages;
use super::{Action, Kind, Shape};

pub(super) fn rank(shape: Shape, rank: u16) -> Vec<Action> {
    let stages = looped_stages(shape, rank);
    let m = shape.microbatches;
    let mut actions = Vec::with_capacity(2 * stages.len() * usize::from(m));
    for &stage in &stages {
        actions.extend((0..m).map(|mb| Action::compute(Kind::Forward, stage, mb)));
    }
    for &stage in stages.iter().rev() {
        actions.extend(
            (0..m)
                .rev()
                .map(|mb| Action::compute(Kind::Backward, stage, mb)),
        );
    }
    actions
}
