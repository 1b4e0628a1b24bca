//! Groups of cards in a build without the feature `nccl`: there are none.

use super::Backend;
use crate::error::{Error, Result};
use phalanx_tensor::Device;
use std::sync::Arc;

const REASON: &str = "this build is without NCCL; build with the feature `nccl`";

/// Why this program has no NCCL.
pub(crate) fn is_there() -> std::result::Result<(), &'static str> {
    Err(REASON)
}

/// There is nothing to count.
#[derive(Clone, Default)]
pub(crate) struct UnderWays(());

/// There is none.
pub(crate) type Card = dyn Backend;

/// Nothing is under way.
pub(crate) fn is_idle(_: &UnderWays) -> bool {
    true
}

/// There is nothing to split.
pub(crate) fn split(_: &[Arc<Card>], _: &[Arc<Card>], _: usize) -> Result<()> {
    Ok(())
}

/// An error that says so.
pub(crate) fn beside(
    host: &Arc<dyn Backend>,
    cards: &[Device],
    _: &UnderWays,
) -> Result<Vec<Arc<Card>>> {
    match cards {
        [] => Ok(Vec::new()),
        [device, ..] => Err(Error::InvalidArgument {
            op: "launch",
            rank: host.membership().world_rank(),
            reason: format!("there is no engine for tensors on {device}: {REASON}"),
        }),
    }
}
