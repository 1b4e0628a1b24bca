//! [`World`]: what all groups of one set of ranks share: who is gone, whether it has failed, and
//! where its ranks sleep.

use super::Group;
use super::mark::Mark;
use super::park::Parker;
use super::part::Dropped;
use super::pool::SlotRef;
use super::stand::{Looks, Standings};
use super::suspects::Suspects;
use crate::backends::activity::Activity;
use crate::backends::watcher;
use crate::error::{Error, Result};
use crate::meeting::late::grace;
use crate::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed},
};
use crate::sync::{Mutex, Shared};
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

pub(super) struct World {
    ranks: Box<[RankState]>,
    /// The first failure; the only one that anybody hears of.
    fault: Mutex<Option<Error>>,
    /// Whether a rank has heard of it.
    is_told: AtomicBool,
    /// [`FAILED`], [`SUSPECTED`], or neither: all that is looked at while nothing is wrong.
    alarm: AtomicU32,
    /// Where ranks disagree.
    suspects: Suspects,
    /// Counts departures, disagreements and the failure: a sleeper wakes up for each.
    events: AtomicU64,
    pub(super) looks: Looks,
    /// How long ranks that disagree are left alone until the others have come; and how often it is looked for circles.
    pub(super) grace: Duration,
    /// How many ranks can run at the same time.
    pub(super) workers: usize,
    /// Whether all of them can, with all their threads, so that a rank that waits keeps nobody from
    /// running.
    pub(super) cores_to_spare: bool,
}

/// There is a failure.
const FAILED: u32 = 1;
/// There are slots in which ranks disagree.
const SUSPECTED: u32 = 2;

#[derive(Default)]
pub(super) struct RankState {
    gone: AtomicBool,
    pub(super) mark: Mark,
    pub(super) standings: Standings,
    pub(super) activity: Activity,
    /// What the rank has issued, and dropped before it was done.
    dropped: Mutex<Vec<Dropped>>,
    parker: Parker,
}

impl World {
    pub(super) fn new(size: usize, threads_per_rank: usize, deadline: Duration) -> World {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        World {
            ranks: (0..size).map(|_| RankState::default()).collect(),
            fault: Mutex::default(),
            is_told: AtomicBool::new(false),
            alarm: AtomicU32::new(0),
            suspects: Suspects::default(),
            events: AtomicU64::new(0),
            looks: Looks::default(),
            grace: grace(deadline),
            workers: size.min(cores),
            cores_to_spare: size.saturating_mul(threads_per_rank) <= cores,
        }
    }

    pub(super) fn size(&self) -> usize {
        self.ranks.len()
    }

    pub(super) fn rank(&self, rank: usize) -> &RankState {
        &self.ranks[rank]
    }

    /// Every call of a rank begins with this: one load each of what the world and the rank have to say.
    ///
    /// # Errors
    /// The failure of the world, if it has failed.
    pub(super) fn enter(&self, rank: usize) -> Result<()> {
        if self.ranks[rank].mark.call() {
            self.look_after_dropped(rank, Some(false));
        }
        self.refuse()
    }

    /// Nothing, while nothing is wrong; gives the verdict where ranks disagree, and it is time.
    ///
    /// # Errors
    /// The failure of the world, if it has failed.
    pub(super) fn refuse(&self) -> Result<()> {
        if self.alarm.load(Acquire) == 0 {
            return Ok(());
        }
        self.judge();
        if !self.has_failed() {
            return Ok(());
        }
        self.note_told();
        self.fault.lock().clone().map_or(Ok(()), Err)
    }

    fn has_failed(&self) -> bool {
        self.alarm.load(Acquire) & FAILED != 0
    }

    /// The failure of the world, if it has failed, for one that is no rank; and whether a rank has heard of it.
    pub(super) fn fault(&self) -> Option<(Error, bool)> {
        self.judge();
        let is_told = self.is_told.load(Relaxed);
        let fault = self.has_failed().then(|| self.fault.lock().clone());
        fault.flatten().map(|fault| (fault, is_told))
    }

    /// Fails the world, unless it has failed before; returns the failure that counts, of which a rank hears so.
    pub(super) fn fail(&self, error: Error) -> Error {
        self.note_told();
        self.end(error)
    }

    fn note_told(&self) {
        if watcher::is_program() {
            self.is_told.store(true, Relaxed);
        }
    }

    fn end(&self, error: Error) -> Error {
        let fault = self.fault.lock().get_or_insert(error).clone();
        self.alarm.fetch_or(FAILED, AcqRel);
        self.announce();
        fault
    }

    /// Ranks disagree in this slot of a group of this name.
    pub(super) fn suspect(&self, slot: SlotRef, group: &Shared<Group>, name: &Arc<str>) {
        if self.suspects.add(slot, group, name) {
            self.alarm.fetch_or(SUSPECTED, AcqRel);
            self.announce();
        }
    }

    /// Gives the verdict where ranks disagree, and it is time; returns after how long it will be, else.
    pub(super) fn judge(&self) -> Option<Duration> {
        if self.alarm.load(Acquire) != SUSPECTED {
            return None;
        }
        match self.suspects.judge(self, self.grace) {
            Ok(due) => due,
            Err(verdict) => {
                self.end(verdict);
                None
            }
        }
    }

    /// Rank `rank` will issue nothing more. What it has issued stays good. If it has dropped works to which others are
    /// still to come, the world fails.
    pub(super) fn depart(&self, rank: usize) {
        if self.is_gone(rank) {
            return;
        }
        self.check_dropped(rank);
        if !self.ranks[rank].gone.swap(true, AcqRel) {
            self.announce();
        }
        // What another thread of the rank has dropped in between.
        self.check_dropped(rank);
        self.judge();
    }

    /// Keeps an operation whose work rank `rank` has dropped until it is done.
    pub(super) fn keep_dropped(&self, rank: usize, dropped: Dropped) {
        let state = &self.ranks[rank];
        let mut all = state.dropped.lock();
        all.push(dropped);
        state.mark.set_dropped(true);
        drop(all);
        match self.is_gone(rank) {
            true => self.check_dropped(rank),
            false => self.look_after_dropped(rank, None),
        }
    }

    /// Lets go of the dropped operations that are done, after running one chunk of each, or all chunks, or none.
    pub(super) fn look_after_dropped(&self, rank: usize, chunks: Option<bool>) {
        let state = &self.ranks[rank];
        let mut all = state.dropped.lock();
        all.retain_mut(|dropped| !dropped.finish(self, rank, chunks));
        state.mark.set_dropped(!all.is_empty());
    }

    /// Fails the world if a rank ends that has dropped works to which others are still to come. What all have come to
    /// is carried out by those who are there.
    #[cold]
    fn check_dropped(&self, rank: usize) {
        self.look_after_dropped(rank, Some(true));
        let all = self.ranks[rank].dropped.lock();
        let fault = all.iter().find_map(|dropped| dropped.fault(rank));
        drop(all);
        if let Some(fault) = fault {
            self.end(fault);
        }
    }

    pub(super) fn is_gone(&self, rank: usize) -> bool {
        self.ranks[rank].gone.load(Acquire)
    }

    pub(super) fn events(&self) -> u64 {
        self.events.load(Acquire)
    }

    pub(super) fn parker(&self, rank: usize) -> &Parker {
        &self.ranks[rank].parker
    }

    fn announce(&self) {
        self.events.fetch_add(1, AcqRel);
        Parker::unpark(self.ranks.iter().map(|r| &r.parker));
    }
}
