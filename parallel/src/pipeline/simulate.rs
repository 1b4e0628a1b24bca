//! When each action of a plan begins and ends, how long each rank is idle, and how much memory it
//! holds.
//!
//! A rank does its actions one after the other, each as soon as its inputs are there. Collectives run
//! beside them. The run goes from event to event and costs one step per action.

mod collectives;

use std::collections::VecDeque;
use std::num::NonZeroUsize;

use self::collectives::Collectives;
use super::costs::Costs;
use super::wiring::Wiring;
use super::{Action, Kind, PlanError, Schedule};

/// How transfers take time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transfers {
    /// They run beside the compute: a send costs its rank nothing, a receive is posted early, and
    /// whoever needs the message waits for it. Messages of one channel follow each other.
    #[default]
    Overlapped,
    /// Sender and receiver meet, and both wait until the message is over.
    Blocking,
    /// A send costs nothing while fewer than so many messages of its channel wait; a receive waits
    /// for its message.
    Buffered(NonZeroUsize),
}

/// When one action begins and ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// The action.
    pub action: Action,
    /// When it begins.
    pub start: f64,
    /// When it ends.
    pub end: f64,
}

/// A plan laid out in time.
#[derive(Clone, Debug, PartialEq)]
pub struct Timeline {
    /// Per rank, each action in its order.
    pub ranks: Vec<Vec<Span>>,
    /// When the last action ends.
    pub makespan: f64,
    /// Per rank, the time in which it does not compute.
    pub idle: Vec<f64>,
    /// Per rank, the most (stage, microbatch) pairs that are live at once.
    pub peak_live: Vec<usize>,
    /// Per rank, the most bytes held at once: what is resident, and the live activations.
    pub peak_bytes: Vec<u64>,
}

impl Timeline {
    /// The idle share of all ranks' time.
    pub fn bubble(&self) -> f64 {
        let total = self.makespan * self.idle.len() as f64;
        if total > 0.0 {
            self.idle.iter().sum::<f64>() / total
        } else {
            0.0
        }
    }

    /// Per rank, how the held bytes change: `(time, bytes from then on)`, the first at time 0.
    pub fn memory(&self, schedule: &Schedule, costs: &Costs) -> Vec<Vec<(f64, u64)>> {
        let resident = resident_bytes(schedule, costs);
        let curve = |(rank, spans): (usize, &Vec<Span>)| {
            let mut held = resident[rank];
            let mut curve = vec![(0.0, held)];
            for span in spans {
                let stage = &costs.stages[span.action.stage()];
                match span.action.kind() {
                    // The room is taken when the forward begins.
                    Kind::Forward => {
                        held += stage.activation;
                        curve.push((span.start, held));
                        continue;
                    }
                    Kind::Input => held -= stage.activation - stage.kept_for_weight,
                    Kind::Weight => held -= stage.kept_for_weight,
                    Kind::Backward => held -= stage.activation,
                    _ => continue,
                }
                curve.push((span.end, held));
            }
            curve
        };
        self.ranks.iter().enumerate().map(curve).collect()
    }
}

fn resident_bytes(schedule: &Schedule, costs: &Costs) -> Vec<u64> {
    let mut bytes = vec![0; schedule.rank_count()];
    for (stage, cost) in costs.stages.iter().enumerate() {
        bytes[schedule.rank_of(stage)] += cost.resident;
    }
    bytes
}

/// A channel's messages on their way, for transfers that wait.
#[derive(Default)]
struct Channel {
    /// When the link is free again.
    free: f64,
    /// When each message that waits will be there.
    arriving: VecDeque<f64>,
    /// When each of the last messages was received, for senders that wait for room.
    taken: VecDeque<f64>,
    sent: usize,
    received: usize,
}

struct Simulator<'a> {
    schedule: &'a Schedule,
    costs: &'a Costs,
    transfers: Transfers,
    lowered: bool,
    wiring: Wiring,
    channels: Vec<Channel>,
    collectives: Collectives,
    /// By stage and microbatch: when the forward, and the input gradient, is done; NaN before.
    done: [Vec<f64>; 2],
    /// By edge and microbatch: when the activation, and the gradient, has arrived; NaN before.
    arrived: [Vec<f64>; 2],
    clock: Vec<f64>,
    spans: Vec<Vec<Span>>,
}

