//! The engines below [`ProcessGroup`](crate::ProcessGroup), and what they have in common.
//!
//! An engine implements [`Backend`]: in its heart one method that issues a checked [`Call`]. All else, the
//! checks of arguments above all, is done once, above.

mod activity;
pub(crate) mod fold;
pub mod local;
#[cfg(feature = "mpi")]
pub mod mpi;
#[cfg(feature = "nccl")]
pub(crate) mod nccl;
#[cfg(not(feature = "nccl"))]
#[path = "no_nccl.rs"]
pub(crate) mod nccl;
pub mod store;
mod together;
pub(crate) mod watcher;

pub(crate) use self::together::Together;
use crate::check::Call;
use crate::error::{Error, Result};
use crate::membership::Membership;
use crate::op::{Name, Op, Promises};
use crate::work::Pending;
use phalanx_tensor::DType;
use std::sync::Arc;

/// One rank's side of a group, in an engine that carries out checked calls between ranks.
///
/// An engine compares the [`Signature`](crate::op::Signature)s of all ranks, keeps deadlines,
/// and gives every rank the same error when the world fails.
pub trait Backend: Send + Sync {
    /// The engine's name.
    fn name(&self) -> &'static str;

    /// Who this rank is.
    fn membership(&self) -> &Membership;

    /// Makes what all ranks of the group make together, before the first call. Each rank does so, and waits for the others.
    ///
    /// # Errors
    /// The world's failure; that is then what calls give, too.
    fn connect(&self) -> Result<()> {
        Ok(())
    }

    /// Whether the engine carries out this operation on elements of this type.
    fn supports(&self, op: &Op, dtype: DType) -> bool {
        op.reduction()
            .is_none_or(|reduction| reduction.supports(dtype))
    }

    /// What it promises of the results of reductions.
    fn promises(&self) -> Promises;

    /// Whether the engine carries this call. The group asks before it issues several calls of which none goes without the
    /// others, so an answer leaves nothing behind: neither a message nor a number that was used up.
    ///
    /// # Errors
    /// What the engine does not carry is an error of the call alone, of which the other ranks hear nothing.
    fn admit(&self, _: &Call) -> Result<()> {
        Ok(())
    }

    /// Starts an operation without waiting for anybody.
    ///
    /// # Errors
    /// What [`admit`](Backend::admit) refuses; the world's failure; memory, or another means of the engine, that could
    /// not be had. Where it is not the world's failure, the other ranks have heard nothing of the call.
    fn issue(&self, call: Call) -> Result<Box<dyn Pending>>;

    /// Starts messages that run together: none of them waits for another one to end. Gives their results in the order
    /// of the calls. Each of them was [admitted](Backend::admit), and has its memory.
    ///
    /// # Errors
    /// As [`issue`](Backend::issue): then the other ranks have heard of none of the calls, or the world has failed.
    fn issue_together(&self, calls: Vec<Call>) -> Result<Box<dyn Pending>> {
        let all = calls.into_iter().map(|call| self.issue(call));
        Ok(Box::new(Together(all.collect::<Result<_>>()?)))
    }

    /// How many collectives this rank has issued here.
    fn issued(&self) -> u64;

    /// This rank's side of a new group, which was split off this one. Called by every rank that takes part after all
    /// have told each other their colors ([`Op::Split`]), with what they all make of it.
    ///
    /// # Errors
    /// The world's failure.
    fn split_off(&self, new: Membership) -> Result<Arc<dyn Backend>>;

    /// Says what this rank does between its calls, where others can hear of it, and gives back what it said before.
    fn set_activity(&self, _: Name) -> Name {
        Name::EMPTY
    }

    /// The world's failure, as far as this rank has heard of it.
    fn fault(&self) -> Option<Error>;

    /// As [`fault`](Backend::fault), of which the program is told with it: for whoever gives it an error.
    ///
    /// # Errors
    /// The world's failure.
    fn refuse(&self) -> Result<()> {
        self.fault().map_or(Ok(()), Err)
    }

    /// Declares that this rank will issue nothing more. Who waits for it is told at once.
    fn depart(&self);

    /// Ends the world with this error, unless it has failed already.
    fn fail(&self, error: Error);
}
