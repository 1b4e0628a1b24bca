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
    /// The parameters of the events [`TraceEvent::Ready`], in their order: several may have one name.
    ready: Vec<usize>,
    cards: Vec<OnCard>,
}

/// What a card has come to.
#[derive(Debug, Clone)]
struct OnCard {
    start: Moment,
    /// In the order in which they left.
    buckets: Vec<Leaving>,
    sweep_ended: Option<Moment>,
}

/// A bucket that leaves.
#[derive(Debug, Clone)]
struct Leaving {
    bucket: usize,
    /// The card has its gradients.
    filled: Moment,
    /// The card is through with the collectives by which it left.
    reduced: Option<Moment>,
}

/// What a card did when, in seconds since the start of the step.
pub(super) struct CardTimes {
    /// For each bucket, by its number: the begin and the end of the collectives by which it left.
    pub(super) buckets: Vec<(usize, [f64; 2])>,
    pub(super) sweep_ended: Option<f64>,
}

impl Trace {
    /// A trace that records if `on`, of gradients on these devices. A card whose driver does not tell the time has no
    /// times of its own.
    pub(super) fn new(on: bool, devices: impl Iterator<Item = Device>) -> Result<Trace> {
        let mut cards: Vec<OnCard> = Vec::new();
        for device in devices.filter(|device| on && !device.is_cpu()) {
            if cards.iter().any(|card| card.start.device() == device) {
                continue;
            }
            match device.moment(Queue::Compute) {
                Ok(start) => cards.push(OnCard {
                    start,
                    buckets: Vec::new(),
                    sweep_ended: None,
                }),
                Err(phalanx_tensor::Error::DeviceUnavailable { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Trace {
            start: on.then(Instant::now),
            cards,
            ..Trace::default()
        })
    }

    fn card(&mut self, device: Device) -> Option<&mut OnCard> {
        let mut cards = self.cards.iter_mut();
        cards.find(|card| card.start.device() == device)
    }

    /// The gradient of this parameter is final.
    pub(super) fn ready(&mut self, parameter: usize, name: &str) {
        if self.start.is_some() {
            self.ready.push(parameter);
        }
        self.record(|| TraceEvent::Ready(name.to_owned()));
    }

    /// This bucket leaves now, with what was asked of its device before.
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

    /// Its collectives were asked for; of a hook, those with which it starts.
    pub(super) fn asked(&mut self, bucket: usize, device: Device) -> Result<()> {
        if let Some(leaving) = self.card(device).and_then(|card| card.buckets.last_mut()) {
            debug_assert_eq!(leaving.bucket, bucket);
            leaving.reduced = Some(device.moment(Queue::Collectives)?);
        }
        Ok(())
    }

    /// All gradients were asked for.
    pub(super) fn sweep_ended(&mut self) -> Result<()> {
        self.record(|| TraceEvent::SweepEnded);
        for card in &mut self.cards {
            card.sweep_ended = Some(card.start.device().moment(Queue::Compute)?);
        }
        Ok(())
    }

    /// The parameters whose gradients became final, with the times since the start.
    pub(super) fn ready_times(&self) -> impl Iterator<Item = (usize, Duration)> {
        let events = self.events.iter();
        let times = events.filter(|(_, event)| matches!(event, TraceEvent::Ready(_)));
        self.ready.iter().copied().zip(times.map(|(at, _)| *at))
    }

    /// What each card did when. It waits for them, and sets their clocks by the host's then. Collectives begin when the
    /// card has the gradients, and is through with those before.
    pub(super) fn card_times(&self) -> Result<Vec<CardTimes>> {
        let Some(start) = self.start else {
            return Ok(Vec::new());
        };
        let times = |card: &OnCard| {
            let device = card.start.device();
            let passed = device.moment(Queue::Compute)?.seconds_since(&card.start)?;
            let zero = start.elapsed().as_secs_f64() - passed;
            let at = |moment: &Moment| {
                Ok::<f64, crate::Error>(zero + moment.seconds_since(&card.start)?)
            };
            let (mut free, mut buckets) = (zero, Vec::new());
            for leaving in &card.buckets {
                if let Some(reduced) = &leaving.reduced {
                    let begin = at(&leaving.filled)?.max(free);
                    free = at(reduced)?.max(begin);
                    buckets.push((leaving.bucket, [begin, free]));
                }
            }
            Ok(CardTimes {
                buckets,
                sweep_ended: card.sweep_ended.as_ref().map(at).transpose()?,
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
