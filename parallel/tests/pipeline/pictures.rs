//! Pictures show every action, once, at its time.

use phalanx_parallel::pipeline::*;
use serde_json::Value;

fn timeline(named: Named, p: usize, v: usize, m: usize) -> (Schedule, Timeline, Costs) {
    let plan = named.schedule(p, v, m).unwrap();
    let costs = Costs::unit(plan.stages()).with_transfer(0.25);
    let time = simulate(&plan, &costs, Transfers::Overlapped).unwrap();
    (plan, time, costs)
}

#[test]
fn the_trace_is_json_with_every_action() {
    let (plan, time, costs) = timeline(Named::Zb1p, 4, 2, 8);
    let trace = render::chrome_trace(&plan, &time, &costs, 1000.0);
    let trace: Value = serde_json::from_str(&trace).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let of = |ph: &str| events.iter().filter(|e| e["ph"] == ph).collect::<Vec<_>>();
    let boxes = of("X");
    assert_eq!(boxes.len(), plan.len());
    for (event, span) in boxes.iter().zip(time.ranks.iter().flatten()) {
        assert_eq!(event["name"], span.action.to_string());
        assert_eq!(event["ts"].as_f64().unwrap(), span.start * 1000.0);
        assert_eq!(
            event["dur"].as_f64().unwrap(),
            (span.end - span.start) * 1000.0
        );
    }
    // An arrow each way over each of the 7 edges between ranks, for each of 8 microbatches, and
    // none of them points back in time.
    let (sent, received) = (of("s"), of("f"));
    assert_eq!((sent.len(), received.len()), (2 * 7 * 8, 2 * 7 * 8));
    for (a, b) in sent.iter().zip(received) {
        assert_eq!(a["id"], b["id"]);
        assert!(a["ts"].as_f64().unwrap() <= b["ts"].as_f64().unwrap());
    }
    assert_eq!(of("M").len(), 4);
    assert!(
        of("C")
            .iter()
            .any(|e| e["args"]["bytes"] == time.peak_bytes[0])
    );
}

#[test]
fn the_svg_has_a_box_for_every_action_and_escapes_its_title() {
    for (p, m) in [(4, 8), (16, 32)] {
        let (plan, time, costs) = timeline(Named::OneFOneB, p, 1, m);
        let picture = render::svg(&plan, &time, &costs, "a < b & c");
        assert!(picture.contains(">a &lt; b &amp; c</text>"));
        assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
        for span in time.ranks.iter().flatten() {
            let title = format!("<title>{}: ", span.action);
            assert_eq!(picture.matches(&title).count(), 1, "{title}");
        }
        for rank in 0..p {
            assert!(picture.contains(&format!(">rank {rank}</text>")));
        }
        // Every opened element is closed.
        let opened = picture.matches('<').count();
        let closing = picture.matches("</").count();
        let empty = picture.matches("/>").count();
        assert_eq!(opened, 2 * closing + empty);
    }
}

#[test]
fn the_memory_curve_peaks_where_the_simulator_says() {
    let (plan, time, costs) = timeline(Named::Zbv, 4, 2, 10);
    for (curve, peak) in time.memory(&plan, &costs).iter().zip(&time.peak_bytes) {
        assert_eq!(curve.iter().map(|&(_, held)| held).max().unwrap(), *peak);
        assert_eq!(curve.last().unwrap().1, 0);
        assert!(curve.windows(2).all(|w| w[0].0 <= w[1].0));
    }
}

/// A text of a picture and the box that it takes, by the widths of DejaVu Sans, rounded up.
struct Text {
    text: String,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

fn attribute<'a>(element: &'a str, name: &str) -> &'a str {
    let start = element.find(&format!(" {name}=\"")).unwrap() + name.len() + 3;
    element[start..].split('"').next().unwrap()
}

