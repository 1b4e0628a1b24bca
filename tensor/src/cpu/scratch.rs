//! Scratch memory that may not be had. Its size follows from the operands, so that a refusal of the
//! system is an error of the operation, which can be called again, and never the end of the process.

use crate::{Device, Error};
use std::sync::{Mutex, PoisonError};

/// The system refused so many bytes of scratch memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMemory {
    pub(crate) bytes: usize,
}

impl NoMemory {
    /// For `len` elements of type `T`.
    pub(crate) fn of<T>(len: usize) -> NoMemory {
        NoMemory {
            bytes: len.saturating_mul(size_of::<T>()),
        }
    }

    /// The error of the operation `op` on `device`.
    pub(crate) fn on(self, op: &'static str, device: Device) -> Error {
        Error::OutOfMemory {
            op,
            device,
            bytes: self.bytes,
            live: device.memory().map_or(0, |memory| memory.live),
            limit: None,
        }
    }
}

/// An empty vector with room for `len` elements.
pub(crate) fn room<T>(len: usize) -> Result<Vec<T>, NoMemory> {
    let mut v = Vec::new();
    match v.try_reserve_exact(len) {
        Ok(()) => Ok(v),
        Err(_) => Err(NoMemory::of::<T>(len)),
    }
}

/// Room for `more` elements at the end of a vector.
pub(crate) fn reserve<T>(v: &mut Vec<T>, more: usize) -> Result<(), NoMemory> {
    v.try_reserve(more).map_err(|_| NoMemory::of::<T>(more))
}

/// Whether all parts of a parallel operation had their scratch memory.
#[derive(Default)]
pub(crate) struct Outcome(Mutex<Option<NoMemory>>);

impl Outcome {
    /// Runs one part, and keeps its failure.
    pub(crate) fn of(&self, part: impl FnOnce() -> Result<(), NoMemory>) {
        if let Err(e) = part() {
            // A panic while the lock was held cannot leave the value half-changed.
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
        }
    }

    /// A failure of any part.
    pub(crate) fn result(self) -> Result<(), NoMemory> {
        match self.0.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(e) => Err(e),
            None => Ok(()),
        }
    }
}
