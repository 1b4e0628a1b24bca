//! Writes that may get lost: a collective that is aborted leaves the tensor that it was to write with
//! no defined contents, after it has handed that tensor out. [`WriteFault`] is how its issuer says so.

use super::Storage;
use crate::{Error, Result, Tensor};
use std::sync::atomic::{AtomicBool, Ordering::Acquire, Ordering::Release};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The outcome of a write that its issuer may declare lost, shared by the issuer and by the tensors
/// that are written.
///
/// From then on every operation and every read by the host that takes such a tensor gives
/// [`Error::LostWrite`] and not its bytes, until the tensor is written as a whole again.
///
/// ```
/// use phalanx_tensor::{Device, Error, Tensor, WriteFault};
///
/// let received = Tensor::from_slice(&[1.0f32, 2.0], [2], Device::cpu(0))?;
/// let fault = WriteFault::new();
/// received.set_last_write(&fault);
/// assert!(received.neg().is_ok());
/// fault.declare("all_reduce number 7 was aborted");
/// assert!(matches!(received.neg(), Err(Error::LostWrite { op: "neg", .. })));
/// assert!(received.to_vec::<f32>().is_err());
/// # Ok::<(), phalanx_tensor::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct WriteFault(Arc<OnceLock<String>>);

impl WriteFault {
    /// A write that goes well until [`declare`](WriteFault::declare) says otherwise.
    #[must_use]
    pub fn new() -> WriteFault {
        WriteFault::default()
    }

    /// Declares the write lost, for `reason`. The first reason counts.
    pub fn declare(&self, reason: impl Into<String>) {
        // A second call keeps the first reason.
        let _ = self.0.set(reason.into());
    }

    /// Why the write was lost; `None` while it was not.
    pub fn reason(&self) -> Option<&str> {
        self.0.get().map(String::as_str)
    }
}

/// The fault cell of a storage's last write, if its issuer has attached one.
#[derive(Debug, Default)]
pub(super) struct Attached {
    /// Whether there is one: the one thing that operations look at on the fast path.
    some: AtomicBool,
    cell: Mutex<Option<WriteFault>>,
}

impl Attached {
    fn set(&self, cell: Option<WriteFault>) {
        // A panic while the lock was held cannot leave the value half-changed.
        let mut slot = self.cell.lock().unwrap_or_else(PoisonError::into_inner);
        // Release: who sees the flag finds the cell, which the lock orders as well.
        self.some.store(cell.is_some(), Release);
        *slot = cell;
    }
}

impl Storage {
    /// The last write of the storage was not lost, or nobody has said so yet.
    #[inline]
    pub(crate) fn expect_written(&self, op: &'static str) -> Result<()> {
        match self.fault.some.load(Acquire) {
            false => Ok(()),
            true => self.look(op),
        }
    }

    #[cold]
    fn look(&self, op: &'static str) -> Result<()> {
        let cell = self.fault.cell.lock();
        let cell = cell.unwrap_or_else(PoisonError::into_inner);
        match cell.as_ref().and_then(WriteFault::reason) {
            None => Ok(()),
            Some(reason) => Err(Error::LostWrite {
                op,
                device: self.device(),
                reason: reason.to_owned(),
            }),
        }
    }

    /// A write of the whole storage takes the place of the last one.
    pub(crate) fn rewritten(&self) {
        if self.fault.some.load(Acquire) {
            self.fault.set(None);
        }
    }
}

impl Tensor {
    /// Says whose write the tensor's contents are: `fault` tells readers if it gets lost. It holds
    /// for the whole storage, so for every view of it, until an operation writes all of it anew.
    pub fn set_last_write(&self, fault: &WriteFault) {
        self.storage().fault.set(Some(fault.clone()));
    }
}
