//! ZBV (Qi et al. 2024, "Pipeline Parallelism with Controllable Memory"): two stages per rank, laid
//! out as a V, so that the rank which begins the forward pass also ends it.
//!
//! With F = I = W and m ≥ 2p−1 no rank is idle between its first and its last action; what is idle
//! is the p−1 units of the start and the end. At most 2p pairs are live, as much as 1F1B's first
//! rank holds. With fewer microbatches it is the plan for 2p−1 with the others left out, as in
//! PyTorch's `ScheduleZBVZeroBubble`.

use super::{Action, Kind, Shape, Writer};

pub(super) fn rank(shape: Shape, rank: u16) -> Vec<Action> {
    let (p, m) = (shape.ranks, shape.microbatches);
    // In u32, since 2p−1 can be larger than a plan may be.
    let planned = (2 * u32::from(p) - 1)
        .max(u32::from(m))
        .min(u32::from(u16::MAX)) as u16;
    let mut out = Writer::new(
        vec![rank, shape.stages() - 1 - rank],
        6 * usize::from(planned),
    );
    let (down, up) = (0, 1);

    for _ in 0..2 * (p - rank) - 1 {
        out.push(Kind::Forward, down);
    }
    for _ in 0..rank {
        out.push(Kind::Forward, up);
        out.push(Kind::Forward, down);
    }
    for _ in 0..p - rank {
        out.push(Kind::Forward, up);
        out.push(Kind::Input, up);
        out.push(Kind::Weight, up);
    }
    while out.count(up)[0] < out.count(down)[0] || out.count(down)[0] < planned {
        if out.count(down)[0] < planned {
            out.push(Kind::Forward, down);
        }
        out.push(Kind::Input, down);
        out.push(Kind::Weight, down);
        out.push(Kind::Forward, up);
        out.push(Kind::Input, up);
        out.push(Kind::Weight, up);
    }
    for _ in 0..rank {
        out.push(Kind::Input, down);
        out.push(Kind::Input, up);
    }
    for _ in 0..p - rank {
        out.push(Kind::Input, down);
        out.push(Kind::Weight, down);
    }
    for stage in [up, down] {
        while out.count(stage)[2] < out.count(stage)[1] {
            out.push(Kind::Weight, stage);
        }
    }
    let mut actions = out.finish();
    actions.retain(|a| a.microbatch() < usize::from(m));
    actions
}
