//! A step of all ranks as a Chrome trace.

use super::GradReducer;
use super::trace::{Trace, TraceEvent};
use crate::chrome_trace::{Page, Track};
use crate::{Result, talk};

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

    /// The reduction of this bucket began on its card, and ended.
    fn on_card(&mut self, bucket: usize) -> &mut [f64] {
        &mut self.all[self.parameters + 2 * self.buckets + 2 * bucket..][..2]
    }

    /// The sweep was through: for the host, and on the last card.
    fn sweeps(&mut self) -> &mut [f64] {
        &mut self.all[self.parameters + 4 * self.buckets..][..2]
    }
}

impl GradReducer {
    /// The last step of all ranks in the Trace Event Format of Chrome, which Perfetto opens; where
    /// [`ReduceConfig::trace`](super::ReduceConfig::trace) is not set, without events. Every rank must call it. It waits for
    /// cards.
    ///
    /// For each rank: when gradients became final, when each bucket left and was seen to be reduced, and the sweep. Where
    /// gradients are on cards, these are the times of the host, which is ahead of the card; below them stands when the card
    /// was through with the sweep, and when each bucket was reduced there, by the card's events. The times of a rank begin
    /// with its step: those of two ranks have no common zero.
    ///
    /// # Errors
    /// Errors of a card, and of the communication.
    pub fn chrome_trace(&self) -> Result<String> {
        let (trace, plan) = (self.trace(), self.buckets().unwrap_or_default());
        let (parameters, buckets) = (self.params.len(), plan.len());
        let mut mine = vec![f64::NAN; Times::len(parameters, buckets)];
        self.note(
            &trace,
            &mut Times {
                all: &mut mine,
                parameters,
                buckets,
            },
        )?;
        let len = mine.len();
        let mut all = talk::gather_numbers(mine, &*self.group)?;
        let mut page = Page::default();
        for (rank, all) in all.chunks_mut(len).enumerate() {
            self.draw(
                &mut page,
                rank,
                Times {
                    all,
                    parameters,
                    buckets,
                },
            );
        }
        Ok(page.write())
    }

    /// What this rank has seen.
    fn note(&self, trace: &Trace, times: &mut Times<'_>) -> Result<()> {
        for (at, event) in trace.events() {
            let at = at.as_secs_f64();
            match event {
                TraceEvent::Ready(name) => {
                    let place = self.params.iter().position(|(known, _)| known == name);
                    place.into_iter().for_each(|i| *times.ready(i) = at);
                }
                TraceEvent::Started(bucket) => times.asked(*bucket)[0] = at,
                TraceEvent::Reduced(bucket) => times.asked(*bucket)[1] = at,
                TraceEvent::SweepEnded => times.sweeps()[0] = at,
            }
        }
        for card in trace.card_times()? {
            for (bucket, reduction) in card.buckets {
                times.on_card(bucket).copy_from_slice(&reduction);
            }
            let last = &mut times.sweeps()[1];
            *last = card.sweep_ended.map_or(*last, |end| last.max(end)); // of a NaN, the other
        }
        Ok(())
    }

    fn draw(&self, page: &mut Page, rank: usize, mut times: Times<'_>) {
        const TRACKS: [&str; 4] = [
            "host: backward",
            "host: buckets",
            "card: backward",
            "card: collectives",
        ];
        let micro = |times: &[f64]| match times {
            &[start, end] if start.is_finite() && end.is_finite() => Some([start * 1e6, end * 1e6]),
            _ => None,
        };
        let track = |thread| Track {
            process: rank,
            thread,
        };
        let has_card = times.sweeps()[1].is_finite();
        page.name_process(rank, &format!("rank {rank}"));
        for (thread, name) in TRACKS.iter().enumerate().take(if has_card { 4 } else { 2 }) {
            page.name_track(track(thread), name);
        }
        for (thread, end) in [(0, times.sweeps()[0]), (2, times.sweeps()[1])] {
            if let Some(sweep) = micro(&[0.0, end]) {
                page.span(track(thread), "backward", "sweep", sweep);
            }
        }
        for (i, (name, _)) in self.params.iter().enumerate() {
            if let Some([_, at]) = micro(&[0.0, *times.ready(i)]) {
                page.instant(track(0), name, "gradient", at);
            }
        }
        for bucket in 0..times.buckets {
            let name = format!("bucket {bucket}");
            if let Some(asked) = micro(times.asked(bucket)) {
                page.flight(track(1), (&name, "bucket", bucket), asked);
            }
            if let Some(reduction) = micro(times.on_card(bucket)) {
                page.span(track(3), &name, "collective", reduction);
            }
        }
    }
}