/// Why a rank cannot go on: it waits for this other rank.
struct Blocked(usize);

impl Simulator<'_> {
    /// Does the next action of `rank`.
    fn step(&mut self, rank: usize, action: Action) -> Result<(), Blocked> {
        match action.kind() {
            kind if kind.is_compute() => return self.compute(rank, action),
            Kind::ReduceGrad => {
                self.reduce(rank, action);
                return Ok(());
            }
            Kind::ReduceTied => {
                self.reduce_tied(rank, action);
                return Ok(());
            }
            _ => {}
        }
        let Some(channel) = self.wiring.channel_of(self.schedule, action) else {
            self.record(rank, action, self.clock[rank], self.clock[rank]);
            return Ok(());
        };
        let (src, dst) = self.wiring.ends(channel);
        let is_send = action.kind().is_send();
        match self.transfers {
            Transfers::Overlapped if is_send => {
                let (start, end) = self.post(channel, action, self.clock[rank]);
                self.spans[rank].push(Span { action, start, end });
            }
            Transfers::Overlapped => {
                let now = self.clock[rank];
                self.spans[rank].push(Span {
                    action,
                    start: now,
                    end: now,
                });
            }
            Transfers::Blocking => {
                let other = if is_send { dst } else { src };
                let head = self.schedule.ranks()[other]
                    .get(self.spans[other].len())
                    .copied();
                let Some(met) = head.filter(|_| head == action.counterpart()) else {
                    return Err(Blocked(other));
                };
                let start = self.clock[rank].max(self.clock[other]);
                let end = start + self.duration(action);
                self.arrive(action, end);
                self.record(rank, action, start, end);
                self.record(other, met, start, end);
            }
            Transfers::Buffered(depth) if is_send => {
                let state = &self.channels[channel];
                let mut ready = self.clock[rank];
                if state.sent >= depth.get() {
                    // The message `depth` before this one must have been taken.
                    let back = state.received + depth.get();
                    if state.sent >= back {
                        return Err(Blocked(dst));
                    }
                    let taken = state.taken[state.taken.len() - (back - state.sent)];
                    ready = ready.max(taken);
                }
                let (_, end) = self.post(channel, action, ready);
                let state = &mut self.channels[channel];
                state.sent += 1;
                state.arriving.push_back(end);
                self.record(rank, action, ready, ready);
            }
            Transfers::Buffered(depth) => {
                let state = &mut self.channels[channel];
                let Some(arrival) = state.arriving.pop_front() else {
                    return Err(Blocked(src));
                };
                let start = self.clock[rank];
                let end = start.max(arrival);
                state.received += 1;
                state.taken.push_back(end);
                if state.taken.len() > depth.get() {
                    state.taken.pop_front();
                }
                self.record(rank, action, start, end);
            }
        }
        Ok(())
    }

    fn compute(&mut self, rank: usize, action: Action) -> Result<(), Blocked> {
        let (stage, mb) = (action.stage(), action.microbatch());
        let graph = self.schedule.graph();
        let m = self.schedule.microbatches();
        let mut start = self.clock[rank];
        let (neighbours, direction) = match action.kind() {
            Kind::Forward => (graph.predecessors(stage), 0),
            kind if kind.yields_input_gradient() => (graph.successors(stage), 1),
            _ => (&[][..], 0),
        };
        for &other in neighbours {
            let other = usize::from(other);
            let home = self.schedule.rank_of(other);
            let ready = if home == rank {
                self.done[direction][other * m + mb]
            } else {
                let (from, to) = if direction == 0 {
                    (other, stage)
                } else {
                    (stage, other)
                };
                let Some(edge) = graph.edge(from, to) else {
                    return Err(Blocked(home));
                };
                self.arrived[direction][edge * m + mb]
            };
            if ready.is_nan() {
                return Err(Blocked(home));
            }
            start = start.max(ready);
        }
        let end = start + self.costs.stages[stage].time(action.kind(), mb);
        match action.kind() {
            Kind::Forward => self.done[0][stage * m + mb] = end,
            kind if kind.yields_input_gradient() => self.done[1][stage * m + mb] = end,
            _ => {}
        }
        self.record(rank, action, start, end);
        if !self.lowered {
            self.send_implied(action, end);
        }
        Ok(())
    }

    /// In a plan without transfers: what `action` yields leaves at once for every rank that wants
    /// it.
    fn send_implied(&mut self, action: Action, now: f64) {
        let (stage, mb) = (action.stage(), action.microbatch() as u16);
        let (kind, count) = match action.kind() {
            Kind::Forward => (
                Kind::SendForward,
                self.schedule.graph().successors(stage).len(),
            ),
            kind if kind.yields_input_gradient() => (
                Kind::SendBackward,
                self.schedule.graph().predecessors(stage).len(),
            ),
            _ => return,
        };
        for i in 0..count {
            let graph = self.schedule.graph();
            let to = match kind {
                Kind::SendForward => graph.successors(stage)[i],
                _ => graph.predecessors(stage)[i],
            };
            let send = Action::transfer(kind, stage as u16, to, mb);
            if let Some(channel) = self.wiring.channel_of(self.schedule, send) {
                self.post(channel, send, now);
            }
        }
    }

    /// Puts a message on its link; returns when it begins and when it is there.
    fn post(&mut self, channel: usize, send: Action, now: f64) -> (f64, f64) {
        let start = now.max(self.channels[channel].free);
        let end = start + self.duration(send);
        self.channels[channel].free = end;
        self.arrive(send, end);
        (start, end)
    }

    fn arrive(&mut self, transfer: Action, time: f64) {
        if let Some((edge, direction)) = Wiring::route(self.schedule, transfer) {
            let slot = edge * self.schedule.microbatches() + transfer.microbatch();
            self.arrived[direction][slot] = time;
        }
    }

    /// A transfer takes what its edge takes, which is the time of the stage where it begins.
    fn duration(&self, transfer: Action) -> f64 {
        let from = match transfer.kind() {
            Kind::SendForward | Kind::RecvBackward => transfer.stage(),
            _ => transfer.peer(),
        };
        self.costs.stages[from].transfer
    }

    fn record(&mut self, rank: usize, action: Action, start: f64, end: f64) {
        self.clock[rank] = end;
        self.spans[rank].push(Span { action, start, end });
    }
}

