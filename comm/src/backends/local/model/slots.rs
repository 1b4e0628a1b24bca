//! Models of slots, their pool and the beds of sleepers alone: deep, since nothing else takes part.

use super::tensors::{HOURS, check_sum, explore, memberships, ones};
use crate::backends::local::park::Parker;
use crate::backends::local::pool::{Own, SlotPool, SlotRef};
use crate::backends::local::post::Post;
use crate::backends::local::slot::{Helped, Posted, State};
use crate::check;
use crate::membership::Membership;
use crate::op::ReduceOp;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// How often a thread loses its turn at other times than when it waits.
const PREEMPTIONS: usize = 3;

/// What ranks need to meet.
struct Place {
    pool: SlotPool,
    first: SlotRef,
    parkers: Box<[Parker]>,
    members: Vec<Membership>,
}

impl Place {
    fn new(ranks: usize) -> Place {
        let members = memberships(ranks);
        let pool = SlotPool::new(ranks);
        let first = pool.first(&members[0].world_ranks);
        Place {
            pool,
            first,
            parkers: (0..ranks).map(|_| Parker::default()).collect(),
            members,
        }
    }

    /// The slots of a rank, at the start.
    fn own(&self, me: usize) -> Own {
        let mut own = Own::default();
        if me == 0 {
            own.add_first(self.first);
        }
        own
    }

    fn wake_others(&self, me: usize) {
        let others = self.parkers.iter().enumerate();
        Parker::unpark(others.filter(|(r, _)| *r != me).map(|(_, p)| p));
    }

    /// A rank's call: what `LocalWork` does, but for all that may go wrong. Says whether others are still to come.
    fn issue(&self, me: usize, slot: SlotRef, chunks: usize) -> bool {
        let member = &self.members[me];
        let call = check::all_reduce(member, ones(member, chunks), ReduceOp::Sum).unwrap();
        let post = Post::new(call, member).unwrap();
        // SAFETY: each rank has a cell of its own, and posts once in each slot.
        match unsafe { slot.post(me, post, self.members.len()) } {
            Posted::Waits => return true,
            Posted::Begun => self.wake_others(me),
            bad => panic!("{bad:?}"),
        }
        false
    }

    /// A rank's wait, as there.
    fn wait(&self, me: usize, slot: SlotRef) {
        let mut chunks_left = true;
        loop {
            let seen = slot.state();
            match seen {
                State::Done => break,
                State::Ready if chunks_left => {
                    match slot.help(me, true) {
                        Helped::NothingLeft => chunks_left = false,
                        Helped::Ended => self.wake_others(me),
                        Helped::NotNow => {}
                        bad => panic!("{bad:?}"),
                    }
                    continue;
                }
                _ => self.parkers[me].park(HOURS, || slot.state() == seen),
            }
        }
        // SAFETY: `DONE` has been seen, and this rank leaves.
        let result = unsafe { slot.take(me) };
        check_sum(&self.members[me], &result);
    }
}

/// All ranks issue operations of so many chunks, then wait for them.
fn meet(name: &str, ranks: usize, operations: &'static [usize], preemptions: usize) {
    let world = move || Arc::new(Place::new(ranks));
    let rank = |place: &Arc<Place>, me: usize| {
        let mut own = place.own(me);
        let mut slots = vec![place.first];
        for (i, chunks) in operations.iter().enumerate() {
            if i > 0 {
                let members = &place.members[me].world_ranks;
                slots.push(slots[i - 1].next(members, &mut own, &place.pool));
            }
            place.issue(me, slots[i], *chunks);
        }
        slots.into_iter().for_each(|slot| place.wait(me, slot));
    };
    explore(name, ranks, preemptions, world, rank);
}

#[test]
fn two_ranks_in_two_slots() {
    meet("2 ranks, 2 slots", 2, &[2, 0], PREEMPTIONS);
}

#[test]
fn three_ranks_in_one_slot() {
    meet("3 ranks, 1 slot", 3, &[0], PREEMPTIONS);
}

/// The chunks are run by all who wait: with a preemption less, since there is so much more to try.
#[test]
fn three_ranks_share_the_chunks() {
    meet("3 ranks, 1 slot, 2 chunks", 3, &[2], PREEMPTIONS - 1);
}

/// The same with all preemptions, from where all have posted.
#[test]
fn three_ranks_end_what_has_begun() {
    let world = || {
        let place = Arc::new(Place::new(3));
        (0..3).for_each(|me| _ = place.issue(me, place.first, 2));
        place
    };
    let rank = |place: &Arc<Place>, me| place.wait(me, place.first);
    explore("3 ranks, 2 chunks begun", 3, PREEMPTIONS, world, rank);
}

/// Two ranks meet in operations of so many chunks, one after the other. Who `prepares` clears a slot for the next one when it
/// has come first. Says how often a rank posted in a slot again, over all orders.
fn take_again(
    name: &str,
    operations: &'static [usize],
    prepares: bool,
    preemptions: usize,
) -> usize {
    let again = Arc::new(AtomicUsize::new(0));
    let world = {
        let again = Arc::clone(&again);
        move || Arc::new((Place::new(2), Arc::clone(&again)))
    };
    let rank = move |world: &Arc<(Place, Arc<AtomicUsize>)>, me: usize| {
        let (place, again) = &**world;
        let members = &place.members[me].world_ranks;
        let mut own = place.own(me);
        let (mut slot, mut before) = (place.first, Vec::new());
        for chunks in operations {
            let next = slot.next(members, &mut own, &place.pool);
            again.fetch_add(usize::from(before.contains(&slot)), Relaxed);
            before.push(slot);
            if place.issue(me, slot, *chunks) && prepares {
                own.prepare();
            }
            place.wait(me, slot);
            slot = next;
        }
    };
    explore(name, 2, preemptions, world, rank);
    again.load(Relaxed)
}

/// A rank that looks for a slot clears the one that the others are leaving.
#[test]
fn slots_are_taken_again() {
    take_again("slots are taken again", &[2, 0], false, PREEMPTIONS - 1);
}

/// So does a rank that waits for the others.
#[test]
fn slots_are_made_ready() {
    take_again("slots are made ready", &[2, 0], true, PREEMPTIONS - 1);
}

/// With a preemption less, since a slot in which all have posted comes back with the fourth operation.
#[test]
fn all_post_again() {
    for (name, prepares) in [
        ("all post again", false),
        ("... in what was made ready", true),
    ] {
        let again = take_again(name, &[2, 0, 0, 0], prepares, PREEMPTIONS - 2);
        assert!(again > 0, "no slot was posted in twice");
    }
}
