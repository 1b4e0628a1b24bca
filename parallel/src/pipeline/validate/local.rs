//! The first pass: each rank for itself, in its own order.

use std::collections::HashSet;

use super::super::wiring::Wiring;
use super::super::{Action, Kind, Schedule};
use super::{Fault, Finding, Rules};

/// What has been done for one microbatch in one stage.
const FORWARD: u8 = 1;
const INPUT: u8 = 2;
const WEIGHT: u8 = 4;
const WHOLE: u8 = 8;
/// What has been done for one microbatch between a stage and a neighbour.
const FIRST: u8 = 1;
const SECOND: u8 = 2;

/// Tables for one rank, reused for the next.
pub(super) struct Checker<'a> {
    schedule: &'a Schedule,
    rules: &'a Rules,
    lowered: bool,
    wiring: Wiring,
    /// Every `REDUCE_TIED` and `REDUCE_GRAD` of the plan.
    reductions: HashSet<Action>,
    stages_by_rank: Vec<Vec<usize>>,
    /// Per stage, its place among the stages of its rank.
    local: Vec<usize>,
    /// By local stage and microbatch.
    done: Vec<u8>,
    /// By slot and microbatch, where a slot is a local stage and one of its neighbours.
    moved: Vec<u8>,
    /// By local stage, its first slot: predecessors, then successors.
    slots: Vec<usize>,
}

impl<'a> Checker<'a> {
    pub(super) fn new(schedule: &'a Schedule, rules: &'a Rules, lowered: bool) -> Self {
        let mut stages_by_rank = vec![Vec::new(); schedule.rank_count()];
        let mut local = Vec::with_capacity(schedule.stages());
        for stage in 0..schedule.stages() {
            let list = &mut stages_by_rank[schedule.rank_of(stage)];
            local.push(list.len());
            list.push(stage);
        }
        let reductions = schedule.ranks().iter().flatten().copied();
        let reductions =
            reductions.filter(|a| matches!(a.kind(), Kind::ReduceTied | Kind::ReduceGrad));
        Self {
            schedule,
            rules,
            lowered,
            wiring: Wiring::new(schedule),
            reductions: reductions.collect(),
            stages_by_rank,
            local,
            done: Vec::new(),
            moved: Vec::new(),
            slots: Vec::new(),
        }
    }

    /// Checks one rank's list; returns the most pairs that are live at once.
    pub(super) fn rank(&mut self, rank: usize) -> Result<usize, Finding> {
        let list = &self.schedule.ranks()[rank];
        let end = |fault| Finding {
            rank,
            index: list.len(),
            fault,
        };
        for (index, &action) in list.iter().enumerate() {
            self.stands(rank, action)
                .map_err(|fault| Finding { rank, index, fault })?;
        }
        // Before any table is made: whatever is missing is named, and what is left over is no
        // larger than the list.
        self.complete(rank).map_err(end)?;

        let m = self.schedule.microbatches();
        let stages = &self.stages_by_rank[rank];
        self.slots.clear();
        let mut slots = 0;
        for &stage in stages {
            self.slots.push(slots);
            let graph = self.schedule.graph();
            slots += graph.predecessors(stage).len() + graph.successors(stage).len();
        }
        self.done.clear();
        self.done.resize(stages.len() * m, 0);
        self.moved.clear();
        self.moved
            .resize(if self.lowered { slots * m } else { 0 }, 0);

        let mut whole = Whole::new(list, &self.local, stages.len());
        let (mut live, mut peak) = (0usize, 0);
        for (index, &action) in list.iter().enumerate() {
            let fault = if action.kind().has_microbatch() {
                self.apply(action)
                    .err()
                    .or_else(|| whole.used(action, &self.local))
            } else {
                whole.apply(action, &self.local, m)
            };
            if let Some(fault) = fault {
                return Err(Finding { rank, index, fault });
            }
            if action.kind() == Kind::Forward {
                live += 1;
                peak = peak.max(live);
                if let Some(limit) = self.rules.live_limit.filter(|&limit| live > limit) {
                    let fault = Fault::OverLimit {
                        action,
                        live,
                        limit,
                    };
                    return Err(Finding { rank, index, fault });
                }
            } else if action.kind().releases_activation() {
                live -= 1;
                whole.finished(action, &self.local);
            }
        }
        self.backward_done(rank).map_err(end)?;
        Ok(peak)
    }

