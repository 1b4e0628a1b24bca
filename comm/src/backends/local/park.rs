//! [`Parker`]: where the waiting threads of one rank sleep.

use crate::sync::atomic::{
    AtomicUsize,
    Ordering::{Relaxed, SeqCst},
    fence,
};
use crate::sync::{Condvar, Lock};
use std::time::{Duration, Instant};

/// The bed of one rank's threads. Waking an empty one costs a load.
///
/// No wake-up is lost. The sleeper announces itself (1), then looks whether what it waits for has
/// come (2); the waker makes it come (3), then looks for sleepers (4). Between (1) and (2), and between
/// (3) and (4), stands a fence that is `SeqCst`, so one of the two fences comes first: either the waker's, and the
/// sleeper finds in (2) what came in (3), and does not sleep; or the sleeper's, and the waker sees
/// the sleeper in (4), takes the lock, which the sleeper holds from before (2) until it sleeps, and wakes it.
#[derive(Debug, Default)]
#[repr(align(128))] // a cache line of its own, and the neighbour that is fetched with it
pub(super) struct Parker {
    sleepers: AtomicUsize,
    lock: Lock<()>,
    bell: Condvar,
}

impl Parker {
    /// Sleeps while `idle` says so, for `timeout` at most.
    pub(super) fn park(&self, timeout: Duration, idle: impl Fn() -> bool) {
        self.sleepers.fetch_add(1, Relaxed); // (1)
        fence(SeqCst);
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
        self.sleepers.fetch_sub(1, Relaxed);
    }

    /// Wakes all sleepers of all these, after what they wait for was stored (3).
    pub(super) fn unpark<'a>(parkers: impl IntoIterator<Item = &'a Parker>) {
        fence(SeqCst);
        for parker in parkers {
            // (4)
            if parker.sleepers.load(Relaxed) > 0 {
                drop(parker.lock.lock().unwrap_or_else(|e| e.into_inner()));
                parker.bell.notify_all();
            }
        }
    }
}
