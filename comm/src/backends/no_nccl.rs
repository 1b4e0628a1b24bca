//! Groups of cards in a build without the feature `nccl`: there are none.

use super::Backend;
use crate::error::{Error, Result};
use phalanx_tensor::Device;
use std::convert::Infallible;
use std::sync::Arc;

const REASON: &str = "this build is without NCCL: turn on the feature `nccl` of phalanx-comm (`--features nccl` for the examples)";

/// Why this program has no NCCL.
pub(crate) fn is_there() -> std::result::Result<(), &'static str> {
    Err(REASON)
}

/// There is nothing to count.
#[derive(Clone, Default)]
pub(crate) struct UnderWays(());

/// There is none.
pub(crate) type Card = dyn Backend;

/// Nobody holds what is not there.
pub(crate) struct Held<'a>(&'a Infallible);

/// There is nothing to hold.
pub(crate) fn hold<'a>(_: &'a [Arc<Card>], _: &UnderWays) -> Option<Held<'a>> {
    None
}

impl Held<'_> {
    /// Nobody calls it.
    pub(crate) fn split(self, _: &[Arc<Card>], _: usize) -> Result<()> {
        match *self.0 {}
    }
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
