//! The engines below [`ProcessGroup`](crate::ProcessGroup), and what they have in common.
//!
//! A backend implements [`Backend`]: one method that issues a checked [`Call`]. All else, the
//! checks of arguments above all, is done once, above.

pub(crate) mod fold;
pub mod local;
#[cfg(feature = "mpi")]
pub mod mpi;

use crate::check::Call;
use crate::error::{Error, Result};
use crate::membership::Membership;
use crate::op::Label;
use crate::work::Pending;
use std::sync::Arc;

/// An engine that carries out checked calls between ranks.
///
/// A backend compares the [`Signature`](crate::op::Signature)s of all ranks, keeps deadlines,
/// and gives every rank the same error when the world fails.
pub trait Backend: Send + Sync + Sized + 'static {
    /// The backend's name.
    const NAME: &'static str;

    /// Who this rank is.
    fn membership(&self) -> &Membership;

    /// Starts an operation without waiting for anybody.
    ///
    /// # Errors
    /// The world's failure, or memory that could not be had.
    fn issue(&self, call: Call) -> Result<Box<dyn Pending>>;

    /// This rank's handle on a new group of these ranks of this group, in this order. Called by every rank that takes
    /// part after all have told each other their colors ([`Op::Split`](crate::op::Op)), with its own color and the ranks
    /// of the same.
    ///
    /// # Errors
    /// The world's failure.
    fn split_off(&self, color: u32, members: &[usize]) -> Result<Self>;

    /// Another handle on the same group, whose calls carry this label.
    fn labelled(&self, label: Label) -> Self;

    /// The label that this handle's calls carry.
    fn label(&self) -> Option<&Arc<Label>>;

    /// Declares that this rank will issue nothing more. Who waits for it is told at once.
    fn depart(&self);

    /// Ends the world with this error, unless it has failed already.
    fn fail(&self, error: Error);
}
