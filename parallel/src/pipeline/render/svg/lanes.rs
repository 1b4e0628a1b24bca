//! The lanes: what each rank does when.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::super::super::{Kind, Schedule, Span, Timeline};
use super::{LEFT, Page, colour, short};

/// Actions from which each is no longer an element of its own, with a number and a text to hover over.
const MOST_BOXES: usize = 3_000;
/// Actions from which lanes are drawn by samples.
const MOST_DRAWN: usize = 40_000;

/// Whether the boxes have numbers, where there is room.
pub(super) fn numbered(timeline: &Timeline) -> bool {
    total(timeline) <= MOST_BOXES
}

/// How many samples of each lane are drawn; `None` where everything is.
pub(super) fn samples(timeline: &Timeline) -> Option<usize> {
    (total(timeline) > MOST_DRAWN).then(|| (MOST_DRAWN / timeline.ranks.len()).max(1))
}

fn total(timeline: &Timeline) -> usize {
    timeline.ranks.iter().map(Vec::len).sum()
}

/// Draws a lane of the given top and height.
pub(super) fn draw(
    page: &mut Page,
    schedule: &Schedule,
    timeline: &Timeline,
    rank: usize,
    (top, lane): (f64, f64),
    samples: Option<usize>,
) {
    let (y, h) = (top + 1.5, lane - 3.0);
    let middle = top + lane / 2.0;
    let lanes = page.right - LEFT;
    let stages: Vec<usize> = schedule.stages_of(rank).collect();
    // Names are as large as the lanes are high, within reason.
    let name = (lane * 0.7).min(13.0);
    page.text(
        LEFT - 8.0,
        middle + name * 0.36,
        name,
        "end",
        "#222",
        &format!("rank {rank}"),
    );
    page.put(format_args!(
        "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{lanes:.1}\" height=\"{h:.1}\" fill=\"#f0eeea\"/>"
    ));
    let spans = &timeline.ranks[rank];
    match samples {
        Some(samples) => strokes(page, &sampled(spans, timeline, samples), &stages, y, h),
        None if numbered(timeline) => {
            let size = (lane * 0.42).min(12.0);
            for span in spans {
                draw_span(page, span, &stages, y, h, size);
            }
        }
        None => strokes(page, spans, &stages, y, h),
    }
    let idle = timeline.idle[rank];
    let share = 100.0 * idle / timeline.makespan.max(f64::MIN_POSITIVE);
    let note = format!("idle {} ({share:.0} %)", short(idle));
    let size = name.min(12.0);
    page.text(
        page.right + 8.0,
        middle + size * 0.36,
        size,
        "start",
        "#555",
        &note,
    );
}

/// In so many equal parts of the time what computes at one moment of each, and nothing of the transfers.
fn sampled(spans: &[Span], timeline: &Timeline, samples: usize) -> Vec<Span> {
    let step = timeline.makespan / samples as f64;
    let mut rest = spans
        .iter()
        .filter(|s| s.action.kind().is_compute())
        .peekable();
    let mut out = Vec::with_capacity(samples);
    for i in 0..samples {
        // Multiples of the golden ratio are spread evenly and have no period: moments at equal distances
        // would beat with the period of the plan.
        let moment = (i as f64 * 0.618_033_988_749_895).fract();
        let time = (i as f64 + moment) * step;
        while rest.next_if(|span| span.end <= time).is_some() {}
        if let Some(span) = rest.peek().filter(|span| span.start <= time) {
            out.push(Span {
                start: i as f64 * step,
                end: (i + 1) as f64 * step,
                ..**span
            });
        }
    }
    out
}

/// All actions of a lane, one path for each colour: some 15 bytes an action.
fn strokes(page: &mut Page, spans: &[Span], stages: &[usize], y: f64, h: f64) {
    let mut paths: BTreeMap<(bool, String), String> = BTreeMap::new();
    for span in spans {
        let (x, w) = (page.x(span.start), (span.end - span.start) * page.scale);
        if w <= 0.0 {
            continue;
        }
        let transfer = !span.action.kind().is_compute();
        let (fill, inner) = match transfer {
            true => (TRANSFER.to_string(), w),
            false => (fill(span, stages).0, inner(w)),
        };
        let path = paths.entry((transfer, fill)).or_default();
        // Writing to a String cannot fail.
        let _ = write!(path, "M{x:.2} 0h{inner:.2}");
    }
    for ((transfer, fill), path) in paths {
        let (middle, width) = match transfer {
            true => (y + h - FOOT / 2.0, FOOT),
            false => (y + h / 2.0, h),
        };
        page.put(format_args!(
            "<path transform=\"translate(0 {middle:.2})\" d=\"{path}\" stroke=\"{fill}\" \
             stroke-width=\"{width:.1}\"/>"
        ));
    }
}

/// Transfers run beside the compute: a line so high at the foot of the lane.
const FOOT: f64 = 3.0;
const TRANSFER: &str = "#a5559f";

/// A hair of the lane shows between boxes, so that their ends are seen.
fn inner(width: f64) -> f64 {
    (width - 0.6).max(width * 0.7)
}

/// The colour of a span's box, and that of its number.
fn fill(span: &Span, stages: &[usize]) -> (String, &'static str) {
    let (kind, stage) = (span.action.kind(), span.action.stage());
    let place = stages.iter().position(|&s| s == stage).unwrap_or(0);
    let dark = stages.len() > 1 && place * 2 >= stages.len() && kind != Kind::Weight;
    let ink = if dark { "#fff" } else { "#1a1a1a" };
    (colour(kind, place, stages.len()), ink)
}

fn draw_span(page: &mut Page, span: &Span, stages: &[usize], y: f64, h: f64, size: f64) {
    let (x, w) = (page.x(span.start), (span.end - span.start) * page.scale);
    if w <= 0.0 {
        return;
    }
    let title = format!(
        "{}: {} to {}",
        span.action,
        short(span.start),
        short(span.end)
    )
    .replace('>', "&gt;");
    if !span.action.kind().is_compute() {
        let foot = y + h - FOOT;
        page.put(format_args!(
            "<rect x=\"{x:.2}\" y=\"{foot:.1}\" width=\"{w:.2}\" height=\"{FOOT}\" fill=\"{TRANSFER}\">\
             <title>{title}</title></rect>"
        ));
        return;
    }
    let (fill, ink) = fill(span, stages);
    let inner = inner(w);
    page.put(format_args!(
        "<rect x=\"{x:.2}\" y=\"{y:.1}\" width=\"{inner:.2}\" height=\"{h:.1}\" fill=\"{fill}\">\
         <title>{title}</title></rect>"
    ));
    let label = span.action.microbatch().to_string();
    let size = size.min(1.5 * (w - 1.0) / page.digits as f64);
    if size >= 4.5 {
        page.text(
            x + inner / 2.0,
            y + h / 2.0 + size * 0.36,
            size,
            "middle",
            ink,
            &label,
        );
    }
}
