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
