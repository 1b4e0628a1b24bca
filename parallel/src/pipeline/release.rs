//! After which action each buffer of a lowered plan can be let go: as early as the plan allows.

use std::collections::HashSet;

use super::{Action, Kind, Schedule};

/// Something that a rank holds for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Buffer {
    /// The output of a stage for a microbatch, computed here or received.
    Output {
        /// The stage that computed it.
        stage: usize,
        /// The microbatch.
        microbatch: usize,
    },
    /// The gradient of stage `of`'s output, as far as it comes through stage `by`.
    Gradient {
        /// The stage that computed it.
        by: usize,
        /// The stage that it is for.
        of: usize,
        /// The microbatch.
        microbatch: usize,
    },
    /// What a stage's forward saved for its backward.
    Saved {
        /// The stage.
        stage: usize,
        /// The microbatch.
        microbatch: usize,
    },
}

/// The buffers that `action` makes, fills or reads.
fn touched(schedule: &Schedule, action: Action, mut visit: impl FnMut(Buffer)) {
    let (stage, peer, microbatch) = (action.stage(), action.peer(), action.microbatch());
    let graph = schedule.graph();
    match action.kind() {
        Kind::Forward => {
            visit(Buffer::Output { stage, microbatch });
            visit(Buffer::Saved { stage, microbatch });
            for &q in graph.predecessors(stage) {
                visit(Buffer::Output {
                    stage: usize::from(q),
                    microbatch,
                });
            }
        }
        Kind::Input | Kind::Backward => {
            visit(Buffer::Saved { stage, microbatch });
            for &t in graph.successors(stage) {
                visit(Buffer::Gradient {
                    by: usize::from(t),
                    of: stage,
                    microbatch,
                });
            }
            for &q in graph.predecessors(stage) {
                visit(Buffer::Gradient {
                    by: stage,
                    of: usize::from(q),
                    microbatch,
                });
            }
        }
        Kind::Weight => visit(Buffer::Saved { stage, microbatch }),
        Kind::SendForward => visit(Buffer::Output { stage, microbatch }),
        Kind::RecvForward => visit(Buffer::Output {
            stage: peer,
            microbatch,
        }),
        Kind::SendBackward => visit(Buffer::Gradient {
            by: stage,
            of: peer,
            microbatch,
        }),
        Kind::RecvBackward => visit(Buffer::Gradient {
            by: peer,
            of: stage,
            microbatch,
        }),
        Kind::Unshard | Kind::Reshard | Kind::ReduceGrad | Kind::ReduceTied => {}
    }
}

/// Per rank, `(place, buffer)`: the buffer is used last by the action at that place, in ascending
/// order of place. Each buffer of the rank stands there once.
///
/// ```
/// use phalanx_parallel::pipeline::{Buffer, Lowering, Named, lower, releases};
///
/// let plan = lower(&Named::Gpipe.schedule(2, 1, 1)?, &Lowering::default())?;
/// // Rank 0 does 0F0, 0SEND_F0, 0RECV_B0, 0B0: the output is gone once it is sent.
/// let (place, buffer) = releases(&plan)[0][0];
/// assert_eq!((place, buffer), (1, Buffer::Output { stage: 0, microbatch: 0 }));
/// # Ok::<(), phalanx_parallel::pipeline::PlanError>(())
/// ```
pub fn releases(schedule: &Schedule) -> Vec<Vec<(usize, Buffer)>> {
    let of_rank = |list: &Vec<Action>| {
        let mut seen = HashSet::new();
        let mut last_uses = Vec::new();
        for (place, &action) in list.iter().enumerate().rev() {
            touched(schedule, action, |buffer| {
                if seen.insert(buffer) {
                    last_uses.push((place, buffer));
                }
            });
        }
        last_uses.reverse();
        last_uses
    };
    schedule.ranks().iter().map(of_rank).collect()
}
