//! ZB-H1 and ZB1P (Qi et al. 2023, "Zero Bubble Pipeline Parallelism"): 1F1B whose weight
//! gradients wait, so that the input gradients that other ranks need come sooner.
//!
//! Idle (p−1)(F+I−W)/v for m ≥ p and W ≤ F, I: a third of 1F1B's at equal costs. At most as many
//! pairs are live as on 1F1B's (interleaved 1F1B's) fullest rank. Rank r puts its first r weight
//! gradients off: they fill what would be its bubble at the end. ZB-H1 is the case of one stage per
//! rank and takes any number of microbatches; ZB1P is its interleaved form, PyTorch's
//! `ScheduleInterleavedZeroBubble`, and needs equal rounds.

use super::rounds::{backward_stage, forward_stage, looped_stages};
use super::{Action, Kind, Shape, Writer};

pub(super) fn rank(shape: Shape, round: u16, rank: u16) -> Vec<Action> {
    let total = usize::from(shape.per_rank) * usize::from(shape.microbatches);
    let ahead =
        usize::from(shape.per_rank - 1) * usize::from(round) + usize::from(shape.ranks - 1 - rank);
    let ahead = ahead.min(total);
    let put_off = usize::from(rank);
    let mut out = Writer::new(looped_stages(shape, rank), 3 * total);
    for step in 0..ahead {
        out.push(Kind::Forward, forward_stage(shape, round, step));
    }
    for step in 0..total {
        if ahead + step < total {
            out.push(Kind::Forward, forward_stage(shape, round, ahead + step));
        }
        out.push(Kind::Input, backward_stage(shape, round, step));
        if step >= put_off {
            out.push(Kind::Weight, backward_stage(shape, round, step - put_off));
        }
    }
    for step in total.saturating_sub(put_off)..total {
        out.push(Kind::Weight, backward_stage(shape, round, step));
    }
    out.finish()
}
