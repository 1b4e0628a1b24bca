//! The grid around a fault, with the offending action in brackets.

use std::fmt::Write as _;

use super::super::Schedule;
use super::Fault;

/// Actions shown on each side of a mark, and ranks shown at most.
const REACH: usize = 6;
const RANKS: usize = 16;

/// A line per rank: those that are part of the fault, and as many others as have room.
pub(super) fn draw(schedule: &Schedule, rank: usize, index: usize, fault: &Fault) -> String {
    let mut marks = vec![(rank, index)];
    if let Fault::Deadlock { circle } = fault {
        marks = circle.iter().map(|w| (w.rank, w.index)).collect();
    }
    let ranks = schedule.rank_count();
    let mut shown: Vec<usize> = marks.iter().map(|&(r, _)| r).take(RANKS).collect();
    let first = rank
        .saturating_sub(RANKS / 2)
        .min(ranks.saturating_sub(RANKS));
    for r in first..ranks {
        if shown.len() < RANKS && !shown.contains(&r) {
            shown.push(r);
        }
    }
    shown.sort_unstable();
    shown.dedup();

    let mut out = String::new();
    let mut previous = None;
    for r in shown {
        if r > previous.map_or(0, |p| p + 1) {
            out.push_str("  ⋮\n");
        }
        previous = Some(r);
        let mark = marks.iter().find(|&&(at, _)| at == r).map(|&(_, i)| i);
        draw_rank(&mut out, schedule, r, mark, index);
    }
    if previous.is_some_and(|p| p + 1 < ranks) {
        out.push_str("  ⋮\n");
    }
    out
}

/// One line: the rank's actions around the mark, or around where the mark is elsewhere.
fn draw_rank(out: &mut String, schedule: &Schedule, rank: usize, mark: Option<usize>, near: usize) {
    let list = &schedule.ranks()[rank];
    let centre = mark.unwrap_or(near).min(list.len());
    let (first, last) = if list.len() <= 2 * REACH + 1 {
        (0, list.len())
    } else {
        (
            centre.saturating_sub(REACH),
            (centre + REACH + 1).min(list.len()),
        )
    };
    // Writing to a String cannot fail.
    let _ = write!(out, "  rank {rank}:");
    if first > 0 {
        out.push_str(" …");
    }
    for (i, action) in list.iter().enumerate().take(last).skip(first) {
        let _ = match mark {
            Some(at) if at == i => write!(out, " [{action}]"),
            _ => write!(out, " {action}"),
        };
    }
    match mark {
        Some(at) if at >= list.len() => out.push_str(" [ ]"),
        _ if last < list.len() => out.push_str(" …"),
        _ => {}
    }
    out.push('\n');
}