    /// Whether an action may stand on this rank at all.
    fn stands(&self, rank: usize, action: Action) -> Result<(), Fault> {
        let stages = self.schedule.stages();
        if action.stage() >= stages || action.peer() >= stages {
            return Err(Fault::NoSuchStage { action, stages });
        }
        let home = self.schedule.rank_of(action.stage());
        if home != rank {
            return Err(Fault::WrongRank { action, home });
        }
        let microbatches = self.schedule.microbatches();
        if action.microbatch() >= microbatches {
            return Err(Fault::NoSuchMicrobatch {
                action,
                microbatches,
            });
        }
        if let (Kind::ReduceTied, Some(other)) = (action.kind(), action.counterpart()) {
            if !self.reductions.contains(&other) {
                return Err(Fault::Missing { action: other });
            }
            // Both ends add what all their replicas have, or neither: else they would not stay equal.
            let reduce = |end: Action| Action::whole_stage(Kind::ReduceGrad, end.stage() as u16);
            let (own, others) = (reduce(action), reduce(other));
            let has = |action| self.reductions.contains(action);
            match (has(&own), has(&others)) {
                (true, false) => return Err(Fault::Missing { action: others }),
                (false, true) => return Err(Fault::Missing { action: own }),
                _ => {}
            }
        }
        if action.kind().is_transfer() {
            let route = Wiring::route(self.schedule, action);
            let (edge, direction) = route.ok_or(Fault::NoEdge { action })?;
            if self.wiring.channel(edge, direction).is_none() {
                return Err(Fault::WithinRank { action });
            }
        }
        Ok(())
    }

    /// Whether every forward and every transfer of this rank stands somewhere in its list.
    fn complete(&self, rank: usize) -> Result<(), Fault> {
        let list = &self.schedule.ranks()[rank];
        let m = self.schedule.microbatches();
        let stages = &self.stages_by_rank[rank];
        let every = |kind: Kind, peer: Option<usize>, stage: usize| {
            (0..m as u16).map(move |mb| match peer {
                Some(peer) => Action::transfer(kind, stage as u16, peer as u16, mb),
                None => Action::compute(kind, stage as u16, mb),
            })
        };
        let mut present: Vec<Action> = list
            .iter()
            .copied()
            .filter(|a| a.kind() == Kind::Forward)
            .collect();
        if present.len() < stages.len() * m {
            let wanted = stages.iter().flat_map(|&s| every(Kind::Forward, None, s));
            return Err(first_missing(&mut present, wanted));
        }
        if !self.lowered {
            return Ok(());
        }
        let graph = self.schedule.graph();
        let away = |s: usize| self.schedule.rank_of(s) != rank;
        // Per neighbour on another rank, one transfer each way.
        let kinds = |stage: usize| {
            let before = graph.predecessors(stage).iter().map(|&q| usize::from(q));
            let after = graph.successors(stage).iter().map(|&t| usize::from(t));
            let before = before.flat_map(|q| [(Kind::RecvForward, q), (Kind::SendBackward, q)]);
            let after = after.flat_map(|t| [(Kind::SendForward, t), (Kind::RecvBackward, t)]);
            before.chain(after).filter(move |&(_, peer)| away(peer))
        };
        let wanted: usize = stages.iter().map(|&s| kinds(s).count()).sum();
        let count = list.iter().filter(|a| a.kind().is_transfer()).count();
        if count >= wanted * m {
            return Ok(());
        }
        present.clear();
        present.extend(list.iter().copied().filter(|a| a.kind().is_transfer()));
        let wanted = stages
            .iter()
            .flat_map(|&s| kinds(s).flat_map(move |(kind, peer)| every(kind, Some(peer), s)));
        Err(first_missing(&mut present, wanted))
    }

    /// Does one action that concerns a microbatch.
    fn apply(&mut self, action: Action) -> Result<(), Fault> {
        if action.kind().is_transfer() {
            return self.apply_transfer(action);
        }
        let (stage, mb) = (action.stage(), action.microbatch());
        let at = self.local[stage] * self.schedule.microbatches() + mb;
        let done = self.done[at];
        let (repeats, other_form, sets) = match action.kind() {
            Kind::Forward => (FORWARD, 0, FORWARD),
            Kind::Input => (INPUT, WHOLE, INPUT),
            Kind::Weight => (WEIGHT, WHOLE, WEIGHT),
            _ => (WHOLE, INPUT | WEIGHT, WHOLE | INPUT | WEIGHT),
        };
        if done & other_form != 0 && (done & WHOLE != 0 || action.kind() == Kind::Backward) {
            let repeated = action.kind() == Kind::Backward && done & WHOLE != 0;
            return Err(if repeated {
                Fault::Repeated { action }
            } else {
                Fault::WholeAndSplit { action }
            });
        }
        if done & repeats != 0 {
            return Err(Fault::Repeated { action });
        }
        let own = |kind| Action::compute(kind, stage as u16, mb as u16);
        let needs = match action.kind() {
            Kind::Forward => self.missing_input(stage, mb),
            Kind::Weight => (done & INPUT == 0).then(|| own(Kind::Input)),
            _ if done & FORWARD == 0 => Some(own(Kind::Forward)),
            _ => self.missing_gradient(stage, mb),
        };
        if let Some(needs) = needs {
            return Err(Fault::NotYet { action, needs });
        }
        self.done[at] |= sets;
        Ok(())
    }

