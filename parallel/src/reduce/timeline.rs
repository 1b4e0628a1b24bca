//! A step of all ranks as a Chrome trace.

use super::GradReducer;
use super::trace::{Trace, TraceEvent};
use crate::chrome_trace::{Page, Track};
use crate::{Result, talk};
use phalanx_tensor::Device;

/// When what happened in a step of a rank, in seconds: what never happened is not a number. The same places on all ranks,
/// since they have the same parameters and buckets.
struct Times<'a> {
    all: &'a mut [f64],
    parameters: usize,
    buckets: usize,
}

impl Times<'_> {
    fn len(parameters: usize, buckets: usize) -> usize {
        parameters + 4 * buckets + 2
    }

    /// The gradient of this parameter became final.
    fn ready(&mut self, parameter: usize) -> &mut f64 {
        &mut self.all[parameter]
    }

    /// This bucket was asked for; and was seen to be reduced.
    fn asked(&mut self, bucket: usize) -> &mut [f64] {
        &mut self.all[self.parameters + 2 * bucket..][..2]
    }

    /// The collectives of this bucket began on its card, and ended.
    fn on_card(&mut self, bucket: usize) -> &mut [f64] {
        &mut self.all[self.parameters + 2 * self.buckets + 2 * bucket..][..2]
    }

    /// The sweep was through: for the host, and on the last card.
    fn sweeps(&mut self) -> &mut [f64] {
        &mut self.all[self.parameters + 4 * self.buckets..][..2]
    }
}

/// The tracks of a rank; those of its cards' collectives follow.
const HOST: usize = 0;
const BUCKETS: usize = 1;
const CARDS: usize = 2;
const COLLECTIVES: usize = 3;

impl GradReducer {
    /// The last step that was finished, on all ranks, in the Trace Event Format of Chrome, which Perfetto opens; without
    /// events where [`ReduceConfig::trace`](super::ReduceConfig::trace) is not set. Every rank must call it. It waits for
    /// cards.
    ///
    /// For each rank: when gradients became final, when each bucket left and was seen to be reduced, and the sweep. Where
    /// gradients are on cards, these are the times of the host, which is ahead of them. Below stands when the last card was
    /// through with the sweep, and when each card was at the collectives of each bucket (of a hook: at those with which it
    /// starts), by the cards' events. Cards are set by the host's clock when this is called, to some tens of microseconds.
    /// The times of a rank begin with its step: those of two ranks have no common zero.
    ///
    /// # Errors
    /// [`Error::Poisoned`](crate::Error::Poisoned); errors of a card, and of the communication.
    pub fn chrome_trace(&self) -> Result<String> {
        self.expect_whole()?;
        let (trace, devices) = (self.trace(), self.bucket_devices());
        let (parameters, buckets) = (self.params.len(), devices.len());
        let mut mine = vec![f64::NAN; Times::len(parameters, buckets)];
        let mut times = Times {
            all: &mut mine,
            parameters,
            buckets,
        };
        note(&trace, &mut times)?;
        let len = mine.len();
        let mut all = talk::gather_numbers(mine, &*self.group)?;
        let mut page = Page::default();
        for (rank, all) in all.chunks_mut(len).enumerate() {
            let times = Times {
                all,
                parameters,
                buckets,
            };
            self.draw(&mut page, rank, times, &devices);
        }
        Ok(page.write())
    }

    /// Where each bucket is.
    fn bucket_devices(&self) -> Vec<Device> {
        let state = self.state();
        let plan = state.plan.iter().flat_map(|plan| &plan.params);
        plan.map(|params| params[0].device()).collect()
    }

    fn draw(&self, page: &mut Page, rank: usize, mut times: Times<'_>, devices: &[Device]) {
        let micro = |times: &[f64]| match times {
            &[start, end] if start.is_finite() && end.is_finite() => Some([start * 1e6, end * 1e6]),
            _ => None,
        };
        let track = |thread| Track {
            process: rank,
            thread,
        };
        let mut cards: Vec<Device> = Vec::new();
        page.name_process(rank, &format!("rank {rank}"));
        page.name_track(track(HOST), "host: backward");
        for (thread, end) in [(HOST, times.sweeps()[0]), (CARDS, times.sweeps()[1])] {
            if let Some(sweep) = micro(&[0.0, end]) {
                page.span(track(thread), "backward", "sweep", sweep);
            }
        }
        if times.sweeps()[1].is_finite() {
            page.name_track(track(CARDS), "cards: backward");
        }
        for (i, (name, _)) in self.params.iter().enumerate() {
            if let Some([_, at]) = micro(&[0.0, *times.ready(i)]) {
                page.instant(track(HOST), name, "gradient", at);
            }
        }
        for (bucket, device) in devices.iter().enumerate() {
            let name = format!("bucket {bucket}");
            if let Some(asked) = micro(times.asked(bucket)) {
                let number = rank * times.buckets + bucket; // of no other on the page
                page.flight(track(BUCKETS), (&name, "bucket", number), asked);
            }
            if let Some(collectives) = micro(times.on_card(bucket)) {
                let card = cards.iter().position(|card| card == device);
                let card = card.unwrap_or_else(|| {
                    page.name_track(
                        track(COLLECTIVES + cards.len()),
                        &format!("card {}: collectives", cards.len()),
                    );
                    cards.push(*device);
                    cards.len() - 1
                });
                page.span(track(COLLECTIVES + card), &name, "collective", collectives);
            }
        }
    }
}

/// What this rank has seen.
fn note(trace: &Trace, times: &mut Times<'_>) -> Result<()> {
    for (parameter, at) in trace.ready_times() {
        *times.ready(parameter) = at.as_secs_f64();
    }
    for (at, event) in trace.events() {
        let at = at.as_secs_f64();
        match event {
            TraceEvent::Ready(_) => {}
            TraceEvent::Started(bucket) => times.asked(*bucket)[0] = at,
            TraceEvent::Reduced(bucket) => times.asked(*bucket)[1] = at,
            TraceEvent::SweepEnded => times.sweeps()[0] = at,
        }
    }
    for card in trace.card_times()? {
        for (bucket, collectives) in card.buckets {
            times.on_card(bucket).copy_from_slice(&collectives);
        }
        let last = &mut times.sweeps()[1];
        *last = card.sweep_ended.map_or(*last, |end| last.max(end)); // of a NaN, the other
    }
    Ok(())
}
