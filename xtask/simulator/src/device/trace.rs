//! A record of what a program has put into streams, and of which operations streams and events put before which others:
//! what a test asks about overlap.
//!
//! It has clocks of its own. Those by which accesses are judged also know what some thread of the host has waited for, and
//! a thread that only watches for ends would order what another thread enqueues.

use std::collections::HashMap;

use super::clock::Clock;
use super::operation::Work;

/// An operation of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traced {
    /// The GPU.
    pub gpu: usize,
    /// The number of the stream.
    pub stream: usize,
    /// Its place in the stream, counted from 1.
    pub sequence: u32,
    /// The name of the kernel, or what else it is.
    pub name: String,
    clock: Clock,
}

/// The operations since a test has asked for them.
#[derive(Debug, Default)]
pub struct Trace {
    is_on: bool,
    operations: Vec<Traced>,
    /// By stream and place.
    places: HashMap<(usize, u32), usize>,
    /// What is before the next operation of each stream.
    streams: HashMap<usize, Clock>,
}

impl Trace {
    /// Starts with nothing, or ends and keeps what there is.
    pub fn turn(&mut self, on: bool) {
        if on {
            *self = Trace::default();
        }
        self.is_on = on;
    }

    /// The operations in the order of their calls.
    pub fn operations(&self) -> &[Traced] {
        &self.operations
    }

    /// Whether the operation at one index has ended before the one at another begins, however long each of them takes.
    pub fn is_before(&self, first: usize, second: usize) -> bool {
        let known = |&Traced {
                         stream, sequence, ..
                     }: &Traced| {
            first != second && self.operations[second].clock.get(stream) >= sequence
        };
        known(&self.operations[first])
    }

    /// Takes in an operation that comes after others, given by stream and place.
    pub(super) fn add(
        &mut self,
        (gpu, stream, sequence): (usize, usize, u32),
        work: &Work,
        after: impl IntoIterator<Item = (usize, u32)>,
    ) {
        if !self.is_on {
            return;
        }
        let mut clock = self.streams.remove(&stream).unwrap_or_default();
        for place in after {
            if let Some(other) = self.places.get(&place) {
                clock.join(&self.operations[*other].clock);
            }
        }
        clock.set(stream, sequence);
        self.streams.insert(stream, clock.clone());
        self.places
            .insert((stream, sequence), self.operations.len());
        self.operations.push(Traced {
            gpu,
            stream,
            sequence,
            name: work.what().name().to_owned(),
            clock,
        });
    }

    /// None of these operations ends before all the ones before them in their streams have begun.
    pub fn meet(&mut self, ends: &[(usize, u32)]) {
        let mut known = Clock::default();
        for (stream, sequence) in ends {
            if let Some(begin) = self.places.get(&(*stream, sequence - 1)) {
                known.join(&self.operations[*begin].clock);
            }
        }
        let clocks = self.operations.iter_mut().map(|o| &mut o.clock);
        for clock in clocks.chain(self.streams.values_mut()) {
            let knows = |(stream, sequence): &(usize, u32)| clock.get(*stream) >= *sequence;
            if ends.iter().any(knows) {
                clock.join(&known);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(trace: &mut Trace, stream: usize, sequence: u32, after: &[(usize, u32)]) {
        trace.add((0, stream, sequence), &Work::Wait, after.iter().copied());
    }

    #[test]
    fn streams_and_events_order() {
        let mut trace = Trace::default();
        add(&mut trace, 1, 1, &[]);
        assert!(trace.operations().is_empty(), "nobody has asked");
        trace.turn(true);
        add(&mut trace, 1, 2, &[]);
        add(&mut trace, 2, 1, &[(1, 2)]);
        add(&mut trace, 1, 3, &[]);
        add(&mut trace, 2, 2, &[]);
        trace.turn(false);
        add(&mut trace, 2, 3, &[]);
        assert_eq!(trace.operations().len(), 4);
        let before: Vec<_> = (0..4)
            .flat_map(|a| (0..4).map(move |b| (a, b)))
            .filter(|(a, b)| trace.is_before(*a, *b))
            .collect();
        assert_eq!(before, [(0, 1), (0, 2), (0, 3), (1, 3)]);
    }

    #[test]
    fn a_meeting_ends_after_all_have_begun() {
        let mut trace = Trace::default();
        trace.turn(true);
        // On each of two streams something, the begin and the end of the meeting, and something that follows.
        for stream in [1, 2] {
            (1..=4).for_each(|sequence| add(&mut trace, stream, sequence, &[]));
        }
        assert!(!trace.is_before(0, 6));
        trace.meet(&[(1, 3), (2, 3)]);
        assert!(trace.is_before(0, 6) && trace.is_before(4, 3));
        assert!(!trace.is_before(0, 5) && !trace.is_before(2, 6));
    }
}
