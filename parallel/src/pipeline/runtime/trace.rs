//! [`Clock`]: when each compute action of a pass began and ended, on this rank and on all.

use super::Pipeline;
use crate::pipeline::{Action, Cost, Costs, Kind, Schedule, Span, StageCosts, Timeline, validate};
use crate::{Result, talk};
use std::time::Instant;

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

impl Pipeline {
    /// The last pass of all ranks as a timeline, in seconds, where [`PipelineConfig::trace`](super::PipelineConfig::trace)
    /// is set. Every rank must call it. Bytes are not measured.
    ///
    /// # Errors
    /// Errors of the communication.
    pub fn timeline(&self) -> Result<Timeline> {
        let program = self.schedule.ranks();
        let longest = program.iter().map(Vec::len).max().unwrap_or(0);
        let mut mine = vec![f64::NAN; 2 * longest];
        let mut spans = self.spans.iter().peekable();
        for (at, action) in program[self.group.rank()].iter().enumerate() {
            if let Some(span) = spans.next_if(|span| span.action == *action) {
                mine[2 * at] = span.start;
                mine[2 * at + 1] = span.end;
            }
        }
        let all = talk::gather_numbers(mine, &*self.group)?;
        let ranks = program.iter().zip(all.chunks(2 * longest.max(1)));
        let ranks = ranks.map(|(list, times)| {
            let spans = list.iter().zip(times.chunks_exact(2));
            let spans = spans.filter(|(_, time)| time[0].is_finite());
            let spans = spans.map(|(&action, time)| Span {
                action,
                start: time[0],
                end: time[1],
            });
            spans.collect::<Vec<Span>>()
        });
        let ranks: Vec<Vec<Span>> = ranks.collect();
        let makespan = ranks
            .iter()
            .flatten()
            .map(|span| span.end)
            .fold(0.0, f64::max);
        let busy = |spans: &Vec<Span>| spans.iter().map(|span| span.end - span.start).sum::<f64>();
        let peak_live = validate(&self.schedule, &Default::default()).map(|proof| proof.peak_live);
        Ok(Timeline {
            makespan,
            idle: ranks.iter().map(|spans| makespan - busy(spans)).collect(),
            peak_live: peak_live.unwrap_or_default(),
            peak_bytes: vec![0; ranks.len()],
            ranks,
        })
    }
}

impl Costs {
    /// What the stages of a schedule cost by a timeline that was measured: the mean over the microbatches of each kind of
    /// action. A stage that only has `B`s is taken to spend half of each on its `I`.
    pub fn measured(schedule: &Schedule, timeline: &Timeline) -> Costs {
        let mean = |stage: usize, kind: Kind| {
            let spans = timeline.ranks.iter().flatten();
            let spans = spans.filter(|s| s.action.stage() == stage && s.action.kind() == kind);
            let (sum, count) = spans.fold((0.0, 0), |(sum, n), s| (sum + s.end - s.start, n + 1));
            (count > 0).then(|| sum / f64::from(count))
        };
        let stages = (0..schedule.stages()).map(|stage| {
            let whole = mean(stage, Kind::Backward);
            let half = |kind| mean(stage, kind).or(whole.map(|b| b / 2.0)).unwrap_or(0.0);
            StageCosts {
                backward: whole.map(Cost::All),
                ..StageCosts::new(
                    mean(stage, Kind::Forward).unwrap_or(0.0),
                    half(Kind::Input),
                    half(Kind::Weight),
                )
            }
        });
        Costs {
            stages: stages.collect(),
        }
    }
}
