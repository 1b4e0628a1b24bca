//! [`LocalWork`]: one rank's side of an operation, and how it waits.
#![allow(unsafe_code)]

use super::Endpoint;
use super::pool::SlotRef;
use super::slot::{Post, State};
use crate::error::{Error, Result};
use crate::work::Pending;
use phalanx_tensor::Tensor;
use std::hint::spin_loop;
use std::sync::Arc;
use std::thread::yield_now;
use std::time::{Duration, Instant};

/// A rank's side of an operation that it has issued.
pub(super) struct LocalWork {
    me: Arc<Endpoint>,
    slot: SlotRef,
    cell: usize,
}

impl LocalWork {
    /// Posts this rank's call.
    pub(super) fn issue(me: &Arc<Endpoint>, post: Post) -> Result<LocalWork> {
        let (slot, cell) = me.place(post.op());
        // SAFETY: `place` gives out each cell once: in a collective's slot to each rank, in a
        // message's to each end.
        match unsafe { slot.post(cell, post) } {
            Ok(has_begun) => {
                let work = LocalWork {
                    me: Arc::clone(me),
                    slot,
                    cell,
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
        })
    }
}

impl Pending for LocalWork {
    fn poll(&mut self) -> bool {
        if self.slot.help(1) {
            self.wake_others();
        }
        self.slot.state() == State::Done || self.me.world().has_failed()
    }

    fn wait(self: Box<Self>) -> Result<Option<Tensor>> {
        let world = self.me.world();
        let mut patience = Patience::new(world.cores_to_spare);
        let mut last = State::Filling;
        loop {
            let events = world.events();
            let seen = self.slot.state();
            match seen {
                State::Done => {
                    // SAFETY: this work has its cell to itself, and ends here.
                    let (tensor, is_free) = unsafe { self.slot.take(self.cell) };
                    if is_free {
                        self.me.group.slots.give_back(self.slot);
                    }
                    return Ok(tensor);
                }
                State::Ready if self.slot.help(usize::MAX) => {
                    self.wake_others();
                    continue;
                }
                State::Ready | State::Filling => {}
            }
            if let Some(fault) = world.fault() {
                return Err(fault);
            }
            if seen != last {
                patience.rounds = 0; // the end is near: worth spinning again
                last = seen;
            }
            if patience.spin() {
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
    rounds: u32,
    spins: u32,
    yields: u32,
    start: Option<Instant>,
}

impl Patience {
    /// A spin is some 50 ns, a yield with nobody to yield to some 500 ns. Where each rank has a
    /// core, they last for a millisecond or two: much longer than it takes to wake a sleeper up
    /// (50 to 100 µs in a virtual machine, 2026-11). With less, one rank that slept made the other
    /// one sleep, and so on for good: 8 µs for 1 KiB in place of 2.
    fn new(cores_to_spare: bool) -> Patience {
        let (spins, yields) = if cores_to_spare {
            (1000, 3000)
        } else {
            (20, 5)
        };
        Patience {
            rounds: 0,
            spins,
            yields,
            start: None,
        }
    }

    /// Passes a moment; false when it is time to sleep.
    fn spin(&mut self) -> bool {
        if self.rounds >= self.spins + self.yields {
            return false;
        }
        if self.rounds < self.spins {
            spin_loop();
        } else {
            self.start.get_or_insert_with(Instant::now);
            yield_now();
        }
        self.rounds += 1;
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
