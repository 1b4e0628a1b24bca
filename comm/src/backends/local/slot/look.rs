//! What is seen of a [`Slot`] by those who do not write to it: who has come, with what, and who differs.
#![allow(unsafe_code)]

use super::{Slot, State};
use crate::meeting::verdict::{Heard, verdict};
use crate::op::{Difference, Op, Signature};
use crate::sync::atomic::Ordering::{Acquire, Relaxed};

/// Two ranks that disagree, by their numbers in the world.
pub(in super::super) struct Disagreement {
    pub(in super::super) difference: Difference,
    pub(in super::super) rank: usize,
    pub(in super::super) call: String,
    pub(in super::super) other: usize,
    pub(in super::super) other_call: String,
}

impl Slot {
    /// The call in a cell that is known to be posted.
    ///
    /// # Safety
    /// `posted` has been seen, or the cell is this thread's own; and the rank of the cell empties it only later
    /// (guarantee 3).
    pub(super) unsafe fn signature(&self, cell: usize) -> Option<&Signature> {
        // SAFETY: by the caller.
        unsafe { self.cells[cell].post.with(|post| (*post).as_ref()) }.map(|p| &p.signature)
    }

    /// Whether the calls in two cells that are known to be posted differ. Asked before this thread's arrival, or by
    /// the last to come before it sets `READY` or `DONE`.
    pub(super) fn differ(&self, a: usize, b: usize) -> bool {
        // SAFETY: as the caller says (guarantees 2 and 3).
        let (x, y) = unsafe { (self.signature(a), self.signature(b)) };
        match (x, y) {
            (Some(x), Some(y)) => Signature::difference((a, x), (b, y)).is_some(),
            _ => false,
        }
    }

    /// Who differs, among those who have come to a slot in which ranks disagree; `None` in any other slot.
    pub(in super::super) fn verdict(&self) -> Option<Disagreement> {
        if self.state() != State::Suspect {
            return None;
        }
        let mut heard: Vec<Heard<'_>> = Vec::new();
        for (index, rank) in self
            .ranks()
            .enumerate()
            .filter(|(c, _)| self.has_posted(*c))
        {
            // SAFETY: `posted` has been seen, and nobody empties a cell of a slot in this state (guarantee 9).
            if let Some(signature) = unsafe { self.signature(index) } {
                heard.push(Heard {
                    rank,
                    index,
                    signature,
                });
            }
        }
        heard.sort_by_key(|h| h.rank);
        let found = verdict(&heard)?;
        let call = |at: usize| heard[at].signature.to_string();
        Some(Disagreement {
            difference: found.difference,
            rank: heard[found.odd].rank,
            call: call(found.odd),
            other: heard[found.other].rank,
            other_call: call(found.other),
        })
    }

    /// The operation of a rank. The rank itself asks, before it takes its result.
    pub(in super::super) fn op(&self, cell: usize) -> Option<&Op> {
        // SAFETY: a cell is written and emptied by its own rank, which is here.
        unsafe { self.signature(cell) }.map(|s| &s.op)
    }

    /// The call of a rank, in words. The rank itself asks, before it takes its result; or who holds the lock under
    /// which that rank says where it stands (guarantee 10).
    pub(in super::super) fn describe(&self, cell: usize) -> String {
        // SAFETY: the rank has posted, and empties its cell only after the caller has looked.
        unsafe { self.signature(cell) }.map_or_else(String::new, Signature::to_string)
    }

    pub(super) fn has_posted(&self, cell: usize) -> bool {
        self.cells[cell].posted.load(Acquire) == self.entrance.uses.load(Relaxed)
    }

    /// The ranks of the world that have not come.
    pub(in super::super) fn missing(&self) -> impl Iterator<Item = usize> {
        let ranks = self.ranks().enumerate();
        ranks.filter_map(|(cell, rank)| (!self.has_posted(cell)).then_some(rank))
    }

    /// The ranks of the world that carry out chunks at this moment.
    pub(in super::super) fn running(&self) -> impl Iterator<Item = usize> {
        let ranks = self.ranks().enumerate();
        ranks.filter_map(|(cell, rank)| self.cells[cell].runs.load(Relaxed).then_some(rank))
    }

    /// All ranks that take part, by their numbers in the world.
    pub(in super::super) fn ranks(&self) -> impl Iterator<Item = usize> {
        let ranks = &self.ranks[..self.parties.load(Relaxed)];
        ranks.iter().map(|rank| rank.load(Relaxed))
    }
}
