//! A timeline as SVG: a lane per rank, its actions by colour and number, its idle time left bare,
//! and below it how much each rank holds.

use std::fmt::Write as _;

use super::super::{Costs, Kind, Schedule, Span, Timeline};

const LEFT: f64 = 64.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 70.0;
const MEMORY: f64 = 130.0;

/// The picture of a plan that runs in the given time.
///
/// The hue is the kind of action, the shade is the stage among those of its rank, the number is the
/// microbatch; hovering over a box tells all of it. Legible up to some 16 ranks; more are drawn
/// smaller.
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
    let memory_top = lanes_end + 56.0;
    let height = memory_top + MEMORY + 44.0;
    let width = LEFT + lanes + RIGHT;
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
    legend(&mut page, schedule, timeline);
    for rank in 0..ranks {
        draw_lane(
            &mut page,
            schedule,
            timeline,
            rank,
            TOP + lane * rank as f64,
            lane,
        );
    }
    axis(&mut page, timeline, TOP, lanes_end);
    memory(&mut page, schedule, timeline, costs, memory_top);
    page.put(format_args!("</svg>"));
    page.out
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

fn legend(page: &mut Page, schedule: &Schedule, timeline: &Timeline) {
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
    page.text(
        x + 62.0,
        y,
        12.0,
        "start",
        "#444",
        &format!("number: microbatch{shades}"),
    );
}

fn draw_lane(
    page: &mut Page,
    schedule: &Schedule,
    timeline: &Timeline,
    rank: usize,
    top: f64,
    lane: f64,
) {
    let (y, h) = (top + 1.5, lane - 3.0);
    let middle = top + lane / 2.0;
    let size = (lane * 0.42).min(12.0);
    let lanes = page.right - LEFT;
    let stages: Vec<usize> = schedule.stages_of(rank).collect();
    page.text(
        LEFT - 8.0,
        middle + size * 0.36,
        size + 1.0,
        "end",
        "#222",
        &format!("rank {rank}"),
    );
    page.put(format_args!(
        "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{lanes:.1}\" height=\"{h:.1}\" fill=\"#f0eeea\"/>"
    ));
    for span in &timeline.ranks[rank] {
        draw_span(page, span, &stages, y, h, size);
    }
    let idle = timeline.idle[rank];
    let share = 100.0 * idle / timeline.makespan.max(f64::MIN_POSITIVE);
    let note = format!("idle {} ({share:.0} %)", short(idle));
    page.text(
        page.right + 8.0,
        middle + size * 0.36,
        size,
        "start",
        "#555",
        &note,
    );
}

fn draw_span(page: &mut Page, span: &Span, stages: &[usize], y: f64, h: f64, size: f64) {
    let kind = span.action.kind();
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
    if !kind.is_compute() {
        // Transfers run beside the compute: a line at the foot of the lane.
        let foot = y + h - 3.0;
        page.put(format_args!(
            "<rect x=\"{x:.2}\" y=\"{foot:.1}\" width=\"{w:.2}\" height=\"3\" fill=\"#a5559f\">\
             <title>{title}</title></rect>"
        ));
        return;
    }
    let place = stages
        .iter()
        .position(|&s| s == span.action.stage())
        .unwrap_or(0);
    let fill = colour(kind, place, stages.len());
    // A hair of the lane shows between boxes, so that their ends are seen.
    let inner = (w - 0.6).max(w * 0.7);
    page.put(format_args!(
        "<rect x=\"{x:.2}\" y=\"{y:.1}\" width=\"{inner:.2}\" height=\"{h:.1}\" fill=\"{fill}\">\
         <title>{title}</title></rect>"
    ));
    let label = span.action.microbatch().to_string();
    let size = size.min(1.5 * (w - 1.0) / page.digits as f64);
    if size >= 4.5 {
        let dark = stages.len() > 1 && place * 2 >= stages.len() && kind != Kind::Weight;
        let ink = if dark { "#fff" } else { "#1a1a1a" };
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

/// From violet for the first rank to yellow-green for the last.
fn rank_colour(rank: usize, ranks: usize) -> String {
    let share = rank as f64 / (ranks.max(2) - 1) as f64;
    format!(
        "hsl({:.0},65%,{:.0}%)",
        285.0 - 215.0 * share,
        42.0 + 4.0 * share
    )
}

fn memory(page: &mut Page, schedule: &Schedule, timeline: &Timeline, costs: &Costs, top: f64) {
    let curves = timeline.memory(schedule, costs);
    let peak = curves
        .iter()
        .flatten()
        .map(|&(_, b)| b)
        .max()
        .unwrap_or(0)
        .max(1) as f64;
    let bottom = top + MEMORY;
    let y = |held: f64| bottom - held / peak * MEMORY;
    page.text(LEFT, top - 10.0, 12.0, "start", "#222", "held by each rank");
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
        page.text(LEFT - 8.0, y(held) + 4.0, 11.0, "end", "#666", &bytes(held));
    }
    let ranks = curves.len();
    for (rank, curve) in curves.iter().enumerate() {
        // Lines that coincide are set off against each other by a little.
        let shift = (rank as f64 - (ranks as f64 - 1.0) / 2.0) * (8.0 / ranks as f64).min(1.6);
        let mut path = String::new();
        let mut last = None;
        for (i, &(time, held)) in curve.iter().enumerate() {
            // What is let go and taken again in one moment is no dip.
            if curve.get(i + 1).is_some_and(|&(next, _)| next == time) {
                continue;
            }
            let (px, py) = (page.x(time), y(held as f64) - shift);
            let _ = match last {
                None => write!(path, "M{px:.1} {py:.1}"),
                Some(_) => write!(path, "H{px:.1}V{py:.1}"),
            };
            last = Some(py);
        }
        let _ = write!(path, "H{:.1}", page.right);
        let stroke = rank_colour(rank, ranks);
        page.put(format_args!(
            "<path d=\"{path}\" fill=\"none\" stroke=\"{stroke}\" stroke-width=\"1.6\">\
             <title>rank {rank}</title></path>"
        ));
    }
    // The key stands in columns beside the curves: rank and peak.
    let rows = 10;
    let columns = ranks.div_ceil(rows).min(3);
    for rank in 0..ranks.min(rows * columns) {
        let (column, row) = (rank / rows, rank % rows);
        let x = page.right + 8.0 + column as f64 * (RIGHT - 8.0) / columns as f64;
        let py = top + 4.0 + 13.0 * row as f64;
        page.put(format_args!(
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"9\" height=\"9\" fill=\"{}\"/>",
            py - 8.0,
            rank_colour(rank, ranks)
        ));
        let label = match columns {
            1 => format!(
                "rank {rank}: peak {}",
                bytes(timeline.peak_bytes[rank] as f64)
            ),
            _ => format!("{rank}: {}", bytes(timeline.peak_bytes[rank] as f64)),
        };
        page.text(x + 13.0, py, 10.5, "start", "#444", &label);
    }
}
