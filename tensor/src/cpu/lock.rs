//! [`Lock`]: the standard lock without poison, in a form that ThreadSanitizer can follow.

use std::sync::Mutex;

/// Excludes other threads from a value.
///
/// What a thread did before it left the lock is over when another one has it. A lock that is contended orders that inside the
/// standard library, where ThreadSanitizer does not see it.
#[derive(Default)]
pub(crate) struct Lock<T> {
    value: Mutex<T>,
    #[cfg(phalanx_tsan)]
    edge: std::sync::atomic::AtomicUsize,
}

impl<T> Lock<T> {
    /// Runs `f`, which leaves the value whole also where it panics.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        let mut value = self.value.lock().unwrap_or_else(|e| e.into_inner());
        #[cfg(phalanx_tsan)]
        self.edge.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
        let result = f(&mut value);
        #[cfg(phalanx_tsan)]
        self.edge.fetch_add(1, std::sync::atomic::Ordering::AcqRel);
        result
    }

    /// The value, when nobody else has the lock any more.
    #[cfg(target_arch = "x86_64")] // for the matrix unit
    pub(crate) fn into_inner(self) -> T {
        self.value.into_inner().unwrap_or_else(|e| e.into_inner())
    }
}
