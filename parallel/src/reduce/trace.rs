//! The trace of one step: what happened when.

use crate::Result;
use phalanx_tensor::{Device, Moment, Queue};
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

/// The events of one step with their times since its start; prints one per line. Where gradients are on a card, these are
/// the times at which this rank asked for something; what the card then did when is in
/// [`GradReducer::chrome_trace`](crate::GradReducer::chrome_trace).
#[derive(Debug, Clone, Default)]
pub struct Trace {
    start: Option<Instant>,
    events: Vec<(Duration, TraceEvent)>,
    cards: Vec<OnCard>,
}

/// What a card has come to.
#[derive(Debug, Clone)]
struct OnCard {
    start: Moment,
    /// The buckets whose gradients are there, in the order in which they left.
    buckets: Vec<Leaving>,
    sweep_ended: Option<Moment>,
}

#[derive(Debug, Clone)]
struct Leaving {
    bucket: usize,
    /// The card has the gradients.
    filled: Moment,
    /// It has what comes of them.
    reduced: Option<Moment>,
}

/// Of a step on a card, in seconds since its start there.
pub(super) struct CardTimes {
    /// For each bucket, by its number: the begin and the end of its reduction.
    pub(super) buckets: Vec<(usize, [f64; 2])>,
    pub(super) sweep_ended: Option<f64>,
}

impl Trace {
    /// A trace that records if `on`, of gradients on these devices.
    pub(super) fn new(on: bool, devices: impl Iterator<Item = Device>) -> Result<Trace> {
        let mut cards: Vec<OnCard> = Vec::new();
        for device in devices.filter(|device| on && !device.is_cpu()) {
            if cards.iter().all(|card| card.start.device() != device) {
                cards.push(OnCard {
                    start: device.moment(Queue::Compute)?,
                    buckets: Vec::new(),
                    sweep_ended: None,
                });
            }
        }
        Ok(Trace {
            start: on.then(Instant::now),
            events: Vec::new(),
            cards,
        })
    }

    fn card(&mut self, device: Device) -> Option<&mut OnCard> {
        self.cards
            .iter_mut()
            .find(|card| card.start.device() == device)
    }

    /// This bucket leaves now, with all that was asked of the card before.
    pub(super) fn filled(&mut self, bucket: usize, device: Device) -> Result<()> {
        if let Some(card) = self.card(device) {
            card.buckets.push(Leaving {
                bucket,
                filled: device.moment(Queue::Compute)?,
                reduced: None,
            });
        }
        Ok(())
    }

    /// What was asked of this queue by now ends the reduction of the bucket.
    pub(super) fn reduced(&mut self, bucket: usize, device: Device, queue: Queue) -> Result<()> {
        let leaving = self.card(device).and_then(|card| {
            let mut buckets = card.buckets.iter_mut();
            buckets.find(|leaving| leaving.bucket == bucket)
        });
        if let Some(leaving) = leaving {
            leaving.reduced = Some(device.moment(queue)?);
        }
        Ok(())
    }

    /// All gradients are asked for.
    pub(super) fn sweep_ended(&mut self) -> Result<()> {
        self.record(|| TraceEvent::SweepEnded);
        for card in &mut self.cards {
            card.sweep_ended = Some(card.start.device().moment(Queue::Compute)?);
        }
        Ok(())
    }

    /// What each card did when. It waits for them. A reduction begins when the card has its gradients, and is through with
    /// those before it.
    pub(super) fn card_times(&self) -> Result<Vec<CardTimes>> {
        let times = |card: &OnCard| {
            let since = |moment: &Moment| moment.seconds_since(&card.start);
            let (mut free, mut buckets) = (0.0, Vec::new());
            for leaving in &card.buckets {
                if let Some(reduced) = &leaving.reduced {
                    let begin = since(&leaving.filled)?.max(free);
                    free = since(reduced)?.max(begin);
                    buckets.push((leaving.bucket, [begin, free]));
                }
            }
            Ok(CardTimes {
                buckets,
                sweep_ended: card.sweep_ended.as_ref().map(since).transpose()?,
            })
        };
        self.cards.iter().map(times).collect()
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