/// Lays a plan out in time.
///
/// Takes plans with and without transfers; in the latter what an action yields leaves as soon as it
/// is there.
///
/// # Errors
/// [`PlanError::Costs`] if the costs do not fit the plan, or if the plan gets stuck, which a plan
/// that [`super::validate()`] accepts does not.
///
/// ```
/// use phalanx_parallel::pipeline::{Costs, Named, Transfers, simulate};
///
/// let plan = Named::OneFOneB.schedule(4, 1, 8)?;
/// let time = simulate(&plan, &Costs::unit(4), Transfers::Overlapped)?;
/// assert_eq!((time.makespan, time.idle[0]), (33.0, 9.0)); // (p−1)(F+B) = 3 · 3
/// assert_eq!(time.peak_live, [4, 3, 2, 1]);
/// # Ok::<(), phalanx_parallel::pipeline::PlanError>(())
/// ```
pub fn simulate(
    schedule: &Schedule,
    costs: &Costs,
    transfers: Transfers,
) -> Result<Timeline, PlanError> {
    let (stages, m) = (schedule.stages(), schedule.microbatches());
    costs.check(stages, m)?;
    let wrong = |reason: String| Err(PlanError::Costs { reason });
    if schedule.len() < stages * m {
        return wrong(format!(
            "{stages} stages and {m} microbatches, but fewer actions"
        ));
    }
    let lists = schedule.ranks();
    for (rank, list) in lists.iter().enumerate() {
        if let Some(action) = list.iter().find(|a| a.microbatch() >= m) {
            return wrong(format!("rank {rank} has {action}, of {m} microbatches"));
        }
    }
    let lowered = schedule.has_transfers();
    let wiring = Wiring::new(schedule);
    let edges = schedule.graph().edge_count();
    let mut sim = Simulator {
        schedule,
        costs,
        transfers: if lowered {
            transfers
        } else {
            Transfers::Overlapped
        },
        lowered,
        channels: (0..wiring.len()).map(|_| Channel::default()).collect(),
        wiring,
        collectives: Collectives::new(lists.len(), stages),
        done: [vec![f64::NAN; stages * m], vec![f64::NAN; stages * m]],
        arrived: [vec![f64::NAN; edges * m], vec![f64::NAN; edges * m]],
        clock: vec![0.0; lists.len()],
        spans: lists.iter().map(|l| Vec::with_capacity(l.len())).collect(),
    };

    let mut queue: VecDeque<usize> = (0..lists.len()).collect();
    let mut queued = vec![true; lists.len()];
    let mut waiting: Vec<Vec<usize>> = vec![Vec::new(); lists.len()];
    while let Some(rank) = queue.pop_front() {
        queued[rank] = false;
        let before = sim.spans[rank].len();
        while let Some(&action) = lists[rank].get(sim.spans[rank].len()) {
            let is_transfer = action.kind().is_transfer();
            if let Err(Blocked(other)) = sim.step(rank, action) {
                waiting[other].push(rank);
                break;
            }
            // A meeting moves the other rank too.
            if is_transfer && sim.transfers == Transfers::Blocking {
                let other = schedule.rank_of(action.peer());
                for woken in std::mem::take(&mut waiting[other])
                    .into_iter()
                    .chain([other])
                {
                    if !std::mem::replace(&mut queued[woken], true) {
                        queue.push_back(woken);
                    }
                }
            }
        }
        if sim.spans[rank].len() > before {
            for woken in std::mem::take(&mut waiting[rank]) {
                if !std::mem::replace(&mut queued[woken], true) {
                    queue.push_back(woken);
                }
            }
        }
    }
    for (rank, list) in lists.iter().enumerate() {
        if let Some(action) = list.get(sim.spans[rank].len()) {
            return wrong(format!("rank {rank} never gets past {action}"));
        }
    }
    Ok(summary(schedule, costs, sim.spans))
}

