//! A block in which every thread waits: says who waits where, and what for.

use std::collections::BTreeMap;

use super::engine::Runner;
use super::finding::{Finding, FindingKind};

/// Where a thread waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Spot {
    Barrier { site: u32, id: usize },
    Warp { site: u32, mask: u32 },
}

/// The finding for a block that cannot go on.
pub fn explain(runner: &Runner<'_>) -> Finding {
    let mut spots: BTreeMap<Spot, Vec<u32>> = BTreeMap::new();
    for (id, barrier) in runner.worker.barriers.all.iter().enumerate() {
        for thread in &barrier.waiting {
            let spot = Spot::Barrier {
                site: barrier.site,
                id,
            };
            spots.entry(spot).or_default().push(*thread);
        }
    }
    for (warp, groups) in runner.worker.warps.groups.iter().enumerate() {
        for group in groups {
            let lanes = (0..32).filter(|lane| group.arrived >> lane & 1 == 1);
            let spot = Spot::Warp {
                site: group.site,
                mask: group.mask,
            };
            spots
                .entry(spot)
                .or_default()
                .extend(lanes.map(|lane| warp as u32 * 32 + lane));
        }
    }
    let describe = |(spot, threads): (&Spot, &Vec<u32>)| {
        let [x, y, z] = runner.who(threads[0]).thread;
        let others = match threads.len() {
            1 => format!("thread ({x}, {y}, {z}) waits"),
            count => format!("thread ({x}, {y}, {z}) and {} others wait", count - 1),
        };
        match spot {
            Spot::Barrier { site, id: 0 } => {
                format!("{others} at the barrier of {}", runner.kernel.line(*site))
            }
            Spot::Barrier { site, id } => {
                format!("{others} at barrier {id} of {}", runner.kernel.line(*site))
            }
            Spot::Warp { site, mask } => {
                let (text, line) = (runner.kernel.instruction(*site), runner.kernel.line(*site));
                format!("{others} in {text} of {line} for the lanes {mask:#010x} of the warp")
            }
        }
    };
    let all: Vec<String> = spots.iter().map(describe).collect();
    let in_warp = spots.keys().find_map(|spot| match spot {
        Spot::Warp { site, .. } => Some(*site),
        Spot::Barrier { .. } => None,
    });
    let first = spots.iter().next();
    let (kind, site) = match (in_warp, first) {
        (Some(site), _) => (FindingKind::BadWarpMask, site),
        (None, Some((Spot::Barrier { site, .. }, _))) if spots.len() > 1 => {
            (FindingKind::DivergentBarrier, *site)
        }
        (None, Some((Spot::Barrier { site, .. }, _))) => (FindingKind::Deadlock, *site),
        _ => (FindingKind::Deadlock, 0),
    };
    let who = runner.who(first.map_or(0, |(_, threads)| threads[0]));
    let [x, y, z] = who.block;
    Finding {
        kind,
        message: format!(
            "kernel '{}', {}: block ({x}, {y}, {z}) cannot go on: {}",
            runner.kernel.name,
            runner.kernel.line(site),
            all.join("; ")
        ),
    }
}
