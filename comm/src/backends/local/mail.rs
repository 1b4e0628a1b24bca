//! [`Mailbox`]: messages from one rank to another, until sender and receiver have found each other.

use super::slot::Slot;
use crate::sync::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;

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
    ends: VecDeque<(u32, End, Arc<Slot>)>,
    messages: u64,
}

impl Mailbox {
    /// The slot of the oldest message of this tag that lacks this end; else a new one between
    /// these ranks of the world, which lacks the other.
    pub(super) fn meet(&self, end: End, tag: u32, ranks: [usize; 2]) -> Arc<Slot> {
        let mut unmatched = self.unmatched.lock();
        let found = unmatched
            .ends
            .iter()
            .position(|(t, e, _)| *t == tag && *e != end);
        if let Some((_, _, slot)) = found.and_then(|i| unmatched.ends.remove(i)) {
            return slot;
        }
        let slot = Slot::new(unmatched.messages, ranks);
        unmatched.messages += 1;
        unmatched.ends.push_back((tag, end, Arc::clone(&slot)));
        slot
    }

    /// The tags of the messages that lack their other end.
    pub(super) fn waiting(&self, end: End) -> Vec<u32> {
        let unmatched = self.unmatched.lock();
        let waiting = unmatched.ends.iter().filter(|(_, e, _)| *e == end);
        waiting.map(|(tag, _, _)| *tag).collect()
    }
}