fn summary(schedule: &Schedule, costs: &Costs, ranks: Vec<Vec<Span>>) -> Timeline {
    let resident = resident_bytes(schedule, costs);
    let makespan = ranks
        .iter()
        .flatten()
        .map(|span| span.end)
        .fold(0.0, |a: f64, b| a.max(b));
    let mut timeline = Timeline {
        makespan,
        idle: Vec::with_capacity(ranks.len()),
        peak_live: Vec::with_capacity(ranks.len()),
        peak_bytes: Vec::with_capacity(ranks.len()),
        ranks: Vec::new(),
    };
    for (spans, resident) in ranks.iter().zip(resident) {
        let (mut busy, mut live, mut most_live) = (0.0, 0usize, 0);
        let (mut held, mut most_held) = (resident, resident);
        for span in spans {
            let stage = &costs.stages[span.action.stage()];
            let kind = span.action.kind();
            if kind.is_compute() {
                busy += stage.time(kind, span.action.microbatch());
            }
            // Saturating: a plan that is wrong may let go of what it does not hold.
            match kind {
                Kind::Forward => {
                    live += 1;
                    held += stage.activation;
                }
                Kind::Input => {
                    held = held.saturating_sub(stage.activation - stage.kept_for_weight);
                }
                Kind::Weight => {
                    live = live.saturating_sub(1);
                    held = held.saturating_sub(stage.kept_for_weight);
                }
                Kind::Backward => {
                    live = live.saturating_sub(1);
                    held = held.saturating_sub(stage.activation);
                }
                _ => {}
            }
            most_live = most_live.max(live);
            most_held = most_held.max(held);
        }
        timeline.idle.push(makespan - busy);
        timeline.peak_live.push(most_live);
        timeline.peak_bytes.push(most_held);
    }
    timeline.ranks = ranks;
    timeline
}
