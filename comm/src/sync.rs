//! [`Mutex`], the standard one without poison, and [`Shared`], the standard `Arc`, in a form that
//! ThreadSanitizer can follow. And what the local backend synchronises with: under `--cfg phalanx_loom` these are
//! loom's stand-ins for the standard types, by which `backends/local/model.rs` tries the orders in which threads may run.
//!
//! ThreadSanitizer sees only what it has instrumented, and the standard library comes compiled
//! without it: a lock that was contended is taken in there, so that what it orders looks like a race. And `Arc` orders the last drop after all others
//! by a fence, which ThreadSanitizer does not model (compiled for it, the standard library would use a
//! load). Under `--cfg phalanx_tsan` (see `xtask/src/parts.rs`) they say so once more, with an atomic
//! of their own.

#[cfg(not(phalanx_loom))]
mod cell;

#[cfg(not(phalanx_loom))]
pub(crate) use self::cell::UnsafeCell;
#[cfg(phalanx_loom)]
pub(crate) use loom::{
    cell::UnsafeCell,
    sync::{Condvar, Mutex as Lock, MutexGuard, atomic},
};
#[cfg(not(phalanx_loom))]
pub(crate) use std::sync::{Condvar, Mutex as Lock, MutexGuard, atomic};

#[cfg(phalanx_tsan)]
use self::atomic::{AtomicUsize, Ordering::AcqRel};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
#[cfg(feature = "nccl")]
use std::sync::TryLockError;

/// Excludes other threads from a value. No code that can panic runs while one of this crate's
/// locks is held, so there is no poison.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T> {
    inner: Lock<T>,
    #[cfg(phalanx_tsan)]
    edge: AtomicUsize,
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Mutex<T> {
        Mutex {
            inner: Lock::new(value),
            #[cfg(phalanx_tsan)]
            edge: AtomicUsize::new(0),
        }
    }

    pub(crate) fn lock(&self) -> Guard<'_, T> {
        let inner = self.inner.lock().unwrap_or_else(|e| e.into_inner());
        #[cfg(phalanx_tsan)]
        self.edge.fetch_add(1, AcqRel);
        Guard {
            inner,
            #[cfg(phalanx_tsan)]
            edge: &self.edge,
        }
    }
}

#[cfg(feature = "nccl")]
impl<T> Mutex<T> {
    /// `None` where another thread has it.
    pub(crate) fn try_lock(&self) -> Option<Guard<'_, T>> {
        let inner = match self.inner.try_lock() {
            Ok(inner) => inner,
            Err(TryLockError::Poisoned(e)) => e.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        #[cfg(phalanx_tsan)]
        self.edge.fetch_add(1, AcqRel);
        Some(Guard {
            inner,
            #[cfg(phalanx_tsan)]
            edge: &self.edge,
        })
    }
}

/// The right to use the value, until it is dropped.
pub(crate) struct Guard<'a, T> {
    inner: MutexGuard<'a, T>,
    #[cfg(phalanx_tsan)]
    edge: &'a AtomicUsize,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

#[cfg(phalanx_tsan)]
impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        // Before the field, the lock itself, is released.
        self.edge.fetch_add(1, AcqRel);
    }
}

/// A value with several owners.
#[derive(Debug)]
pub(crate) struct Shared<T>(Arc<Owned<T>>);

#[derive(Debug)]
struct Owned<T> {
    value: T,
    #[cfg(phalanx_tsan)]
    edge: AtomicUsize,
}

impl<T> Shared<T> {
    pub(crate) fn new(value: T) -> Shared<T> {
        let owned = Arc::new(Owned {
            value,
            #[cfg(phalanx_tsan)]
            edge: AtomicUsize::new(0),
        });
        // The count itself, which owners touch last of all, cannot be ordered from here: so its
        // memory, but not the value, is never freed.
        #[cfg(phalanx_tsan)]
        std::mem::forget(Arc::downgrade(&owned));
        Shared(owned)
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Shared<T> {
        Shared(Arc::clone(&self.0))
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

#[cfg(phalanx_tsan)]
impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // Before the field, the owner's share, is given up.
        self.0.edge.fetch_add(1, AcqRel);
    }
}

#[cfg(phalanx_tsan)]
impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // After all owners have given up theirs, before the value goes.
        self.edge.fetch_add(1, AcqRel);
    }
}
