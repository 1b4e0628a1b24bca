//! How much each rank holds over time, and the key to the curves' colours.

use std::fmt::Write as _;

use super::super::super::{Costs, Schedule, Timeline};
use super::{LEFT, Page, bytes, short, tick};

/// Height of the curves' part, without the key.
pub(super) const HEIGHT: f64 = 130.0;
/// Ranks whose key has room beside the curves.
const BESIDE: usize = 10;
/// Width of an entry of the key where it stands below, and the distance of its rows.
const ENTRY: f64 = 118.0;
const ROW: f64 = 15.0;
/// Points of a curve from which it is drawn by samples.
const MOST_POINTS: usize = 1_000;

/// Where the key stands: in a column beside the curves, or below them in as many rows as it takes.
pub(super) struct Key {
    ranks: usize,
    columns: usize,
}

impl Key {
    /// For so many ranks, on a picture of such a width.
    pub(super) fn of(ranks: usize, width: f64) -> Key {
        let columns = match ranks {
            0..=BESIDE => 1,
            _ => ((width - LEFT) / ENTRY) as usize,
        };
        Key { ranks, columns }
    }

    /// The height that it takes below the curves.
    pub(super) fn below(&self) -> f64 {
        match self.ranks {
            0..=BESIDE => 0.0,
            ranks => 8.0 + ROW * ranks.div_ceil(self.columns) as f64,
        }
    }

    /// Where the entry of a rank begins, on its baseline.
    fn place(&self, rank: usize, page: &Page, top: f64) -> (f64, f64) {
        if self.ranks <= BESIDE {
            return (page.right + 8.0, top + 4.0 + 13.0 * rank as f64);
        }
        let (row, column) = (rank / self.columns, rank % self.columns);
        let y = top + HEIGHT + 20.0 + ROW * row as f64;
        (LEFT + ENTRY * column as f64, y)
    }
}

/// From violet for the first rank to yellow-green for the last.
fn rank_colour(rank: usize, ranks: usize) -> String {
    let share = rank as f64 / (ranks.max(2) - 1) as f64;
    format!(
        "hsl({:.0},65%,{:.0}%)",
        285.0 - 215.0 * share,
        42.0 + 4.0 * share
    )
}

/// Draws the curves under a heading that names their unit, and the key.
pub(super) fn draw(
    page: &mut Page,
    schedule: &Schedule,
    timeline: &Timeline,
    costs: &Costs,
    top: f64,
    key: &Key,
) {
    let curves = timeline.memory(schedule, costs);
    let peak = curves.iter().flatten().map(|&(_, b)| b).max();
    let peak = peak.unwrap_or(0).max(1) as f64;
    let bottom = top + HEIGHT;
    let y = |held: f64| bottom - held / peak * HEIGHT;
    // Under unit costs every activation counts 1: these are no bytes.
    let counts = (costs.stages.iter()).all(|stage| stage.activation == 1 && stage.resident == 0);
    let (heading, shown): (_, fn(f64) -> String) = match counts {
        true => ("held by each rank, in microbatches of a stage", short),
        false => ("held by each rank, in bytes", bytes),
    };
    page.text(LEFT, top - 14.0, 12.0, "start", "#222", heading);
    let step = tick(peak, 4.0).max(1.0);
    for i in 0..=(peak / step) as usize {
        let held = i as f64 * step;
        let right = page.right;
        page.put(format_args!(
            "<line x1=\"{LEFT}\" y1=\"{0:.1}\" x2=\"{1:.1}\" y2=\"{0:.1}\" stroke=\"#000\" \
             stroke-opacity=\"0.12\"/>",
            y(held),
            right
        ));
        page.text(LEFT - 8.0, y(held) + 4.0, 11.0, "end", "#666", &shown(held));
    }
    let ranks = curves.len();
    for (rank, curve) in curves.iter().enumerate() {
        // Lines that coincide are set off against each other by a little, all together by an eighth of
        // a tick; but nothing is never less than nothing.
        let shift =
            rank as f64 / ranks as f64 * (step / peak * HEIGHT / 8.0).min(1.6 * ranks as f64);
        let height = |held: u64| match held {
            0 => bottom,
            _ => y(held as f64) - shift,
        };
        let mut path = String::new();
        let mut last = None;
        for (time, held) in thinned(curve, timeline.makespan) {
            let (px, py) = (page.x(time), height(held));
            // Writing to a String cannot fail.
            let _ = match last {
                None => write!(path, "M{px:.1} {py:.1}"),
                Some(last) if last == held => Ok(()),
                Some(_) => write!(path, "H{px:.1}V{py:.1}"),
            };
            last = Some(held);
        }
        let _ = write!(path, "H{:.1}", page.right);
        let stroke = rank_colour(rank, ranks);
        page.put(format_args!(
            "<path d=\"{path}\" fill=\"none\" stroke=\"{stroke}\" stroke-width=\"1.6\">\
             <title>rank {rank}</title></path>"
        ));
    }
    for rank in 0..ranks {
        let (x, y) = key.place(rank, page, top);
        page.put(format_args!(
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"9\" height=\"9\" fill=\"{}\"/>",
            y - 8.0,
            rank_colour(rank, ranks)
        ));
        let label = format!(
            "rank {rank}: peak {}",
            shown(timeline.peak_bytes[rank] as f64)
        );
        page.text(x + 13.0, y, 10.5, "start", "#444", &label);
    }
}

/// What a rank holds from when on: without dips that last no time, and of a long curve the most in
/// each of equal spans of time.
fn thinned(curve: &[(f64, u64)], makespan: f64) -> Vec<(f64, u64)> {
    let next = |i: usize| curve.get(i + 1).map(|&(time, _)| time);
    // What is let go and taken again in one moment is no dip.
    let steps = curve
        .iter()
        .enumerate()
        .filter(|&(i, &(time, _))| next(i) != Some(time));
    let steps: Vec<(f64, u64)> = steps.map(|(_, &step)| step).collect();
    if steps.len() <= MOST_POINTS {
        return steps;
    }
    let span = makespan / MOST_POINTS as f64;
    let mut out: Vec<(f64, u64)> = Vec::with_capacity(MOST_POINTS);
    let mut held = 0;
    let mut steps = steps.into_iter().peekable();
    for i in 0..MOST_POINTS {
        let end = (i + 1) as f64 * span;
        let mut most = held;
        while let Some((_, now)) = steps.next_if(|&(time, _)| time < end) {
            held = now;
            most = most.max(now);
        }
        out.push((i as f64 * span, most));
    }
    out.push((makespan, steps.last().map_or(held, |(_, now)| now)));
    out
}