    fn apply_transfer(&mut self, action: Action) -> Result<(), Fault> {
        let (stage, mb) = (action.stage(), action.microbatch());
        let m = self.schedule.microbatches();
        let done = self.done[self.local[stage] * m + mb];
        let own = |kind| Action::compute(kind, stage as u16, mb as u16);
        let (bit, needs) = match action.kind() {
            Kind::SendForward => (FIRST, (done & FORWARD == 0).then(|| own(Kind::Forward))),
            Kind::RecvForward => (FIRST, None),
            Kind::SendBackward => (SECOND, (done & INPUT == 0).then(|| own(Kind::Input))),
            _ => (SECOND, None),
        };
        let flags = self.slot(stage, action.peer()) * m + mb;
        if self.moved[flags] & bit != 0 {
            return Err(Fault::Repeated { action });
        }
        if let Some(needs) = needs {
            return Err(Fault::NotYet { action, needs });
        }
        self.moved[flags] |= bit;
        Ok(())
    }

    /// The slot of `stage` and a neighbour of it; the caller knows that they are joined.
    fn slot(&self, stage: usize, peer: usize) -> usize {
        let graph = self.schedule.graph();
        let before = graph.predecessors(stage);
        let first = self.slots[self.local[stage]];
        match before.iter().position(|&q| usize::from(q) == peer) {
            Some(i) => first + i,
            None => {
                let after = graph.successors(stage).iter();
                let i = after.take_while(|&&t| usize::from(t) != peer).count();
                first + before.len() + i
            }
        }
    }

    /// What a forward lacks: the output of a stage before it, or the message with it.
    fn missing_input(&self, stage: usize, mb: usize) -> Option<Action> {
        let m = self.schedule.microbatches();
        let rank = self.schedule.rank_of(stage);
        let first = self.slots[self.local[stage]];
        let before = self.schedule.graph().predecessors(stage).iter().enumerate();
        for (i, &q) in before {
            let from = usize::from(q);
            if self.schedule.rank_of(from) == rank {
                if self.done[self.local[from] * m + mb] & FORWARD == 0 {
                    return Some(Action::compute(Kind::Forward, q, mb as u16));
                }
            } else if self.lowered && self.moved[(first + i) * m + mb] & FIRST == 0 {
                return Some(Action::transfer(
                    Kind::RecvForward,
                    stage as u16,
                    q,
                    mb as u16,
                ));
            }
        }
        None
    }

    /// What a backward lacks: the gradient of a stage after it, or the message with it.
    fn missing_gradient(&self, stage: usize, mb: usize) -> Option<Action> {
        let m = self.schedule.microbatches();
        let rank = self.schedule.rank_of(stage);
        let graph = self.schedule.graph();
        let first = self.slots[self.local[stage]] + graph.predecessors(stage).len();
        for (i, &t) in graph.successors(stage).iter().enumerate() {
            let to = usize::from(t);
            if self.schedule.rank_of(to) == rank {
                if self.done[self.local[to] * m + mb] & INPUT == 0 {
                    return Some(Action::compute(Kind::Input, t, mb as u16));
                }
            } else if self.lowered && self.moved[(first + i) * m + mb] & SECOND == 0 {
                return Some(Action::transfer(
                    Kind::RecvBackward,
                    stage as u16,
                    t,
                    mb as u16,
                ));
            }
        }
        None
    }

