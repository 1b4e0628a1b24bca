//! [`Part`]: a rank's part in an operation that it has issued, and [`Dropped`]: one whose work is gone.
#![allow(unsafe_code)]

use super::Group;
use super::park::Parker;
use super::pool::SlotRef;
use super::slot::{Helped, State};
use super::world::World;
use crate::error::Error;
use crate::sync::Shared;
use crate::work::Tensors;
use std::sync::Arc;

/// Where a rank has posted, and what is left for it to do there. Whoever has it keeps the group alive.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub(super) slot: SlotRef,
    pub(super) cell: usize,
    /// Whether there may be chunks that nobody has claimed.
    pub(super) chunks_left: bool,
}

impl Part {
    /// Of a rank that has been given this cell.
    pub(super) fn new(slot: SlotRef, cell: usize) -> Part {
        Part {
            slot,
            cell,
            chunks_left: true,
        }
    }

    /// Runs one chunk, or as many as there are; wakes the others where that ends the operation, and fails the world
    /// where a chunk panics. `me` is the rank in the world.
    pub(super) fn help(&mut self, world: &World, me: usize, all: bool) {
        if !self.chunks_left {
            return;
        }
        match self.slot.help(self.cell, all) {
            Helped::NotNow | Helped::Some => {}
            Helped::NothingLeft => self.chunks_left = false,
            Helped::Ended => {
                self.chunks_left = false;
                self.wake_others(world, me);
            }
            Helped::Broken(message) => {
                self.chunks_left = false;
                world.fail(Error::RankPanicked { rank: me, message });
            }
        }
    }

    /// Wakes who sleeps. All: of those who sleep, only some may wait for this operation, and nobody
    /// else may be there to run its chunks.
    pub(super) fn wake_others(&self, world: &World, me: usize) {
        let others = self.slot.ranks().filter(|rank| *rank != me);
        Parker::unpark(others.map(|rank| world.parker(rank)));
    }

    /// What the rank gets out of an operation that is done.
    ///
    /// # Safety
    /// `DONE` has been seen. Called once, and this part, of which there may be copies, is used no more.
    pub(super) unsafe fn take(self) -> Tensors {
        // SAFETY: by the caller.
        unsafe { self.slot.take(self.cell) }
    }
}

/// An operation whose work was dropped before it was done. The others carry it out as any other; what the rank would
/// have got is freed at its next call.
pub(super) struct Dropped {
    part: Part,
    /// Keeps the slot.
    _group: Shared<Group>,
    name: Arc<str>,
}

impl Dropped {
    pub(super) fn new(part: Part, group: Shared<Group>, name: Arc<str>) -> Dropped {
        Dropped {
            part,
            _group: group,
            name,
        }
    }

    /// Runs chunks, if `chunks` says so: one, or all. Returns whether the operation is done: then nothing is left of it.
    pub(super) fn finish(&mut self, world: &World, me: usize, chunks: Option<bool>) -> bool {
        if let Some(all) = chunks {
            self.part.help(world, me, all);
        }
        let is_done = self.part.slot.state() == State::Done;
        if is_done {
            // SAFETY: `DONE` has been seen; the caller drops this at once, and it was the only one.
            drop(unsafe { self.part.take() });
        }
        is_done
    }

    /// What went wrong if rank `rank` of the world ends now: some have not come to the operation.
    pub(super) fn fault(&self, rank: usize) -> Option<Error> {
        let slot = self.part.slot;
        (slot.state() == State::Filling).then(|| Error::Abandoned {
            group: Arc::clone(&self.name),
            sequence: slot.sequence(),
            rank,
            call: slot.describe(self.part.cell),
        })
    }
}
