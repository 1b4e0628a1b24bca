//! [`World`]: what all groups of one set of ranks share: who is gone, whether it has failed, and
//! where its ranks sleep.

use super::park::Parker;
use crate::error::Error;
use crate::sync::Mutex;
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

#[derive(Debug)]
pub(super) struct World {
    ranks: Box<[RankState]>,
    /// The first failure; the only one that anybody hears of.
    fault: Mutex<Option<Error>>,
    /// Whether there is one: all that is looked at while there is none.
    failed: AtomicBool,
    /// Counts departures and the failure: a sleeper wakes up for either.
    events: AtomicU64,
    /// How many ranks can run at the same time.
    pub(super) workers: usize,
    /// Whether all of them can, with all their threads, so that a rank that waits keeps nobody from
    /// running.
    pub(super) cores_to_spare: bool,
}

#[derive(Debug, Default)]
struct RankState {
    gone: AtomicBool,
    parker: Parker,
}

impl World {
    pub(super) fn new(size: usize, threads_per_rank: usize) -> World {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        World {
            ranks: (0..size).map(|_| RankState::default()).collect(),
            fault: Mutex::default(),
            failed: AtomicBool::new(false),
            events: AtomicU64::new(0),
            workers: size.min(cores),
            cores_to_spare: size.saturating_mul(threads_per_rank) <= cores,
        }
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(SeqCst)
    }

    /// The failure of the world, if it has failed.
    pub(super) fn fault(&self) -> Option<Error> {
        if self.has_failed() {
            self.fault.lock().clone()
        } else {
            None
        }
    }

    /// Fails the world, unless it has failed before; returns the failure that counts.
    pub(super) fn fail(&self, error: Error) -> Error {
        let fault = self.fault.lock().get_or_insert(error).clone();
        self.failed.store(true, SeqCst);
        self.announce();
        fault
    }

    /// Rank `rank` will issue nothing more. What it has issued stays good.
    pub(super) fn depart(&self, rank: usize) {
        if !self.ranks[rank].gone.swap(true, SeqCst) {
            self.announce();
        }
    }

    pub(super) fn is_gone(&self, rank: usize) -> bool {
        self.ranks[rank].gone.load(SeqCst)
    }

    pub(super) fn events(&self) -> u64 {
        self.events.load(SeqCst)
    }

    pub(super) fn parker(&self, rank: usize) -> &Parker {
        &self.ranks[rank].parker
    }

    fn announce(&self) {
        self.events.fetch_add(1, SeqCst);
        self.ranks.iter().for_each(|r| r.parker.unpark());
    }
}
