//! A timeline as SVG: a lane per rank, its actions by colour and number, its idle time left bare,
//! and below it how much each rank holds.

mod lanes;
mod memory;

use std::fmt::Write as _;

use super::super::{Costs, Kind, Schedule, Timeline};
use memory::Key;

const LEFT: f64 = 68.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 70.0;

/// The picture of a plan that runs in the given time.
///
/// The hue is the kind of action, the shade is the stage among those of its rank, the number is the
/// microbatch; hovering over a box tells all of it. A plan of more than 3,000 actions is drawn without
/// numbers and hovering, one of more than 40,000 by samples (a remark in the picture says so): the
/// picture stays below 1 MB for 64 ranks × 256 microbatches.
pub fn svg(schedule: &Schedule, timeline: &Timeline, costs: &Costs, title: &str) -> String {
    let ranks = timeline.ranks.len();
    let lane = match ranks {
        0..=4 => 34.0,
        5..=8 => 28.0,
        9..=16 => 22.0,
        _ => 14.0,
    };
    // Room for a number in every box, within reason.
    let busiest = timeline.ranks.iter().map(Vec::len).max().unwrap_or(0);
    let lanes = (15.0 * busiest as f64).clamp(1100.0, 2200.0);
    let scale = lanes / timeline.makespan.max(f64::MIN_POSITIVE);
    let lanes_end = TOP + lane * ranks as f64;
    let memory_top = lanes_end + 60.0;
    let width = LEFT + lanes + RIGHT;
    let key = Key::of(ranks, width);
    let height = memory_top + memory::HEIGHT + key.below() + 24.0;
    let digits = schedule.microbatches().saturating_sub(1).to_string().len();
    let mut page = Page {
        out: String::new(),
        scale,
        right: LEFT + lanes,
        digits,
    };
    page.put(format_args!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\" font-family=\"DejaVu Sans, Verdana, sans-serif\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>"
    ));
    page.text(LEFT, 24.0, 16.0, "start", "#222", &escape(title));
    let bubble = format!(
        "makespan {}, bubble {:.1} %",
        short(timeline.makespan),
        100.0 * timeline.bubble()
    );
    page.text(page.right, 24.0, 13.0, "end", "#555", &bubble);
    let samples = lanes::samples(timeline);
    legend(&mut page, schedule, timeline, samples.is_some());
    for rank in 0..ranks {
        let top = TOP + lane * rank as f64;
        lanes::draw(&mut page, schedule, timeline, rank, (top, lane), samples);
    }
    axis(&mut page, timeline, TOP, lanes_end);
    memory::draw(&mut page, schedule, timeline, costs, memory_top, &key);
    page.put(format_args!("</svg>"));
    page.out
}

/// Pictures that [`svg`] has drawn, one below the other, as one: a prediction above what was measured, say.
pub fn stacked(pictures: &[String]) -> String {
    let size = |picture: &str| -> Option<(f64, f64)> {
        let (_, rest) = picture.split_once("viewBox=\"0 0 ")?;
        let (numbers, _) = rest.split_once('"')?;
        let (width, height) = numbers.split_once(' ')?;
        Some((width.parse().ok()?, height.parse().ok()?))
    };
    let sizes: Vec<(f64, f64)> = pictures.iter().filter_map(|p| size(p)).collect();
    let width = sizes.iter().map(|size| size.0).fold(0.0, f64::max);
    let height: f64 = sizes.iter().map(|size| size.1).sum();
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\">\n"
    );
    let mut top = 0.0;
    for (picture, (_, height)) in pictures.iter().zip(sizes) {
        // Writing to a String cannot fail.
        let _ = write!(out, "<g transform=\"translate(0 {top})\">\n{picture}</g>\n");
        top += height;
    }
    out.push_str("</svg>\n");
    out
}

struct Page {
    out: String,
    /// Pixels per unit of time.
    scale: f64,
    /// Where the lanes end.
    right: f64,
    /// Digits of the largest microbatch.
    digits: usize,
}

