//! Vector clocks over streams: what is ordered before an operation, whatever the order in which operations run.
//!
//! An operation gets its clock when it is enqueued: what its stream has been given before, what the events brought that
//! the stream waits for, and what the host has waited for. So a verdict depends on the calls of the program alone, and a
//! wait that is missing is found with every seed.
//!
//! All host threads share one clock. They hand work to each other in ways that a driver cannot see (channels, locks,
//! joins), so a clock for each thread would report programs that are right. What that costs: a wait of one thread also
//! orders what another thread enqueues afterwards.

/// How many operations of each stream are known to have finished; streams are numbered from 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clock(Vec<u32>);

impl Clock {
    /// How many operations of `stream` are known to have finished.
    pub fn get(&self, stream: usize) -> u32 {
        self.0.get(stream).copied().unwrap_or(0)
    }

    /// Knows of `count` operations of `stream` from now on.
    pub fn set(&mut self, stream: usize, count: u32) {
        if self.0.len() <= stream {
            self.0.resize(stream + 1, 0);
        }
        self.0[stream] = count;
    }

    /// Knows from now on what `other` knows too.
    pub fn join(&mut self, other: &Clock) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine = (*mine).max(*theirs);
        }
    }
}
