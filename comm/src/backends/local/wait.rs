//! [`LocalWork`]: one rank's side of an operation, and how it waits.
#![allow(unsafe_code)]

use super::Endpoint;
#[cfg(phalanx_loom)]
use super::model::Patience;
use super::part::{Dropped, Part};
#[cfg(not(phalanx_loom))]
use super::patience::Patience;
use super::post::Post;
use super::slot::{Posted, State};
use super::stand::Standing;
use super::world::World;
use crate::error::{Error, Result};
use crate::meeting::late::Clock;
use crate::work::{Pending, Tensors};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A rank's side of an operation that it has issued.
pub(super) struct LocalWork {
    me: Arc<Endpoint>,
    part: Part,
    /// Whether the result has been taken.
    is_over: bool,
}

impl LocalWork {
    /// Posts this rank's call.
    pub(super) fn issue(me: &Arc<Endpoint>, post: Post) -> Result<LocalWork> {
        let is_message = post.op().is_message();
        let (slot, cell) = me.place(post.op());
        let part = Part::new(slot, cell);
        let (world, rank) = (me.world(), me.membership.world_rank());
        // SAFETY: `place` gives out each cell once: in a collective's slot to each rank, in a
        // message's to each end.
        let posted = unsafe { slot.post(cell, post, world.workers) };
        let work = LocalWork {
            me: Arc::clone(me),
            part,
            is_over: false,
        };
        match posted {
            Posted::Waits if is_message => {}
            Posted::Waits => me.prepare(),
            Posted::Begun => part.wake_others(world, rank),
            // Who is to blame is said when all have come: mostly by whom comes last, here.
            Posted::Suspect => {
                world.suspect(slot, &me.group, &me.membership.name);
                world.refuse()?;
            }
            Posted::Broken(message) => {
                return Err(world.fail(Error::RankPanicked { rank, message }));
            }
        }
        Ok(work)
    }
}

/// What a wait looks at before it sleeps.
impl Endpoint {
    /// Fails if somebody who is still to come to this operation has left.
    fn check_departures(&self, part: Part) -> Result<()> {
        let (world, slot) = (self.world(), part.slot);
        // What a rank posted before it left is visible to whoever has seen that it left. So ask
        // first who has left, then who has not come.
        let gone: Vec<usize> = slot.ranks().filter(|r| world.is_gone(*r)).collect();
        let Some(rank) = slot.missing().find(|rank| gone.contains(rank)) else {
            return Ok(());
        };
        Err(world.fail(Error::RankReturned {
            group: Arc::clone(&self.membership.name),
            sequence: slot.sequence(),
            rank,
            waiting: self.membership.world_rank(),
            call: slot.describe(part.cell),
        }))
    }

    /// Fails, and names who is waited for. Not where that is nobody, since just now the last one has come, or has
    /// ended its chunk; unless it is so `again`, a whole deadline later.
    fn check_late(&self, part: Part, again: bool) -> Result<()> {
        let slot = part.slot;
        let rank = self.membership.world_rank();
        let is_ready = slot.state() == State::Ready;
        let mut missing: Vec<usize> = match is_ready {
            true => slot.running().collect(),
            false => slot.missing().collect(),
        };
        let note = match missing.first() {
            None if !again => return Ok(()),
            None => {
                missing = slot.ranks().filter(|r| *r != rank).collect();
                "all have come, but the operation does not go on".into()
            }
            Some(r) if is_ready => {
                format!("all have come, and rank {r} has not ended its share of the data movement")
            }
            Some(r) => self.note(&slot, part.cell, *r),
        };
        let world = self.world();
        Err(world.fail(Error::DeadlineExceeded {
            group: Arc::clone(&self.membership.name),
            sequence: slot.sequence(),
            rank,
            call: slot.describe(part.cell),
            note,
            chain: world.chain(&missing),
            missing,
            deadline: self.membership.deadline,
        }))
    }
}

