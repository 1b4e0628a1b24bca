//! [`LocalWork`]: one rank's side of an operation, and how it waits.
#![allow(unsafe_code)]

use super::Endpoint;
use super::pool::SlotRef;
use super::post::Post;
use super::slot::{Helped, State};
use crate::error::{Error, Result};
use crate::work::{Pending, Tensors};
use std::hint::spin_loop;
use std::sync::Arc;
use std::thread::yield_now;
use std::time::{Duration, Instant};

/// A rank's side of an operation that it has issued.
pub(super) struct LocalWork {
    me: Arc<Endpoint>,
    slot: SlotRef,
    cell: usize,
    is_message: bool,
    /// Whether there may be chunks that nobody has claimed.
    chunks_left: bool,
}

impl LocalWork {
    /// Posts this rank's call.
    pub(super) fn issue(me: &Arc<Endpoint>, post: Post) -> Result<LocalWork> {
        let (slot, cell) = me.place(post.op());
        let is_message = post.op().is_message();
        // SAFETY: `place` gives out each cell once: in a collective's slot to each rank, in a
        // message's to each end.
        match unsafe { slot.post(cell, post, me.world().workers) } {
            Ok(has_begun) => {
                let work = LocalWork {
                    me: Arc::clone(me),
                    slot,
                    cell,
                    is_message,
                    chunks_left: true,
                };
                if has_begun {
                    work.wake_others();
                }
                Ok(work)
            }
            Err(d) => Err(me.world().fail(Error::Divergence {
                group: Arc::clone(&me.membership.name),
                sequence: slot.sequence(),
                rank: d.rank,
                call: d.call,
                other: d.other,
                other_call: d.other_call,
                difference: d.difference,
            })),
        }
    }

    /// Runs one chunk, or as many as there are; wakes the others where that ends the operation.
    fn help(&mut self, all: bool) {
        if self.chunks_left {
            match self.slot.help(all) {
                Helped::NotNow | Helped::Some => {}
                Helped::NothingLeft => self.chunks_left = false,
                Helped::Ended => {
                    self.chunks_left = false;
                    self.wake_others();
                }
            }
        }
    }

    /// Wakes who sleeps. All: of those who sleep, only some may wait for this operation, and nobody
    /// else may be there to run its chunks.
    fn wake_others(&self) {
        let me = self.me.membership.world_rank();
        let others = self.slot.ranks().filter(|rank| *rank != me);
        others.for_each(|rank| self.me.world().parker(rank).unpark());
    }

    /// Fails if somebody who is still to come has left.
    fn check_departures(&self) -> Result<()> {
        let world = self.me.world();
        // What a rank posted before it left is visible to whoever has seen that it left. So ask
        // first who has left, then who has not come.
        let gone: Vec<usize> = self.slot.ranks().filter(|r| world.is_gone(*r)).collect();
        let Some(rank) = self.slot.missing().find(|rank| gone.contains(rank)) else {
            return Ok(());
        };
        Err(world.fail(Error::RankReturned {
            group: Arc::clone(&self.me.membership.name),
            sequence: self.slot.sequence(),
            rank,
            waiting: self.me.membership.world_rank(),
            call: self.slot.describe(self.cell),
        }))
    }

    fn late(&self) -> Error {
        let missing: Vec<usize> = self.slot.missing().collect();
        let call = self.slot.describe(self.cell);
        let first = missing.first().copied();
        self.me.world().fail(Error::DeadlineExceeded {
            group: Arc::clone(&self.me.membership.name),
            sequence: self.slot.sequence(),
            rank: self.me.membership.world_rank(),
            call,
            note: first.map_or_else(String::new, |r| self.me.note(&self.slot, self.cell, r)),
            missing,
            deadline: self.me.membership.deadline,
            chain: Vec::new(),
        })
    }
}

impl Pending for LocalWork {
    fn poll(&mut self) -> Result<bool> {
        self.help(false);
        match (self.slot.state(), self.me.world().fault()) {
            (State::Done, _) => Ok(true),
            (_, Some(fault)) => Err(fault),
            _ => Ok(false),
        }
    }

    fn wait(mut self: Box<Self>) -> Result<Tensors> {
        let me = Arc::clone(&self.me);
        let world = me.world();
        let mut patience = Patience::new(world.cores_to_spare);
        let mut last = State::Filling;
        loop {
            let events = world.events();
            let seen = self.slot.state();
            match seen {
                State::Done => {
                    // SAFETY: this work has its cell to itself, and ends here.
                    let (tensors, is_free) = unsafe { self.slot.take(self.cell) };
                    if is_free {
                        self.me.give_back(self.slot, self.is_message);
                    }
                    return Ok(tensors);
                }
                State::Ready if self.chunks_left => {
                    self.help(true);
                    continue;
                }
                State::Ready | State::Filling => {}
            }
            if let Some(fault) = world.fault() {
                return Err(fault);
            }
            if seen != last {
                patience.renew();
                last = seen;
            }
            if patience.pass() {
                continue;
            }
            if seen == State::Filling {
                self.check_departures()?;
            }
            // Once all have come, somebody is running the last chunks, and nothing can fail.
            let left = match seen {
                State::Filling => patience.left(self.me.membership.deadline),
                _ => Some(self.me.membership.deadline),
            };
            let Some(left) = left else {
                return Err(self.late());
            };
            let parker = world.parker(self.me.membership.world_rank());
            parker.park(left, || {
                self.slot.state() == seen && world.events() == events
            });
        }
    }
}

/// How a waiting thread passes the time: it spins, then yields, then sleeps.
struct Patience {
    /// Spins that are left.
    spins: u32,
    may_spin: bool,
    /// When yielding began, for the first time and since something last changed.
    start: Option<Instant>,
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
    fn new(cores_to_spare: bool) -> Patience {
        Patience {
            spins: if cores_to_spare { SPINS } else { 0 },
            may_spin: cores_to_spare,
            start: None,
            since: None,
        }
    }

    /// The end is near: worth spinning again.
    fn renew(&mut self) {
        self.spins = if self.may_spin { SPINS } else { 0 };
        self.since = None;
    }

    /// Passes a moment; false when it is time to sleep.
    fn pass(&mut self) -> bool {
        if self.spins > 0 {
            self.spins -= 1;
            spin_loop();
            return true;
        }
        let now = Instant::now();
        self.start.get_or_insert(now);
        if now - *self.since.get_or_insert(now) > YIELDING {
            return false;
        }
        yield_now();
        true
    }

    /// What is left of the deadline, counted from when spinning ended; `None` when it has passed.
    fn left(&mut self, deadline: Duration) -> Option<Duration> {
        let start = *self.start.get_or_insert_with(Instant::now);
        deadline
            .checked_sub(start.elapsed())
            .filter(|d| !d.is_zero())
    }
}
