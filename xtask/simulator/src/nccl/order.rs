//! The order between the calls of several ranks: what a collective orders, and calls that wait for each other in a circle.
//!
//! One meeting is before another one if some rank's streams end its call of the first before they begin its call of the
//! second. Meetings that are before each other never end. That follows from the calls of the program alone, so that it is
//! found with every seed.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::meeting::{Meeting, Placed};
use crate::device::clock::Clock;
use crate::device::state::State;

/// The meetings that somebody has called and that have not ended.
static OPEN: Mutex<Vec<Weak<Meeting>>> = Mutex::new(Vec::new());

/// Orders the ends of a meeting that all have called after all its beginnings.
pub fn join(state: &mut State, calls: &[Placed]) {
    let mut known = Clock::default();
    for placed in calls {
        known.join(&placed.place.clock);
    }
    for placed in calls {
        state.order_after(placed.place.stream, placed.place.finish, &known);
    }
    let ends = calls.iter().map(|c| (c.place.stream, c.place.finish));
    state.trace.meet(&ends.collect::<Vec<_>>());
}

/// Takes in a meeting that has one more call. A sentence, if with it some meetings wait for each other.
pub fn circle(meeting: &Arc<Meeting>) -> Option<String> {
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    open.retain(|other| other.upgrade().is_some_and(|other| !other.is_complete()));
    let all: Vec<Arc<Meeting>> = open.iter().filter_map(Weak::upgrade).collect();
    if !all.iter().any(|other| Arc::ptr_eq(other, meeting)) {
        // With one call nobody waits for it yet.
        open.push(Arc::downgrade(meeting));
        return None;
    }
    drop(open);
    let calls: Vec<Vec<Placed>> = all.iter().map(|meeting| meeting.calls()).collect();
    let start = all.iter().position(|other| Arc::ptr_eq(other, meeting))?;
    // What is after the meeting, with the one that it was reached from.
    let mut from = vec![None; all.len()];
    let mut next = vec![start];
    while let Some(at) = next.pop() {
        for to in 0..all.len() {
            if to == at || !is_before(&calls[at], &calls[to]) {
                continue;
            }
            if to == start {
                return report(&all, &calls, &from, start, at);
            }
            if from[to].is_none() {
                from[to] = Some(at);
                next.push(to);
            }
        }
    }
    None
}

/// The two calls of one rank, or of two ranks whose streams are ordered, that put one meeting before another.
fn reason<'a>(first: &'a [Placed], second: &'a [Placed]) -> Option<(&'a Placed, &'a Placed)> {
    let pairs = first
        .iter()
        .flat_map(|a| second.iter().map(move |b| (a, b)));
    let mut before = pairs.filter(|(a, b)| b.place.clock.get(a.place.stream) >= a.place.finish);
    before.next()
}

fn is_before(first: &[Placed], second: &[Placed]) -> bool {
    reason(first, second).is_some()
}

fn report(
    all: &[Arc<Meeting>],
    calls: &[Vec<Placed>],
    from: &[Option<usize>],
    start: usize,
    last: usize,
) -> Option<String> {
    let mut path = vec![start, last];
    let mut at = last;
    while at != start {
        at = from[at]?;
        path.push(at);
    }
    path.reverse();
    let mut known = false;
    for at in &path[1..] {
        known |= all[*at].report_circle();
    }
    let steps = path.windows(2).filter_map(|step| {
        let (a, b) = reason(&calls[step[0]], &calls[step[1]])?;
        Some(format!(
            "rank {} calls {} and then, on rank {}, {}",
            a.rank, a.call, b.rank, b.call
        ))
    });
    let sentence = format!(
        "Deadlock: ranks make calls of NCCL in orders that wait for each other: {}. Calls that belong together stand \
         between ncclGroupStart and ncclGroupEnd, and all ranks make the others in the same order.",
        steps.collect::<Vec<_>>().join("; ")
    );
    (!known).then_some(sentence)
}
