//! A plan as a Chrome trace: a track per rank, an arrow per transfer, a counter of the bytes that each rank holds.

use super::super::{Costs, Kind, Schedule, Timeline};
use crate::chrome_trace::{Page, Track};

/// A timeline in the Trace Event Format of Chrome, which Perfetto opens; `microseconds` is how long one unit of the costs'
/// time is drawn.
///
/// ```
/// use phalanx_parallel::pipeline::*;
///
/// let plan = Named::OneFOneB.schedule(2, 1, 2)?;
/// let costs = Costs::unit(2);
/// let time = simulate(&plan, &costs, Transfers::Overlapped)?;
/// let trace = render::chrome_trace(&plan, &time, &costs, 1000.0);
/// assert!(trace.contains(r#""name":"1B0","cat":"B","ph":"X","pid":0,"tid":1,"ts":2000,"dur":2000"#));
/// # Ok::<(), PlanError>(())
/// ```
pub fn chrome_trace(
    schedule: &Schedule,
    timeline: &Timeline,
    costs: &Costs,
    microseconds: f64,
) -> String {
    let mut page = Page::default();
    let track = |rank| Track {
        process: 0,
        thread: rank,
    };
    for rank in 0..timeline.ranks.len() {
        page.name_track(track(rank), &format!("rank {rank}"));
    }
    let m = schedule.microbatches();
    // When each forward and each input gradient begins and ends, for the arrows.
    let mut computed = vec![[None; 2]; schedule.stages() * m];
    for (rank, spans) in timeline.ranks.iter().enumerate() {
        for span in spans {
            let (kind, ts) = (span.action.kind(), span.start * microseconds);
            let dur = (span.end - span.start) * microseconds;
            if !kind.is_compute() && dur == 0.0 {
                continue;
            }
            let (stage, mb) = (span.action.stage(), span.action.microbatch());
            let track = track(rank);
            page.event(format_args!(
                r#"{{"name":"{}","cat":"{kind}","ph":"X",{track},"ts":{ts},"dur":{dur},"args":{{"stage":{stage},"microbatch":{mb}}}}}"#,
                span.action
            ));
            if kind == Kind::Forward {
                computed[stage * m + mb][0] = Some((span.start, span.end));
            } else if kind.yields_input_gradient() {
                computed[stage * m + mb][1] = Some((span.start, span.end));
            }
        }
    }
    let mut id = 0;
    for (from, to) in schedule.graph().edges() {
        let (a, b) = (schedule.rank_of(from), schedule.rank_of(to));
        if a == b {
            continue;
        }
        for mb in 0..m {
            let (near, far) = (computed[from * m + mb], computed[to * m + mb]);
            let arrows = [
                ("activation", a, near[0], b, far[0]),
                ("gradient", b, far[1], a, near[1]),
            ];
            for (name, src, sent, dst, used) in arrows {
                let (Some((begun, ended)), Some((start, _))) = (sent, used) else {
                    continue;
                };
                // An arrow begins inside a box, so a little before its end.
                let out = (begun + (ended - begun) * 0.99) * microseconds;
                let into = start * microseconds;
                let (src, dst) = (track(src), track(dst));
                page.event(format_args!(
                    r#"{{"name":"{name}","cat":"transfer","ph":"s","id":{id},{src},"ts":{out}}}"#
                ));
                page.event(format_args!(
                    r#"{{"name":"{name}","cat":"transfer","ph":"f","bp":"e","id":{id},{dst},"ts":{into}}}"#
                ));
                id += 1;
            }
        }
    }
    for (rank, curve) in timeline.memory(schedule, costs).iter().enumerate() {
        for (time, bytes) in curve {
            let ts = time * microseconds;
            page.event(format_args!(
                r#"{{"name":"held by rank {rank}","ph":"C","pid":0,"ts":{ts},"args":{{"bytes":{bytes}}}}}"#
            ));
        }
    }
    page.write()
}
