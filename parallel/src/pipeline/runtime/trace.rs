//! Where a pass is, and [`Clock`]: when each of its compute actions began and ended.

use crate::pipeline::{Action, Span};
use std::cell::Cell;
use std::time::Instant;

/// The action that a rank is in, which its errors name.
pub(super) type Place = Cell<Option<Action>>;

/// Notes spans where it was asked to.
pub(super) struct Clock {
    start: Instant,
    spans: Option<Vec<Span>>,
}

impl Clock {
    pub(super) fn new(notes: bool) -> Clock {
        Clock {
            start: Instant::now(),
            spans: notes.then(Vec::new),
        }
    }

    /// Runs an action.
    pub(super) fn measure<T>(&mut self, action: Action, run: impl FnOnce() -> T) -> T {
        let Some(spans) = &mut self.spans else {
            return run();
        };
        let start = self.start.elapsed().as_secs_f64();
        let done = run();
        let end = self.start.elapsed().as_secs_f64();
        spans.push(Span { action, start, end });
        done
    }

    /// The spans in seconds since the start; none where they were not asked for.
    pub(super) fn spans(self) -> Vec<Span> {
        self.spans.unwrap_or_default()
    }
}
