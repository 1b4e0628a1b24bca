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
pub struct WriteFault(Arc<Cell>);

#[derive(Debug, Default)]
struct Cell {
    outcome: OnceLock<Outcome>,
    /// Whether its issuer says in any case how it ended.
    is_told: bool,
}

/// How a write ended.
#[derive(Debug)]
enum Outcome {
    /// It is done.
    Done,
    /// It was lost, for this reason.
    Lost(String),
}

impl WriteFault {
    /// A write that goes well until [`declare`](WriteFault::declare) says otherwise.
    #[must_use]
    pub fn new() -> WriteFault {
        WriteFault::default()
    }

    /// A write whose issuer says how it ended in any case, by [`declare`](WriteFault::declare) or
    /// [`settle`](WriteFault::settle). Until then no copy to the host gives its bytes: it waits, so that nobody reads what
    /// turns out to be lost. Operations on the device do not wait; what they make is kept back in the same way.
    #[must_use]
    pub fn told() -> WriteFault {
        WriteFault(Arc::new(Cell {
            outcome: OnceLock::new(),
            is_told: true,
        }))
    }

    /// Declares the write lost, for `reason`. The first outcome counts.
    ///
    /// This comes before whatever lets readers go on: a reader that waits for the write looks here when
    /// its wait is over.
    pub fn declare(&self, reason: impl Into<String>) {
        // A second call keeps the first outcome.
        let _ = self.0.outcome.set(Outcome::Lost(reason.into()));
    }

    /// Says that the write went well, so that nobody need ask any more. The first outcome counts.
    pub fn settle(&self) {
        let _ = self.0.outcome.set(Outcome::Done);
    }

    fn is_settled(&self) -> bool {
        matches!(self.0.outcome.get(), Some(Outcome::Done))
    }

    /// Waits until its issuer has said how it ended, if that one does so in any case.
    fn hear(&self) {
        if self.0.is_told {
            self.0.outcome.wait();
        }
    }

    /// Why the write was lost; `None` while it was not.
    pub fn reason(&self) -> Option<&str> {
        match self.0.outcome.get()? {
            Outcome::Done => None,
            Outcome::Lost(reason) => Some(reason),
        }
    }
}

/// The fault cell of a storage's last write, if its issuer has attached one.
#[derive(Debug, Default)]
pub(super) struct Attached {
    /// Whether there is one: the one thing that operations look at on the fast path.
    some: AtomicBool,
    /// Those of the writes that made the contents.
    cell: Mutex<Vec<WriteFault>>,
}

impl Attached {
    /// Adds the cells that are not settled: writes that went well need none.
    fn add(&self, cells: &[WriteFault]) {
        // A panic while the lock was held cannot leave the list half-changed.
        let mut known = self.cell.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|cell| !cell.is_settled());
        for cell in cells.iter().filter(|cell| !cell.is_settled()) {
            if !known.iter().any(|known| Arc::ptr_eq(&known.0, &cell.0)) {
                known.push(cell.clone());
            }
        }
        // Release: who sees the flag finds the cells, which the lock orders as well.
        self.some.store(!known.is_empty(), Release);
    }

    fn clear(&self) {
        let mut known = self.cell.lock().unwrap_or_else(PoisonError::into_inner);
        known.clear();
        self.some.store(false, Release);
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

    /// The last write of the storage was not lost, as far as anybody will ever say: for who hands its bytes out.
    pub(crate) fn expect_told(&self, op: &'static str) -> Result<()> {
        if self.fault.some.load(Acquire) {
            let cells = self.fault.cell.lock();
            // Not under the lock: whoever computes with the storage looks there.
            let cells = cells.unwrap_or_else(PoisonError::into_inner).clone();
            cells.iter().for_each(WriteFault::hear);
        }
        self.expect_written(op)
    }

    /// A write of the storage may still get lost.
    #[inline]
    pub(crate) fn is_pending(&self) -> bool {
        self.fault.some.load(Acquire)
    }

    #[cold]
    fn look(&self, op: &'static str) -> Result<()> {
        let cell = self.fault.cell.lock();
        let cell = cell.unwrap_or_else(PoisonError::into_inner);
        match cell.iter().find_map(WriteFault::reason) {
            None => Ok(()),
            Some(reason) => Err(Error::LostWrite {
                op,
                device: self.device(),
                reason: reason.to_owned(),
            }),
        }
    }

    /// A write of the whole storage took the place of the last one.
    pub(crate) fn rewritten(&self) {
        if self.fault.some.load(Acquire) {
            self.fault.clear();
        }
    }

    /// The storage now holds what was computed from `other`, too: a write of that one which may still
    /// get lost is one of this, too.
    pub(crate) fn inherits(&self, other: &Storage) {
        if other.fault.some.load(Acquire) && !std::ptr::eq(self, other) {
            let cell = other.fault.cell.lock();
            let cells = cell.unwrap_or_else(PoisonError::into_inner).clone();
            self.fault.add(&cells);
        }
    }

    /// What the storage holds is undefined from now on, since a write broke off.
    pub(crate) fn broke_off(&self, op: &'static str) {
        let fault = WriteFault::new();
        fault.declare(format!("{op} broke off before it was complete"));
        self.fault.add(&[fault]);
    }
}

impl Tensor {
    /// Says whose write the tensor's contents are: `fault` tells readers if it gets lost. It holds
    /// for the whole storage, so for every view of it, until an operation writes all of it anew.
    ///
    /// What operations make of the contents before that inherits the fault: it is told as well.
    pub fn set_last_write(&self, fault: &WriteFault) {
        self.storage().fault.add(std::slice::from_ref(fault));
    }

    /// Asks whether the tensor may still be read by `op`, as far as anybody has said by now: for who must know it before
    /// the operation begins.
    ///
    /// # Errors
    /// [`Error::LostWrite`], where its last write was lost.
    pub fn check_last_write(&self, op: &'static str) -> Result<()> {
        self.storage().expect_written(op)
    }
}
