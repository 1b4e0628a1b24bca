//! DualPipeV (DeepSeek's DualPipe, cut in half by Sea AI Lab 2025): two stages per rank, laid out
//! as a V; in the steady state each forward stands beside a backward that it does not depend on,
//! so that the one's transfers hide behind the other's compute.
//!
//! A pair that PyTorch's `ScheduleDualPipeV` writes as `(1F1;0B0)OVERLAP_F_B` is written as `1F1,
//! 0B0` here: two actions in that order. So the forward does not wait for what only the backward
//! needs, and the plan idles for (p−1)F/2 at F = I = W, where pairs that begin as one idle for
//! more. 2p + 1 pairs are live at the peak. Needs at least as many microbatches as stages.

use super::{Action, Kind, PlanError, Shape, Writer};

pub(super) fn check(shape: Shape) -> Result<(), PlanError> {
    let (m, stages) = (shape.microbatches, shape.stages());
    if m >= stages {
        return Ok(());
    }
    shape.refuse(format!(
        "it needs at least as many microbatches as stages, which are {stages}"
    ))
}

pub(super) fn rank(shape: Shape, rank: u16) -> Vec<Action> {
    let (p, m) = (shape.ranks, shape.microbatches);
    let mut out = Writer::new(vec![rank, shape.stages() - 1 - rank], 6 * usize::from(m));
    let (down, up) = (0, 1);
    // Stages whose weight gradients wait, oldest first.
    let mut waiting = std::collections::VecDeque::new();
    let after = p - 1 - rank;

    for _ in 0..2 * after {
        out.push(Kind::Forward, down);
    }
    for _ in 0..=rank {
        out.push(Kind::Forward, down);
        out.push(Kind::Forward, up);
    }
    for _ in 0..after {
        out.push(Kind::Input, up);
        out.push(Kind::Weight, up);
        out.push(Kind::Forward, up);
    }
    for _ in 0..m - 2 * p + rank + 1 {
        out.push(Kind::Forward, down);
        out.push(Kind::Backward, up);
        out.push(Kind::Forward, up);
        out.push(Kind::Backward, down);
    }
    for _ in 0..after {
        out.push(Kind::Backward, up);
        out.push(Kind::Forward, up);
        out.push(Kind::Backward, down);
    }
    // From the middle of these backwards on, weight gradients wait.
    for i in 0..2 * (rank + 1) {
        let stage = if i % 2 == 0 { up } else { down };
        if i <= rank {
            out.push(Kind::Backward, stage);
        } else {
            out.push(Kind::Input, stage);
            waiting.push_back(stage);
        }
    }
    for _ in 0..after {
        if let Some(stage) = waiting.pop_front() {
            out.push(Kind::Weight, stage);
        }
        out.push(Kind::Input, down);
        waiting.push_back(down);
    }
    for stage in waiting {
        out.push(Kind::Weight, stage);
    }
    out.finish()
}
