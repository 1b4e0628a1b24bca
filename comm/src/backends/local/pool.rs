//! [`SlotPool`]: where a group's slots come from.
//!
//! A slot made by one thread and freed by another would meet the other thread in the system's
//! allocator, which cost more than the collective (5 µs against 2 µs for 1 KiB, 2026-11). So slots
//! are kept, and used again by the rank that asked for them; in large groups by all. Nobody gives one back: who takes
//! one looks for one that all have left. Only who comes first to an operation takes one.
#![allow(unsafe_code)]

use super::slot::Slot;
use crate::sync::{Guard, Mutex};
use std::collections::VecDeque;
use std::ops::Deref;
use std::ptr::NonNull;

/// The slots of a group for its collectives, or for its messages.
///
/// 1. *A slot lives as long as its pool*, and the pool as long as the group.
/// 2. *A slot is taken by one holder:* it lies in the [`Own`] slots of one rank or of all, and whoever has these for
///    itself takes it from there when all have left it.
pub(super) struct SlotPool {
    all: Mutex<Vec<SlotRef>>,
    /// How many ranks meet in one.
    cells: usize,
    /// The slots of all ranks, where they share them.
    common: Option<Mutex<Own>>,
}

/// Ranks share their slots where more than so many meet in one: a slot has a cell for each rank, so that each rank's
/// own slots would take memory by the square of their number (256 ranks: 30 MB). The lock that sharing takes, once in
/// each collective, costs nothing beside what so many ranks cost.
const MOST_CELLS: usize = 16;

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

/// The slots that a rank uses again and again: roughly in the order in which it took them, so that those which the others
/// leave first come first.
#[derive(Default)]
pub(super) struct Own {
    all: VecDeque<SlotRef>,
    /// One that is none of these: cleared, for the next operation.
    clear: Option<SlotRef>,
    /// How many slots were looked at that somebody was still to leave, beyond a few for each that was taken.
    in_vain: usize,
}

/// So many looks in vain are nothing to a slot that is taken.
const FEW_LOOKS: usize = 2;

impl Own {
    /// Clears the next slot, if it is free. It looks at one alone.
    pub(super) fn prepare(&mut self) {
        match self.all.front() {
            Some(slot) if self.clear.is_none() && slot.is_free() => self.clear = self.take_at(0),
            Some(_) if self.clear.is_none() => self.all.rotate_left(1),
            _ => {}
        }
    }

    /// One that all have left, cleared. `None` where there is none, and where so many are held for long that it is better
    /// to have more than to look at these again and again.
    fn free(&mut self) -> Option<SlotRef> {
        let at = self.all.iter().position(|slot| slot.is_free());
        self.in_vain += at.unwrap_or(self.all.len());
        self.in_vain = self.in_vain.saturating_sub(FEW_LOOKS);
        if self.in_vain > self.all.len() {
            self.in_vain = 0;
            return None;
        }
        self.take_at(at?)
    }

    /// The slot of this place, which is free, cleared. Those in front of it go behind the others.
    fn take_at(&mut self, place: usize) -> Option<SlotRef> {
        self.all.rotate_left(place);
        let slot = self.all.pop_front()?;
        // SAFETY: the slot is free, and this call its one holder (guarantee 2).
        unsafe { slot.clear() };
        Some(slot)
    }

    /// Puts back the slot that was taken last: nobody has used it.
    pub(super) fn put_back(&mut self, slot: SlotRef) {
        debug_assert!(self.all.back() == Some(&slot) && self.clear.is_none());
        self.clear = self.all.pop_back();
    }

    /// The group's first slot counts as taken by these. Called for one rank of the group, once: see guarantee 2.
    pub(super) fn add_first(&mut self, first: SlotRef) {
        self.all.push_back(first);
    }
}

impl SlotPool {
    /// Slots of so many cells.
    pub(super) fn new(cells: usize) -> SlotPool {
        SlotPool {
            all: Mutex::default(),
            cells,
            common: (cells > MOST_CELLS).then(Mutex::default),
        }
    }

    /// Whether all ranks use the same slots.
    pub(super) fn is_common(&self) -> bool {
        self.common.is_some()
    }

    /// The slots of all ranks, where they share them: for one rank at a time, which uses them in place of its own.
    pub(super) fn common(&self) -> Option<Guard<'_, Own>> {
        self.common.as_ref().map(Mutex::lock)
    }

    /// A slot for the first operation between these ranks of the world: see [`Own::add_first`].
    pub(super) fn first(&self, ranks: &[usize]) -> SlotRef {
        let slot = self.make();
        slot.dedicate(0, ranks);
        slot
    }

    /// A free slot for the operation of this number between these ranks of the world. `own` are
    /// this rank's, or the [`common`](SlotPool::common) ones.
    pub(super) fn take(&self, own: &mut Own, number: u64, ranks: &[usize]) -> SlotRef {
        let slot = own.clear.take().or_else(|| own.free());
        let slot = slot.unwrap_or_else(|| self.grow(own));
        slot.dedicate(number, ranks);
        own.all.push_back(slot);
        slot
    }

    /// How many slots there are, in use or not.
    #[cfg(test)]
    pub(super) fn made(&self) -> usize {
        self.all.lock().len()
    }

    /// Makes half as many slots as there are, and one, which it gives.
    #[cold]
    fn grow(&self, own: &mut Own) -> SlotRef {
        for _ in 0..own.all.len() / 2 {
            own.all.push_front(self.make());
        }
        self.make()
    }

    /// A clear one.
    fn make(&self) -> SlotRef {
        let slot = Box::new(Slot::new(self.cells));
        let slot = SlotRef(NonNull::from(Box::leak(slot)));
        self.all.lock().push(slot);
        slot
    }
}

impl Drop for SlotPool {
    fn drop(&mut self) {
        for slot in self.all.lock().drain(..) {
            // SAFETY: leaked in `make`, and listed once. The group is going away, so nobody is left
            // who holds a reference (guarantee 1).
            drop(unsafe { Box::from_raw(slot.as_ptr()) });
        }
    }
}
