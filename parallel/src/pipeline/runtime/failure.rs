//! What becomes of an error in mid-step: this rank's own is told to all, with its place in the plan.

use crate::pipeline::Action;
use crate::{Error, talk};
use phalanx_comm::ProcessGroup;

/// The error of this rank, in this place of the plan. Where it is the rank's own, the group ends with it, so that no other
/// waits for what will not come.
pub(super) fn of(
    group: &dyn ProcessGroup,
    step: u64,
    action: Option<Action>,
    error: Error,
) -> Error {
    use phalanx_comm::Error as Comm;
    if let Error::Comm(
        Comm::Aborted { .. }
        | Comm::RankFailed { .. }
        | Comm::RankPanicked { .. }
        | Comm::RankReturned { .. },
    ) = error
    {
        return error; // it tells of another rank
    }
    let is_own = !matches!(&error, Error::Comm(error) if error.is_fatal());
    let error = match action {
        None => error,
        Some(action) => Error::Action {
            rank: talk::world_rank(group),
            step,
            action: action.to_string(),
            stage: action.stage(),
            microbatch: action.kind().has_microbatch().then(|| action.microbatch()),
            error: Box::new(error),
        },
    };
    if is_own {
        group.abort(&error.to_string());
    }
    error
}

/// What the others are told of something else than an error.
pub(super) fn sentence(
    group: &dyn ProcessGroup,
    step: u64,
    action: Option<Action>,
    what: &str,
) -> String {
    let rank = talk::world_rank(group);
    match action {
        Some(action) => format!("step {step} of the pipeline: {what} in {action} on rank {rank}"),
        None => format!("step {step} of the pipeline: {what} on rank {rank}"),
    }
}