impl Page {
    fn put(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.out, "{line}");
    }

    fn x(&self, time: f64) -> f64 {
        LEFT + time * self.scale
    }

    fn text(&mut self, x: f64, y: f64, size: f64, anchor: &str, fill: &str, text: &str) {
        self.put(format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" text-anchor=\"{anchor}\" \
             fill=\"{fill}\">{text}</text>"
        ));
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// A number without needless digits.
fn short(value: f64) -> String {
    if value == value.trunc() && value.abs() < 1e9 {
        format!("{value}")
    } else {
        format!("{value:.4}")
            .trim_end_matches('0')
            .trim_end_matches('.')
            .to_string()
    }
}

/// A number of bytes with its unit.
fn bytes(value: f64) -> String {
    let units = ["", " KiB", " MiB", " GiB", " TiB"];
    let mut value = value;
    let mut unit = 0;
    while value >= 10_000.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{}{}", short((value * 10.0).round() / 10.0), units[unit])
}

/// Hue and saturation of a kind; the stage decides the lightness.
fn hue(kind: Kind) -> (u32, u32) {
    match kind {
        Kind::Forward => (212, 70),
        Kind::Input => (150, 50),
        Kind::Weight => (38, 85),
        Kind::Backward => (172, 48),
        _ => (300, 35),
    }
}

/// The colour of an action: later stages of the same rank are darker.
fn colour(kind: Kind, place: usize, stages: usize) -> String {
    let (hue, saturation) = hue(kind);
    let lightness = 74.0 - 30.0 * place as f64 / (stages.max(2) - 1) as f64;
    format!("hsl({hue},{saturation}%,{lightness:.0}%)")
}

fn legend(page: &mut Page, schedule: &Schedule, timeline: &Timeline, sampled: bool) {
    let y = 46.0;
    let mut x = LEFT;
    let most = (0..schedule.rank_count())
        .map(|r| schedule.stages_of(r).count())
        .max()
        .unwrap_or(1);
    let occurs = |kind| {
        timeline
            .ranks
            .iter()
            .flatten()
            .any(|s| s.action.kind() == kind)
    };
    let names = [
        (Kind::Forward, "F forward"),
        (Kind::Backward, "B backward"),
        (Kind::Input, "I input gradient"),
        (Kind::Weight, "W weight gradient"),
    ];
    for (kind, name) in names.into_iter().filter(|&(kind, _)| occurs(kind)) {
        for place in 0..most.min(4) {
            let fill = colour(kind, place, most);
            page.put(format_args!(
                "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"13\" height=\"13\" fill=\"{fill}\"/>",
                y - 11.0
            ));
            x += 14.0;
        }
        page.text(x + 4.0, y, 12.0, "start", "#444", name);
        x += 26.0 + 7.0 * name.len() as f64;
    }
    page.put(format_args!(
        "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"13\" height=\"13\" fill=\"#f0eeea\" \
         stroke=\"#d8d4cc\"/>",
        y - 11.0
    ));
    page.text(x + 18.0, y, 12.0, "start", "#444", "idle");
    let shades = if most > 1 {
        "; darker: later stage of the rank"
    } else {
        ""
    };
    let rest = match (lanes::numbered(timeline), sampled) {
        (true, _) => format!("number: microbatch{shades}"),
        (false, false) => format!("too many actions for their numbers{shades}"),
        (false, true) => format!("too many actions to draw them all: samples{shades}"),
    };
    page.text(x + 62.0, y, 12.0, "start", "#444", &rest);
}

/// A step between ticks of 1, 2 or 5 times a power of ten.
fn tick(range: f64, wanted: f64) -> f64 {
    let rough = (range / wanted).max(f64::MIN_POSITIVE);
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|s| s * power >= rough)
        .unwrap_or(10.0);
    step * power
}

fn axis(page: &mut Page, timeline: &Timeline, top: f64, bottom: f64) {
    let step = tick(timeline.makespan, 16.0);
    for i in 0..=(timeline.makespan / step) as usize {
        let time = i as f64 * step;
        let x = page.x(time);
        page.put(format_args!(
            "<line x1=\"{x:.1}\" y1=\"{top:.1}\" x2=\"{x:.1}\" y2=\"{:.1}\" stroke=\"#000\" \
             stroke-opacity=\"0.10\"/>",
            bottom + 4.0
        ));
        page.text(x, bottom + 17.0, 11.0, "middle", "#666", &short(time));
    }
    page.text(LEFT - 8.0, bottom + 17.0, 11.0, "end", "#666", "time");
}
