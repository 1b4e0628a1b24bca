//! The trace of one step: what happened when.

use std::fmt;
use std::time::{Duration, Instant};

/// Something that happened during a step.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TraceEvent {
    /// The gradient of the parameter of this name became final on this rank.
    Ready(String),
    /// The reduction of this bucket was started.
    Started(usize),
    /// All gradients of this rank are final: the sweep ended.
    SweepEnded,
    /// The reduction of this bucket was seen to be complete: when a gradient became final, or, at
    /// the latest, when the result was waited for after the sweep. (Of a hook that reduces in two parts, the first
    /// may have been seen.)
    Reduced(usize),
}

/// The events of one step with their times since its start; prints one per line.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    start: Option<Instant>,
    events: Vec<(Duration, TraceEvent)>,
}

impl Trace {
    /// A trace that records if `on`.
    pub(super) fn new(on: bool) -> Trace {
        Trace {
            start: on.then(Instant::now),
            events: Vec::new(),
        }
    }

    pub(super) fn record(&mut self, event: impl FnOnce() -> TraceEvent) {
        if let Some(start) = self.start {
            self.events.push((start.elapsed(), event()));
        }
    }

    /// The events in order, with their times since the start of the step.
    pub fn events(&self) -> &[(Duration, TraceEvent)] {
        &self.events
    }
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, event) in &self.events {
            write!(f, "{:10.3} ms  ", at.as_secs_f64() * 1e3)?;
            match event {
                TraceEvent::Ready(name) => writeln!(f, "gradient of {name} is final")?,
                TraceEvent::Started(bucket) => writeln!(f, "bucket {bucket} leaves")?,
                TraceEvent::SweepEnded => writeln!(f, "the sweep has ended")?,
                TraceEvent::Reduced(bucket) => writeln!(f, "bucket {bucket} is reduced")?,
            }
        }
        Ok(())
    }
}
