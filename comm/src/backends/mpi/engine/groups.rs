//! [`Groups`]: what is counted in each group that this process has a handle on. It goes with the last handle, so groups
//! that are made and dropped leave nothing behind.

use rustc_hash::FxHashMap;
use std::ops::AddAssign;

/// What is counted in a group.
struct Group {
    epoch: u64,
    /// The handles that this process has on it.
    handles: usize,
    /// How many collectives each of its ranks has issued.
    issued: Box<[u64]>,
    /// How many messages this rank has sent to each other one, or received.
    sent: FxHashMap<usize, u64>,
    received: FxHashMap<usize, u64>,
}

/// All groups, by their numbers: see [`group_id`](super::super::header::group_id).
#[derive(Default)]
pub(super) struct Groups(FxHashMap<u64, Group>);

/// What a call is counted as.
pub(super) enum Counted {
    /// A collective of this rank of the group.
    Collective(usize),
    /// A message to that rank of the group, or from it.
    To(usize),
    From(usize),
}

impl Groups {
    /// A handle on a group of `size` ranks.
    pub(super) fn enter(&mut self, group: u64, epoch: u64, size: usize) {
        let group = self.0.entry(group).or_insert_with(|| Group {
            epoch,
            handles: 0,
            issued: vec![0; size].into(),
            sent: FxHashMap::default(),
            received: FxHashMap::default(),
        });
        group.handles += 1;
    }

    /// A handle is dropped.
    pub(super) fn leave(&mut self, group: u64) {
        if let Some(known) = self.0.get_mut(&group) {
            known.handles -= 1;
            if known.handles == 0 {
                self.0.remove(&group);
            }
        }
    }

    /// The number of a call that this rank is about to issue; the next one gets the next.
    pub(super) fn next(&mut self, group: u64, call: &Counted) -> u64 {
        // A call is made by a handle, which has entered the group.
        let Some(group) = self.0.get_mut(&group) else {
            return 0;
        };
        let count = match *call {
            Counted::Collective(me) => &mut group.issued[me],
            Counted::To(rank) => group.sent.entry(rank).or_default(),
            Counted::From(rank) => group.received.entry(rank).or_default(),
        };
        let number = *count;
        count.add_assign(1);
        number
    }

    /// A rank of the group has issued its collective of this number.
    pub(super) fn note(&mut self, group: u64, rank: usize, number: u64) {
        let issued = self.0.get_mut(&group).and_then(|g| g.issued.get_mut(rank));
        if let Some(issued) = issued {
            *issued = (*issued).max(number + 1);
        }
    }

    /// How many collectives a rank of the group has issued, as far as this process has heard.
    pub(super) fn issued(&self, group: u64, rank: usize) -> u64 {
        let issued = self.0.get(&group).and_then(|g| g.issued.get(rank));
        issued.copied().unwrap_or(0)
    }

    /// Whether there is a handle on a group of this epoch.
    pub(super) fn has(&self, epoch: u64) -> bool {
        self.0.values().any(|group| group.epoch == epoch)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_goes_with_its_last_handle() {
        let mut groups = Groups::default();
        groups.enter(7, 2, 3);
        groups.enter(7, 2, 3);
        assert_eq!(groups.next(7, &Counted::Collective(1)), 0);
        assert_eq!(groups.next(7, &Counted::Collective(1)), 1);
        assert_eq!(groups.next(7, &Counted::To(0)), 0);
        assert_eq!(groups.next(7, &Counted::From(0)), 0);
        groups.note(7, 2, 4);
        groups.note(8, 2, 4); // of a group that this rank has not made yet
        assert_eq!((groups.issued(7, 1), groups.issued(7, 2)), (2, 5));
        groups.leave(7);
        assert!(groups.has(2) && !groups.has(1));
        assert_eq!(groups.next(7, &Counted::Collective(1)), 2);
        groups.leave(7);
        assert_eq!((groups.len(), groups.has(2)), (0, false));
    }
}
