//! [`SlotPool`]: where a group's slots come from and go back to.
//!
//! A slot made by one thread and freed by another would meet the other thread in the system's
//! allocator, which cost more than the collective (5 µs against 2 µs for 1 KiB, 2026-11). So slots
//! are kept, and go back to the rank that asked for them; in large groups to all.
#![allow(unsafe_code)]

use super::slot::Slot;
use crate::sync::atomic::{
    AtomicPtr,
    Ordering::{Acquire, Relaxed, Release},
};
use crate::sync::{Guard, Mutex};
use std::ops::Deref;
use std::ptr::{self, NonNull};

/// The slots of a group for its collectives, or for its messages, and those of them that are free.
///
/// 1. *A slot lives as long as its pool*, and the pool as long as the group.
/// 2. *A free slot has one holder:* the stack that it lies on, or the [`Spares`] of one rank or of
///    all, or who has just taken it.
/// 3. *Stacks don't suffer from ABA:* any rank pushes, but who takes takes all.
pub(super) struct SlotPool {
    all: Mutex<Vec<SlotRef>>,
    /// How many ranks meet in one.
    cells: usize,
    /// The slots that have come back: for each rank, or for all.
    returned: Box<[Stack]>,
    /// The free slots of all ranks, where they share them.
    common: Option<Mutex<Spares>>,
}

/// Ranks share their slots where more than so many meet in one: a slot has a cell for each rank, so that each rank's
/// own slots would take memory by the square of their number (256 ranks: 30 MB). The lock that sharing takes, once in
/// each collective, costs nothing beside what so many ranks cost.
const MOST_CELLS: usize = 16;

/// Linked by [`Slot::link`].
#[derive(Default)]
#[repr(align(128))]
struct Stack(AtomicPtr<Slot>);

/// A slot of a group that the holder keeps alive.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct SlotRef(NonNull<Slot>);

// SAFETY: a shared reference in disguise, and `Slot` is `Sync`.
unsafe impl Send for SlotRef {}
// SAFETY: as above.
unsafe impl Sync for SlotRef {}

impl Deref for SlotRef {
    type Target = Slot;

    fn deref(&self) -> &Slot {
        // SAFETY: `SlotRef`s are made by the pool, and kept only in the pool's group and by those
        // who hold the group (guarantee 1). Nobody ever has a `&mut Slot` before the pool's end.
        unsafe { self.0.as_ref() }
    }
}

impl SlotRef {
    pub(super) fn as_ptr(self) -> *mut Slot {
        self.0.as_ptr()
    }

    /// # Safety
    /// The pointer came from [`as_ptr`](SlotRef::as_ptr), in this group.
    pub(super) unsafe fn from_ptr(slot: *mut Slot) -> Option<SlotRef> {
        NonNull::new(slot).map(SlotRef)
    }
}

/// The free slots that a rank has at hand.
#[derive(Default)]
pub(super) struct Spares(Vec<SlotRef>);

impl SlotPool {
    /// Slots of so many cells, for so many ranks.
    pub(super) fn new(ranks: usize, cells: usize) -> SlotPool {
        let is_common = cells > MOST_CELLS;
        let stacks = if is_common { 1 } else { ranks };
        SlotPool {
            all: Mutex::default(),
            cells,
            returned: (0..stacks).map(|_| Stack::default()).collect(),
            common: is_common.then(Mutex::default),
        }
    }

    /// The free slots of all ranks, where they share them: for one rank at a time, which uses them in place of its own.
    pub(super) fn common(&self) -> Option<Guard<'_, Spares>> {
        self.common.as_ref().map(Mutex::lock)
    }

    /// A free slot for the operation of this number between these ranks of the world. `spares` are
    /// this rank's, or the [`common`](SlotPool::common) ones.
    pub(super) fn take(
        &self,
        rank: usize,
        spares: &mut Spares,
        number: u64,
        ranks: &[usize],
    ) -> SlotRef {
        let home = if self.common.is_some() { 0 } else { rank };
        if spares.0.is_empty() {
            let mut top = self.returned[home].0.swap(ptr::null_mut(), Acquire);
            // SAFETY: slots on a stack are slots of this pool.
            while let Some(slot) = unsafe { SlotRef::from_ptr(top) } {
                spares.0.push(slot);
                top = slot.link().swap(ptr::null_mut(), Relaxed);
            }
        }
        let slot = spares.0.pop().unwrap_or_else(|| self.grow(home));
        // SAFETY: the slot is free, and this call its one holder (guarantee 2).
        unsafe { slot.dedicate(number, ranks) };
        slot
    }

    /// Keeps a slot for this rank's next [`take`](SlotPool::take): one that it has not used.
    pub(super) fn keep(slot: SlotRef, spares: &mut Spares) {
        spares.0.push(slot);
    }

    /// Gives a slot back that nobody uses any more, to the rank that took it.
    pub(super) fn give_back(&self, slot: SlotRef) {
        let stack = &self.returned[slot.home].0;
        let mut top = stack.load(Relaxed);
        loop {
            slot.link().store(top, Relaxed);
            // `Release` for who takes all: it comes after each who pushed, since all do so by read-modify-writes.
            match stack.compare_exchange_weak(top, slot.as_ptr(), Release, Relaxed) {
                Ok(_) => return,
                Err(now) => top = now,
            }
        }
    }

    /// How many slots there are, in use or not.
    #[cfg(test)]
    pub(super) fn made(&self) -> usize {
        self.all.lock().len()
    }

    #[cold]
    fn grow(&self, home: usize) -> SlotRef {
        let slot = Box::new(Slot::new(home, self.cells));
        let slot = SlotRef(NonNull::from(Box::leak(slot)));
        self.all.lock().push(slot);
        slot
    }
}

impl Drop for SlotPool {
    fn drop(&mut self) {
        for slot in self.all.lock().drain(..) {
            // SAFETY: leaked in `grow`, and listed once. The group is going away, so nobody is left
            // who holds a reference (guarantee 1).
            drop(unsafe { Box::from_raw(slot.as_ptr()) });
        }
    }
}
