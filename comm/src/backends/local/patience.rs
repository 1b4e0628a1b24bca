//! [`Patience`]: how a waiting thread passes the time before it sleeps.

use std::hint::spin_loop;
use std::thread::yield_now;
use std::time::{Duration, Instant};

/// A waiting thread spins, then yields, then is told to sleep.
pub(super) struct Patience {
    /// Spins that are left.
    spins: u32,
    may_spin: bool,
    /// When yielding began, since something last changed.
    since: Option<Instant>,
}

/// With a core for each rank, a spin takes some 50 ns, and yielding afterwards hardly more.
const SPINS: u32 = 1000;
/// How long a rank yields before it sleeps: much longer than it takes to wake a sleeper up (50 to
/// 100 µs in a virtual machine, 2026-11). With less, one rank that slept made the other one sleep,
/// and so on for good: 8 µs for 1 KiB in place of 2.
const YIELDING: Duration = Duration::from_millis(1);

impl Patience {
    /// Where ranks share cores, whoever spins keeps the one from running for whom it waits; so it
    /// yields at once, and to a rank that waits too this is the cheapest way to hand the core on (4
    /// ranks on 2 cores, 64 KiB: 7 µs; asleep after 5 yields: 26 µs, 2026-11). Behind a rank that
    /// computes, the first yield lasts longer than [`YIELDING`], and sleep follows.
    pub(super) fn new(cores_to_spare: bool) -> Patience {
        Patience {
            spins: if cores_to_spare { SPINS } else { 0 },
            may_spin: cores_to_spare,
            since: None,
        }
    }

    /// The end is near: worth spinning again.
    pub(super) fn renew(&mut self) {
        self.spins = if self.may_spin { SPINS } else { 0 };
        self.since = None;
    }

    /// Passes a moment; false when it is time to sleep.
    pub(super) fn pass(&mut self) -> bool {
        if self.spins > 0 {
            self.spins -= 1;
            spin_loop();
            return true;
        }
        let now = Instant::now();
        if now - *self.since.get_or_insert(now) > YIELDING {
            return false;
        }
        yield_now();
        true
    }
}