    /// Whether every backward pass was done, and every transfer.
    fn backward_done(&self, rank: usize) -> Result<(), Fault> {
        let m = self.schedule.microbatches();
        let graph = self.schedule.graph();
        for (k, &stage) in self.stages_by_rank[rank].iter().enumerate() {
            for mb in 0..m {
                let missing = match self.done[k * m + mb] {
                    d if d & INPUT == 0 => Kind::Backward,
                    d if d & WEIGHT == 0 => Kind::Weight,
                    _ => continue,
                };
                let action = Action::compute(missing, stage as u16, mb as u16);
                return Err(Fault::Missing { action });
            }
            if !self.lowered {
                continue;
            }
            let before = graph.predecessors(stage).iter().map(|q| (q, true));
            let after = graph.successors(stage).iter().map(|t| (t, false));
            for (i, (&peer, earlier)) in before.chain(after).enumerate() {
                if self.schedule.rank_of(usize::from(peer)) == rank {
                    continue;
                }
                let kinds = match earlier {
                    true => [(FIRST, Kind::RecvForward), (SECOND, Kind::SendBackward)],
                    false => [(FIRST, Kind::SendForward), (SECOND, Kind::RecvBackward)],
                };
                for mb in 0..m {
                    let moved = self.moved[(self.slots[k] + i) * m + mb];
                    if let Some(&(_, kind)) = kinds.iter().find(|&&(bit, _)| moved & bit == 0) {
                        let action = Action::transfer(kind, stage as u16, peer, mb as u16);
                        return Err(Fault::Missing { action });
                    }
                }
            }
        }
        Ok(())
    }
}

/// The first of `wanted` that is not present; there are fewer present than wanted, or one of them
/// is there twice.
fn first_missing(present: &mut [Action], wanted: impl Iterator<Item = Action>) -> Fault {
    present.sort_unstable();
    let mut last = Action::compute(Kind::Forward, 0, 0);
    for action in wanted {
        if present.binary_search(&action).is_err() {
            return Fault::Missing { action };
        }
        last = action;
    }
    // Fewer than wanted cannot hold all that is wanted.
    Fault::Missing { action: last }
}

/// What concerns whole stages: gathered parameters, and the reduction of gradients.
struct Whole {
    /// By local stage; `None` where the plan never gathers or drops its parameters.
    gathered: Vec<Option<bool>>,
    /// Whether the plan has a `REDUCE_GRAD`, and whether that is done.
    reduces: Vec<bool>,
    reduced: Vec<bool>,
    tied: HashSet<Action>,
    finished: Vec<usize>,
}

impl Whole {
    fn new(list: &[Action], local: &[usize], stages: usize) -> Self {
        let mut gathered = vec![None; stages];
        for action in list {
            if action.kind() == Kind::Unshard {
                gathered[local[action.stage()]] = Some(false);
            } else if action.kind() == Kind::Reshard {
                gathered[local[action.stage()]].get_or_insert(true);
            }
        }
        // A stage that is dropped before it is ever gathered begins gathered.
        let mut seen = vec![false; stages];
        for action in list {
            let k = local[action.stage()];
            if matches!(action.kind(), Kind::Unshard | Kind::Reshard) && !seen[k] {
                seen[k] = true;
                gathered[k] = Some(action.kind() == Kind::Reshard);
            }
        }
        let mut reduces = vec![false; stages];
        for action in list.iter().filter(|a| a.kind() == Kind::ReduceGrad) {
            reduces[local[action.stage()]] = true;
        }
        Self {
            gathered,
            reduces,
            reduced: vec![false; stages],
            tied: HashSet::new(),
            finished: vec![0; stages],
        }
    }

    /// A compute action needs its stage's parameters.
    fn used(&self, action: Action, local: &[usize]) -> Option<Fault> {
        let away = self.gathered[local[action.stage()]] == Some(false);
        (action.kind().is_compute() && away).then_some(Fault::Sharding {
            action,
            gathered: false,
        })
    }

    fn finished(&mut self, action: Action, local: &[usize]) {
        self.finished[local[action.stage()]] += 1;
    }

    fn apply(&mut self, action: Action, local: &[usize], microbatches: usize) -> Option<Fault> {
        let k = local[action.stage()];
        let done = self.finished[k];
        let early = (done < microbatches).then_some(Fault::ReducedEarly {
            action,
            done,
            microbatches,
        });
        match action.kind() {
            Kind::ReduceGrad => match std::mem::replace(&mut self.reduced[k], true) {
                true => Some(Fault::Repeated { action }),
                false => early,
            },
            Kind::ReduceTied => match self.tied.insert(action) {
                false => Some(Fault::Repeated { action }),
                true if self.reduces[k] && !self.reduced[k] => {
                    let needs = Action::whole_stage(Kind::ReduceGrad, action.stage() as u16);
                    Some(early.unwrap_or(Fault::NotYet { action, needs }))
                }
                true => early,
            },
            kind => {
                let gather = kind == Kind::Unshard;
                let gathered = self.gathered[k].replace(gather).unwrap_or(false);
                (gathered == gather).then_some(Fault::Sharding { action, gathered })
            }
        }
    }
}