impl Pending for LocalWork {
    fn poll(&mut self) -> Result<bool> {
        let LocalWork { me, part, .. } = self;
        let (world, rank) = (me.world(), me.membership.world_rank());
        let end = world.enter(rank);
        part.help(world, rank, false);
        match part.slot.state() {
            State::Done => Ok(true),
            _ => end.and_then(|()| world.refuse()).map(|()| false),
        }
    }

    fn wait(mut self: Box<Self>) -> Result<Tensors> {
        let LocalWork { me, part, is_over } = &mut *self;
        let (world, rank) = (me.world(), me.membership.world_rank());
        // A result that is there is handed out, whatever has become of the world.
        let _ = world.enter(rank);
        let slot = part.slot;
        let mut patience = Patience::new(world.cores_to_spare);
        let mut sleep: Option<Sleep<'_>> = None;
        let mut last = State::Filling;
        loop {
            let events = world.events();
            let seen = slot.state();
            match seen {
                State::Done => {
                    drop(sleep); // before the result is taken: see `Standings`
                    *is_over = true;
                    // SAFETY: `DONE` has been seen; this work has its cell to itself, and ends here.
                    return Ok(unsafe { part.take() });
                }
                State::Ready if part.chunks_left => {
                    part.help(world, rank, true);
                    continue;
                }
                State::Ready | State::Filling | State::Suspect => {}
            }
            world.refuse()?;
            if seen != last {
                patience.renew();
                if let Some(sleep) = &mut sleep {
                    sleep.clock.restart(Instant::now());
                }
                last = seen;
            }
            if patience.pass() {
                continue;
            }
            let sleep = sleep.get_or_insert_with(|| Sleep::new(me, *part));
            sleep.look(me, *part, seen)?;
            // As long as it sleeps, the rank gets nothing else done.
            world.look_after_dropped(rank, Some(true));
            let pause = sleep.pause(world);
            let parker = world.parker(rank);
            parker.park(pause, || slot.state() == seen && world.events() == events);
        }
    }
}

/// What a waiting thread has once it sleeps.
struct Sleep<'a> {
    clock: Clock,
    /// When it looks for circles of waits.
    next_look: Instant,
    /// Whether the deadline has passed before, and nobody was to blame.
    is_late: bool,
    _standing: Standing<'a>,
}

/// So that nobody looks all the time, however short the deadline is.
const LEAST_PAUSE: Duration = Duration::from_millis(1);

impl<'a> Sleep<'a> {
    fn new(me: &'a Endpoint, part: Part) -> Sleep<'a> {
        let (world, rank) = (me.world(), me.membership.world_rank());
        let standings = &world.rank(rank).standings;
        let now = Instant::now();
        Sleep {
            clock: Clock::start(now, me.membership.deadline),
            next_look: now + world.grace,
            is_late: false,
            _standing: standings.stand(part.slot, part.cell, &me.membership.name),
        }
    }

    /// Looks whether the wait is in vain, before the thread sleeps.
    fn look(&mut self, me: &Endpoint, part: Part, seen: State) -> Result<()> {
        let now = Instant::now();
        self.clock.look(now);
        if seen == State::Filling {
            me.check_departures(part)?;
        }
        if self.clock.is_over() && seen != State::Suspect {
            me.check_late(part, self.is_late)?;
            self.is_late = true;
            self.clock.restart(now);
        }
        let world = me.world();
        if now >= self.next_look {
            self.next_look = now + world.grace;
            if let Some(deadlock) = world.circle(world.grace) {
                return Err(world.fail(deadlock));
            }
        }
        Ok(())
    }

    /// How long the thread may sleep.
    fn pause(&self, world: &World) -> Duration {
        let look = self.next_look.saturating_duration_since(Instant::now());
        let pause = self.clock.pause().min(look);
        let verdict = world.judge().unwrap_or(pause);
        pause.min(verdict).max(LEAST_PAUSE)
    }
}

impl Drop for LocalWork {
    /// Waits for nobody: others finish the operation, and what this rank would have got is freed later.
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let me = &self.me;
        let dropped = Dropped::new(self.part, me.group.clone(), Arc::clone(&me.membership.name));
        me.world().keep_dropped(me.membership.world_rank(), dropped);
    }
}
