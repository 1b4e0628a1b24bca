//! [`Slots`]: the operations that this process has heard of and that are not done, under the keys at which their calls
//! meet; and where this rank stands among them.

use super::{Exchange, Header, Key, Op, Stage, Standing};
use crate::backends::activity::Activity;
use crate::error::Stands;
use rustc_hash::FxHashMap;
use std::sync::Arc;
use std::thread::{self, ThreadId};
use std::time::Instant;

/// One operation, as far as this process has heard of it.
pub(super) struct Slot {
    /// The epoch of its group.
    pub(super) epoch: u64,
    pub(super) mine: Option<Mine>,
    pub(super) arrived: Vec<Arrival>,
    /// Since when it is known that ranks disagree.
    pub(super) suspect: Option<Instant>,
}

/// This rank's call.
pub(super) struct Mine {
    pub(super) exchange: Exchange,
    pub(super) group: Arc<str>,
    pub(super) number: u64,
    /// Who takes part, by numbers in the world, and which of them this rank is.
    pub(super) ranks: Arc<[usize]>,
    pub(super) me: usize,
    /// Whether nobody will ask for its result.
    pub(super) is_abandoned: bool,
}

impl Mine {
    /// The rank within the group, as calls are compared: ends of a message are not compared by rank.
    pub(super) fn index(&self) -> usize {
        match self.exchange.signature.op {
            Op::Send { .. } | Op::Recv { .. } => 0,
            _ => self.me,
        }
    }
}

/// Another rank's call.
pub(super) struct Arrival {
    pub(super) rank: usize,
    pub(super) header: Header,
    pub(super) parcel: Box<[u8]>,
    /// Where in the parcel the inline data starts.
    pub(super) data: usize,
}

#[derive(Default)]
pub(super) struct Slots {
    map: FxHashMap<Key, Slot>,
    /// What threads of this rank wait for, in the order in which they began.
    waits: Vec<Key>,
    /// The thread that has made all calls so far, `wait` and `poll` included, or none where several have.
    caller: Caller,
    /// What this rank does between its calls: of the current epoch, whose handles write it.
    activity: Arc<Activity>,
}

/// Who makes the calls of this rank.
#[derive(Default, Clone, Copy, PartialEq)]
enum Caller {
    #[default]
    Nobody,
    One(ThreadId),
    Several,
}

impl Slots {
    pub(super) fn get(&self, key: Key) -> Option<&Slot> {
        self.map.get(&key)
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut Slot> {
        self.map.get_mut(&key)
    }

    pub(super) fn mine(&self, key: Key) -> Option<&Mine> {
        self.map.get(&key)?.mine.as_ref()
    }

    pub(super) fn mine_mut(&mut self, key: Key) -> Option<&mut Mine> {
        self.map.get_mut(&key)?.mine.as_mut()
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Slot> {
        self.map.remove(&key)
    }

    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    /// The slot of this operation, which belongs to a group of this epoch.
    pub(super) fn entry(&mut self, key: Key, epoch: u64) -> &mut Slot {
        self.map.entry(key).or_insert_with(|| Slot {
            epoch,
            mine: None,
            arrived: Vec::new(),
            suspect: None,
        })
    }

    /// Keeps those of which it `is_used`.
    pub(super) fn retain(&mut self, is_used: impl Fn(&Slot) -> bool) {
        self.map.retain(|_, slot| is_used(slot));
    }

    /// This thread makes a call, waits or polls.
    pub(super) fn note_caller(&mut self) {
        let this = Caller::One(thread::current().id());
        self.caller = match self.caller {
            Caller::Nobody => this,
            known if known == this => known,
            _ => Caller::Several,
        };
    }

    /// Another program begins: what threads its predecessor had does not matter, nor what handles of that one say.
    pub(super) fn begin(&mut self) {
        self.caller = Caller::Nobody;
        self.activity = Arc::default();
    }

    /// Where the handles of the current epoch say what this rank does.
    pub(super) fn activity(&self) -> Arc<Activity> {
        Arc::clone(&self.activity)
    }

    /// How far an operation of this rank has come.
    pub(super) fn stage(&self, key: Key) -> Stage {
        match self.mine(key) {
            Some(mine) if mine.exchange.is_done() => Stage::Done,
            Some(mine) if mine.exchange.has_begun => Stage::Moving,
            _ => Stage::Filling,
        }
    }

    /// Lets go of an operation that is done, where nobody will ask for its result.
    pub(super) fn drop_if_abandoned(&mut self, key: Key) {
        if self.mine(key).is_some_and(|mine| mine.is_abandoned) {
            self.remove(key);
        }
    }

    /// An operation of this epoch that nobody will ask for, and that is not done.
    pub(super) fn abandoned(&self, epoch: u64) -> Option<Key> {
        let mut all = self.map.iter().filter(|(_, slot)| slot.epoch == epoch);
        let is_abandoned = |slot: &Slot| slot.mine.as_ref().is_some_and(|mine| mine.is_abandoned);
        all.find(|(_, slot)| is_abandoned(slot))
            .map(|(&key, _)| key)
    }

    /// The calls of this rank that are under way; not those that only others have called so far, or of which nothing is
    /// left to do but to take the result.
    pub(super) fn under_way(&self) -> impl Iterator<Item = &Mine> {
        let calls = self.map.values().filter_map(|slot| slot.mine.as_ref());
        calls.filter(|mine| !mine.exchange.is_done())
    }

    /// Whether this operation of this rank is known, and not done.
    pub(super) fn is_under_way(&self, key: Key) -> bool {
        self.mine(key).is_some_and(|mine| !mine.exchange.is_done())
    }

    /// The ranks that an operation of this rank waits for: that have not called, or whose data does not come.
    pub(super) fn missing(&self, key: Key) -> Vec<usize> {
        let Some(slot) = self.get(key) else {
            return Vec::new();
        };
        let Some(mine) = &slot.mine else {
            return Vec::new();
        };
        if mine.exchange.has_begun {
            let lagging = mine.exchange.lagging();
            return lagging.into_iter().map(|peer| mine.ranks[peer]).collect();
        }
        let here = |rank: &usize| slot.arrived.iter().any(|a| a.rank == *rank);
        let others = mine.ranks.iter().enumerate().filter(|(i, _)| *i != mine.me);
        let others = others.map(|(_, &rank)| rank);
        others.filter(|rank| !here(rank)).collect()
    }

    /// A thread waits for this operation from now on.
    pub(super) fn begin_wait(&mut self, key: Key) {
        self.waits.push(key);
    }

    /// And now no more.
    pub(super) fn end_wait(&mut self, key: Key) {
        if let Some(at) = self.waits.iter().position(|waits| *waits == key) {
            self.waits.remove(at);
        }
    }

    /// Where this rank, which is `me` in the world, stands: in the wait that began first.
    pub(super) fn standing(&self, me: usize) -> Standing {
        let waits = self.waits.iter();
        let mut waits = waits.filter_map(|&key| Some((key, self.mine(key)?)));
        let Some((key, mine)) = waits.next() else {
            return Standing::of(self.activity.stands());
        };
        debug_assert_eq!(mine.ranks[mine.me], me);
        let is_alone = matches!(self.caller, Caller::One(_)) && self.waits.len() == 1;
        Standing {
            stands: Stands::Waits {
                call: mine.exchange.signature.to_string(),
                group: mine.group.to_string(),
                sequence: mine.number,
                missing: self.missing(key),
            },
            is_fixed: is_alone && !mine.exchange.has_begun,
        }
    }
}
