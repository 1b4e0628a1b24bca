//! [`Mailboxes`]: messages from one rank to others, until sender and receiver have found each other.

use super::pool::SlotRef;
use crate::sync::Mutex;
use std::collections::{HashMap, VecDeque};

/// Which end of a message; the number of its cell in the slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Send = 0,
    Recv = 1,
}

/// Messages from one rank of a group of which only one end has been issued, by receiver. Between two ranks messages are
/// matched in the order of issue.
///
/// The lock is held for a look at lists, and while free slots are made where there are none, but never while data moves. A
/// receiver has an entry from its first message on: what nobody writes to takes no memory.
#[derive(Default)]
pub(super) struct Mailboxes {
    unmatched: Mutex<HashMap<usize, Unmatched>>,
}

#[derive(Default)]
struct Unmatched {
    /// All of them lack the same end.
    slots: VecDeque<SlotRef>,
    end: Option<End>,
    messages: u64,
}

impl Mailboxes {
    /// The slot of the oldest message to `to` that lacks this end; else a free one for a message of this number between
    /// these ranks of the world.
    pub(super) fn meet(
        &self,
        end: End,
        to: usize,
        ranks: [usize; 2],
        free: impl FnOnce(u64, &[usize]) -> SlotRef,
    ) -> SlotRef {
        let mut unmatched = self.unmatched.lock();
        let unmatched = unmatched.entry(to).or_default();
        if unmatched.end != Some(end)
            && let Some(slot) = unmatched.slots.pop_front()
        {
            return slot;
        }
        let slot = free(unmatched.messages, &ranks);
        unmatched.messages += 1;
        unmatched.end = Some(end);
        unmatched.slots.push_back(slot);
        slot
    }
}
