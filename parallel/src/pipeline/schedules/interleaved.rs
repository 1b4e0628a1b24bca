//! Interleaved 1F1B (Narayanan et al. 2021, Megatron-LM): each rank holds v stages, p apart, so
//! that the bubble is a v-th.
//!
//! Idle (p−1)(F+B)/v. Rank r runs (v−1) rounds and 2(p−1−r) forwards ahead before its first
//! backward, so one more than that is live at the peak. The order is that of PyTorch's
//! `ScheduleInterleaved1F1B`, where a forward comes before the backward of the same slot; with one
//! stage per rank it therefore holds more than 1F1B does.

use super::rounds::{backward_stage, forward_stage, looped_stages};
use super::{Action, Kind, Shape, Writer};

pub(super) fn rank(shape: Shape, round: u16, rank: u16) -> Vec<Action> {
    let total = usize::from(shape.per_rank) * usize::from(shape.microbatches);
    let ahead = usize::from(shape.per_rank - 1) * usize::from(round)
        + 2 * usize::from(shape.ranks - 1 - rank);
    let ahead = ahead.min(total);
    let mut out = Writer::new(looped_stages(shape, rank), 2 * total);
    for step in 0..ahead {
        out.push(Kind::Forward, forward_stage(shape, round, step));
    }
    for step in 0..total {
        if ahead + step < total {
            out.push(Kind::Forward, forward_stage(shape, round, ahead + step));
        }
        out.push(Kind::Backward, backward_stage(shape, round, step));
    }
    out.finish()
}
