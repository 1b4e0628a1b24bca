//! Who has used a region of memory: the accesses that a later operation must be ordered after.

use std::ops::Range;
use std::sync::Arc;

use super::clock::Clock;

/// What kind of operation made an access.
#[derive(Clone, Debug)]
pub enum What {
    /// A kernel, by its name.
    Kernel(Arc<str>),
    /// A copy.
    Copy,
    /// A filling with a value.
    Set,
    /// The allocation itself.
    Allocation,
    /// The free.
    Free,
    /// An operation of another library, by its name.
    Custom(Arc<str>),
}

impl What {
    /// The name of the kernel, or a word for what else it is.
    pub fn name(&self) -> &str {
        match self {
            What::Kernel(name) | What::Custom(name) => name,
            What::Copy => "copy",
            What::Set => "set",
            What::Allocation => "allocation",
            What::Free => "free",
        }
    }
}

/// A use of some bytes of a region by an operation.
#[derive(Clone, Debug)]
pub struct Access {
    /// The stream of the operation.
    pub stream: usize,
    /// Its place in the stream, counted from 1.
    pub sequence: u32,
    /// Whether it may have changed the bytes.
    pub writes: bool,
    /// The bytes, counted from the start of the region.
    pub range: Range<u64>,
    /// What the operation was.
    pub what: What,
}

/// How many accesses are kept of a region; of more, the oldest ones are forgotten.
const LONGEST: usize = 1024;

/// The accesses of one region.
///
/// It stays short: a write takes the place of the accesses that are ordered before it and lie within it, a read takes
/// the place of such reads. Nothing is lost by that. A later operation that is not ordered after the access that was
/// replaced is not ordered after the one that replaced it either, and conflicts with it as well.
#[derive(Debug, Default)]
pub struct History {
    kept: Vec<Access>,
    /// The accesses of operations that have not run yet, with the clocks of those.
    announced: Vec<(Access, Clock)>,
}

impl History {
    /// An earlier access that is not ordered before `access`, whose operation has the clock `clock`, and that may not
    /// run at the same time.
    pub fn conflict(&self, access: &Access, clock: &Clock) -> Option<&Access> {
        let conflicts = |earlier: &&Access| {
            (earlier.writes || access.writes)
                && earlier.range.start < access.range.end
                && access.range.start < earlier.range.end
                && clock.get(earlier.stream) < earlier.sequence
                && !(earlier.stream == access.stream && earlier.sequence == access.sequence)
        };
        let announced = self.announced.iter();
        let unordered = announced.filter(|(_, its)| its.get(access.stream) < access.sequence);
        let mut all = self
            .kept
            .iter()
            .chain(unordered.map(|(announced, _)| announced));
        all.find(conflicts)
    }

    /// Keeps an access whose operation has not run yet. It takes no other one's place: an operation that runs before
    /// this one must still meet what was there.
    pub fn announce(&mut self, access: Access, clock: &Clock) {
        self.announced.push((access, clock.clone()));
    }

    /// Changes the clocks of operations that have not run yet.
    pub fn join_announced(&mut self, join: impl Fn(&mut Clock)) {
        self.announced.iter_mut().for_each(|(_, clock)| join(clock));
    }

    /// Keeps `access`, whose operation has the clock `clock`.
    pub fn add(&mut self, access: Access, clock: &Clock) {
        self.kept.retain(|earlier| {
            let replaced = clock.get(earlier.stream) >= earlier.sequence
                && (access.writes || !earlier.writes)
                && access.range.start <= earlier.range.start
                && earlier.range.end <= access.range.end;
            !replaced
        });
        if self.kept.len() >= LONGEST {
            self.kept.remove(0);
        }
        self.kept.push(access);
    }

    /// An access that the host has not waited for, if there is one.
    pub fn unfinished(&self, host: &Clock) -> Option<&Access> {
        let mut accesses = self.kept.iter();
        accesses.find(|access| host.get(access.stream) < access.sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(stream: usize, sequence: u32, writes: bool, range: Range<u64>) -> Access {
        Access {
            stream,
            sequence,
            writes,
            range,
            what: What::Copy,
        }
    }

    fn clock(of: &[u32]) -> Clock {
        let mut clock = Clock::default();
        for (stream, count) in of.iter().enumerate() {
            clock.set(stream, *count);
        }
        clock
    }

    #[test]
    fn only_overlapping_unordered_writes_conflict() {
        let mut history = History::default();
        history.add(access(0, 1, true, 0..8), &clock(&[1]));
        let other = |writes, range| access(1, 1, writes, range);
        assert!(
            history
                .conflict(&other(false, 0..4), &clock(&[0, 1]))
                .is_some()
        );
        assert!(
            history
                .conflict(&other(true, 7..9), &clock(&[0, 1]))
                .is_some()
        );
        assert!(
            history
                .conflict(&other(true, 8..9), &clock(&[0, 1]))
                .is_none()
        );
        assert!(
            history
                .conflict(&other(true, 0..4), &clock(&[1, 1]))
                .is_none()
        );
        history.add(access(0, 2, false, 0..8), &clock(&[2]));
        assert!(
            history
                .conflict(&other(false, 0..4), &clock(&[1, 1]))
                .is_none()
        );
        assert!(
            history
                .conflict(&other(true, 0..4), &clock(&[1, 1]))
                .is_some()
        );
    }

    #[test]
    fn a_history_stays_short() {
        let mut history = History::default();
        for step in 0..100 {
            history.add(access(0, 2 * step + 1, true, 0..8), &clock(&[2 * step + 1]));
            history.add(
                access(0, 2 * step + 2, false, 0..8),
                &clock(&[2 * step + 2]),
            );
        }
        assert_eq!(history.kept.len(), 2);
        for stream in 1..5000 {
            history.add(access(stream, 1, false, 0..8), &clock(&[200]));
        }
        assert_eq!(history.kept.len(), LONGEST);
    }
}
