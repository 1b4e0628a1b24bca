//! [`Parker`]: where the waiting threads of one rank sleep.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

/// The bed of one rank's threads. Waking an empty one costs a load.
///
/// No wake-up is lost. The sleeper announces itself (1), then looks whether what it waits for has
/// come (2); the waker makes it come (3), then looks for sleepers (4). All four are `SeqCst`, so
/// they stand in one order: either (2) comes after (3), and the sleeper does not sleep; or (2)
/// before (3), then (1) before (4), and the waker sees the sleeper, takes the lock, which the
/// sleeper holds from before (2) until it sleeps, and wakes it.
#[derive(Debug, Default)]
#[repr(align(128))] // a cache line of its own, and the neighbour that is fetched with it
pub(super) struct Parker {
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    bell: Condvar,
}

impl Parker {
    /// Sleeps while `idle` says so, for `timeout` at most. `idle` reads with `SeqCst`.
    pub(super) fn park(&self, timeout: Duration, idle: impl Fn() -> bool) {
        self.sleepers.fetch_add(1, SeqCst); // (1)
        let start = Instant::now();
        // A panic while the lock was held cannot have broken anything: it guards no data.
        let mut guard = self.lock.lock().unwrap_or_else(|e| e.into_inner());
        while idle() // (2)
            && let Some(left) = timeout.checked_sub(start.elapsed())
            && !left.is_zero()
        {
            let woken = self.bell.wait_timeout(guard, left);
            guard = woken.unwrap_or_else(|e| e.into_inner()).0;
        }
        drop(guard);
        self.sleepers.fetch_sub(1, SeqCst);
    }

    /// Wakes all sleepers, after a `SeqCst` store (3) of what they wait for.
    pub(super) fn unpark(&self) {
        if self.sleepers.load(SeqCst) > 0 {
            // (4)
            drop(self.lock.lock().unwrap_or_else(|e| e.into_inner()));
            self.bell.notify_all();
        }
    }
}
