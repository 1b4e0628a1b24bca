//! The second pass: all ranks together, without time.

use std::collections::VecDeque;

use super::super::wiring::Wiring;
use super::super::{Action, Kind, Schedule};
use super::{Fault, Finding, Sends, Wait};

/// Ranks that may be able to go on.
struct Ready {
    queue: VecDeque<usize>,
    queued: Vec<bool>,
}

impl Ready {
    fn all(ranks: usize) -> Self {
        Self {
            queue: (0..ranks).collect(),
            queued: vec![true; ranks],
        }
    }

    fn push(&mut self, rank: usize) {
        if !std::mem::replace(&mut self.queued[rank], true) {
            self.queue.push_back(rank);
        }
    }

    fn pop(&mut self) -> Option<usize> {
        let rank = self.queue.pop_front()?;
        self.queued[rank] = false;
        Some(rank)
    }
}

/// Runs a lowered plan whose ranks are each right for themselves.
pub(super) fn lowered(schedule: &Schedule, sends: Sends) -> Result<(), Finding> {
    let wiring = Wiring::new(schedule);
    let lists = schedule.ranks();
    let mut at = vec![0usize; lists.len()];
    let mut ready = Ready::all(lists.len());
    let mut in_flight: Vec<VecDeque<Action>> = vec![VecDeque::new(); wiring.len()];
    let out_of_order = |rank, index, receive, sent, sender| {
        Err(Finding {
            rank,
            index,
            fault: Fault::OutOfOrder {
                receive,
                sent,
                sender,
            },
        })
    };
    while let Some(rank) = ready.pop() {
        while let Some(&action) = lists[rank].get(at[rank]) {
            if let Some(other) = tied_rank(schedule, rank, action) {
                if !meet(schedule, &mut at, (rank, action), other) {
                    break;
                }
                // Their messages go the same ways as transfers, which come before them or behind them.
                let ends = |c: &usize| wiring.ends(*c);
                let late = (0..wiring.len()).find(|c| {
                    let between = [(rank, other), (other, rank)].contains(&ends(c));
                    between && !in_flight[*c].is_empty()
                });
                if let Some((channel, &sent)) = late.and_then(|c| Some((c, in_flight[c].front()?)))
                {
                    let (src, dst) = ends(&channel);
                    let receive = lists[dst][at[dst] - 1];
                    return out_of_order(dst, at[dst] - 1, receive, sent, src);
                }
                ready.push(other);
                continue;
            }
            // The first pass has found a channel for every transfer.
            let Some(channel) = wiring.channel_of(schedule, action) else {
                at[rank] += 1;
                continue;
            };
            let (src, dst) = wiring.ends(channel);
            let is_send = action.kind().is_send();
            let other = if is_send { dst } else { src };
            match sends {
                Sends::Blocking => {
                    let met = lists[other].get(at[other]).copied().filter(|&head| {
                        head.kind().is_transfer()
                            && head.kind().is_send() != is_send
                            && wiring.channel_of(schedule, head) == Some(channel)
                    });
                    let Some(met) = met else { break };
                    if Some(met) != action.counterpart() {
                        let (receive, sent) = if is_send {
                            (met, action)
                        } else {
                            (action, met)
                        };
                        return out_of_order(dst, at[dst], receive, sent, src);
                    }
                    at[other] += 1;
                }
                Sends::Buffered(depth) if is_send => {
                    if in_flight[channel].len() >= depth.get() {
                        break;
                    }
                    in_flight[channel].push_back(action);
                }
                Sends::Buffered(_) => {
                    let Some(sent) = in_flight[channel].pop_front() else {
                        break;
                    };
                    if Some(sent) != action.counterpart() {
                        return out_of_order(rank, at[rank], action, sent, src);
                    }
                }
            }
            at[rank] += 1;
            ready.push(other);
        }
    }
    stuck(schedule, &at, |rank, action| {
        if let Some(other) = tied_rank(schedule, rank, action) {
            return Some(other);
        }
        let channel = wiring.channel_of(schedule, action)?;
        let (src, dst) = wiring.ends(channel);
        Some(if action.kind().is_send() { dst } else { src })
    })
}