fn texts(picture: &str) -> Vec<Text> {
    let elements = picture.split("<text").skip(1);
    elements
        .map(|element| {
            let number = |name| attribute(element, name).parse::<f64>().unwrap();
            let (x, y, size) = (number("x"), number("y"), number("font-size"));
            let text = element.split(['>', '<']).nth(1).unwrap().to_string();
            let width = 0.64 * size * text.chars().count() as f64;
            let left = match attribute(element, "text-anchor") {
                "start" => x,
                "middle" => x - width / 2.0,
                _ => x - width,
            };
            Text {
                text,
                left,
                right: left + width,
                top: y - 0.74 * size,
                bottom: y + 0.1 * size,
            }
        })
        .collect()
}

#[test]
fn every_rank_is_named_inside_the_picture_and_no_text_covers_another() {
    for (named, p, v, m) in [
        (Named::OneFOneB, 4, 1, 8),
        (Named::Zb1p, 8, 2, 16),
        (Named::OneFOneB, 16, 1, 32),
        (Named::OneFOneB, 64, 1, 256),
        (Named::OneFOneB, 100, 1, 300),
    ] {
        let plan = named.schedule(p, v, m).unwrap();
        let costs = Costs::unit(plan.stages());
        let time = simulate(&plan, &costs, Transfers::Overlapped).unwrap();
        let picture = render::svg(&plan, &time, &costs, "a title: 64 ranks, 256 microbatches");
        assert!(
            picture.len() < 1_000_000,
            "{p} ranks: {} bytes",
            picture.len()
        );

        let view = attribute(&picture, "viewBox").split(' ');
        let view: Vec<f64> = view.map(|n| n.parse().unwrap()).collect();
        let texts = texts(&picture);
        for t in &texts {
            let inside = t.left >= 0.0 && t.right <= view[2] && t.top >= 0.0 && t.bottom <= view[3];
            assert!(inside, "{p} ranks: `{}` is cut off", t.text);
        }
        for rank in 0..p {
            let lane = format!("rank {rank}");
            let key = format!("rank {rank}: peak {}", time.peak_bytes[rank]);
            for name in [lane, key] {
                let found = texts.iter().filter(|t| t.text == name).count();
                assert_eq!(found, 1, "{p} ranks: `{name}`");
            }
        }
        assert!(
            texts
                .iter()
                .any(|t| t.text == "held by each rank, in microbatches of a stage")
        );
        for (i, a) in texts.iter().enumerate() {
            for b in &texts[i + 1..] {
                let apart = a.right <= b.left
                    || b.right <= a.left
                    || a.bottom <= b.top
                    || b.bottom <= a.top;
                assert!(apart, "{p} ranks: `{}` and `{}` overlap", a.text, b.text);
            }
        }
    }
}

#[test]
fn memory_never_dips_below_nothing_and_bytes_are_called_so() {
    let plan = Named::OneFOneB.schedule(8, 1, 16).unwrap();
    let mut costs = Costs::unit(8);
    for stage in &mut costs.stages {
        (stage.activation, stage.resident) = (1 << 20, 1 << 22);
    }
    let time = simulate(&plan, &costs, Transfers::Overlapped).unwrap();
    let picture = render::svg(&plan, &time, &costs, "bytes");
    assert!(picture.contains("held by each rank, in bytes"));
    assert!(picture.contains("peak 12 MiB"), "8 + 4 MiB on rank 0");

    let costs = Costs::unit(8);
    let time = simulate(&plan, &costs, Transfers::Overlapped).unwrap();
    let picture = render::svg(&plan, &time, &costs, "counts");
    // Gridlines go across; the lowest is that of 0.
    let lines = picture.split("<line").skip(1);
    let level = lines.filter(|l| attribute(l, "y1") == attribute(l, "y2"));
    let zero = level.map(|l| attribute(l, "y1").parse::<f64>().unwrap());
    let zero = zero.fold(0.0, f64::max);
    let curves = picture.split("<path d=\"").skip(1);
    for curve in curves {
        let path = curve.split('"').next().unwrap();
        let start = path.split(' ').nth(1).unwrap();
        let heights = path.split('V').skip(1).chain([start]);
        for height in heights {
            let height = height.split('H').next().unwrap().parse::<f64>().unwrap();
            assert!(height <= zero, "{height} is below {zero}");
        }
    }
}
