//! [`Mailbox`]: messages from one rank to another, until sender and receiver have found each other.

use super::pool::SlotRef;
use crate::sync::Mutex;
use std::collections::VecDeque;

/// Which end of a message; the number of its cell in the slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Send = 0,
    Recv = 1,
}

impl End {
    pub(super) fn name(self) -> &'static str {
        match self {
            End::Send => "send",
            End::Recv => "recv",
        }
    }
}

/// Messages from one rank of a group to another of which only one end has been issued. Messages of
/// one tag are matched in order.
///
/// The lock is held for a look at a short list, by two ranks at most, and never while data moves.
#[derive(Default)]
pub(super) struct Mailbox {
    unmatched: Mutex<Unmatched>,
}

#[derive(Default)]
struct Unmatched {
    ends: VecDeque<(u32, End, SlotRef)>,
    messages: u64,
}

impl Mailbox {
    /// The slot of the oldest message of this tag that lacks this end; else a free one for a message
    /// of this number between these ranks of the world.
    pub(super) fn meet(
        &self,
        end: End,
        tag: u32,
        ranks: [usize; 2],
        free: impl FnOnce(u64, &[usize]) -> SlotRef,
    ) -> SlotRef {
        let mut unmatched = self.unmatched.lock();
        let mut ends = unmatched.ends.iter();
        let found = ends.position(|(t, e, _)| *t == tag && *e != end);
        if let Some((_, _, slot)) = found.and_then(|i| unmatched.ends.remove(i)) {
            return slot;
        }
        let slot = free(unmatched.messages, &ranks);
        unmatched.messages += 1;
        unmatched.ends.push_back((tag, end, slot));
        slot
    }

    /// The tags of the messages that lack their other end.
    pub(super) fn waiting(&self, end: End) -> Vec<u32> {
        let unmatched = self.unmatched.lock();
        let waiting = unmatched.ends.iter().filter(|(_, e, _)| *e == end);
        waiting.map(|(tag, _, _)| *tag).collect()
    }
}