/// The rank with which this one does a `REDUCE_TIED`, where that is another one: both do theirs together.
fn tied_rank(schedule: &Schedule, rank: usize, action: Action) -> Option<usize> {
    let other = schedule.rank_of(action.peer());
    (action.kind() == Kind::ReduceTied && other != rank).then_some(other)
}

/// Whether the other rank has come to the other end of an action; then both have done it.
fn meet(
    schedule: &Schedule,
    at: &mut [usize],
    (rank, action): (usize, Action),
    other: usize,
) -> bool {
    let head = schedule.ranks()[other].get(at[other]).copied();
    let met = head == action.counterpart();
    if met {
        at[rank] += 1;
        at[other] += 1;
    }
    met
}

/// What an action still waits for on another rank, by the table of what is done.
fn blocker(schedule: &Schedule, done: &[u8], rank: usize, action: Action) -> Option<usize> {
    let (neighbours, bit) = match action.kind() {
        Kind::Forward => (schedule.graph().predecessors(action.stage()), 1),
        kind if kind.yields_input_gradient() => (schedule.graph().successors(action.stage()), 2),
        _ => return None,
    };
    neighbours
        .iter()
        .map(|&s| usize::from(s))
        .find_map(|stage| {
            let home = schedule.rank_of(stage);
            let slot = stage * schedule.microbatches() + action.microbatch();
            (home != rank && done[slot] & bit == 0).then_some(home)
        })
}

/// Runs a plan without transfers whose ranks are each right for themselves.
pub(super) fn compute_only(schedule: &Schedule) -> Result<(), Finding> {
    let lists = schedule.ranks();
    let mut at = vec![0usize; lists.len()];
    let mut ready = Ready::all(lists.len());
    // By stage and microbatch: 1 the forward is done, 2 the input gradient.
    let mut done = vec![0u8; schedule.stages() * schedule.microbatches()];
    let mut waiting: Vec<Vec<usize>> = vec![Vec::new(); lists.len()];
    while let Some(rank) = ready.pop() {
        let before = at[rank];
        while let Some(&action) = lists[rank].get(at[rank]) {
            if let Some(other) = tied_rank(schedule, rank, action) {
                if !meet(schedule, &mut at, (rank, action), other) {
                    waiting[other].push(rank);
                    break;
                }
                ready.push(other);
                for waiter in std::mem::take(&mut waiting[other]) {
                    ready.push(waiter);
                }
                continue;
            }
            if let Some(home) = blocker(schedule, &done, rank, action) {
                waiting[home].push(rank);
                break;
            }
            let slot = action.stage() * schedule.microbatches() + action.microbatch();
            if action.kind() == Kind::Forward {
                done[slot] |= 1;
            } else if action.kind().yields_input_gradient() {
                done[slot] |= 2;
            }
            at[rank] += 1;
        }
        if at[rank] > before {
            for waiter in std::mem::take(&mut waiting[rank]) {
                ready.push(waiter);
            }
        }
    }
    stuck(schedule, &at, |rank, action| {
        tied_rank(schedule, rank, action).or_else(|| blocker(schedule, &done, rank, action))
    })
}

/// Finds the circle in which ranks wait, if any has not come to its end.
fn stuck(
    schedule: &Schedule,
    at: &[usize],
    waits_for: impl Fn(usize, Action) -> Option<usize>,
) -> Result<(), Finding> {
    let wait = |rank: usize| {
        let action = *schedule.ranks()[rank].get(at[rank])?;
        Some(Wait {
            rank,
            index: at[rank],
            action,
            waits_for: waits_for(rank, action)?,
        })
    };
    let Some(mut here) = (0..at.len()).find_map(wait) else {
        return Ok(());
    };
    // Whoever is waited for waits too: all that is needed stands in some list. So following the
    // waits comes round.
    let mut path: Vec<Wait> = Vec::new();
    let mut seen = vec![false; at.len()];
    while !std::mem::replace(&mut seen[here.rank], true) {
        path.push(here);
        match wait(here.waits_for) {
            Some(next) => here = next,
            None => break,
        }
    }
    let from = path.iter().position(|w| w.rank == here.rank).unwrap_or(0);
    let circle = path.split_off(from);
    let (rank, index) = (circle[0].rank, circle[0].index);
    Err(Finding {
        rank,
        index,
        fault: Fault::Deadlock { circle },
    })
}
