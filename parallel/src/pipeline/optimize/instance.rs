//! The problem in flat tables, and a plan's makespan in one pass over it.

use super::super::Kind;
use super::{Action, Costs, PlanError, Schedule, StageGraph};

/// Costs by stage and microbatch.
pub(super) struct Instance {
    pub(super) stages: usize,
    pub(super) ranks: usize,
    pub(super) microbatches: usize,
    /// By kind (F, I, W, B), then `stage * microbatches + microbatch`.
    time: [Vec<f64>; 4],
    /// From a stage to the next, if they are on different ranks.
    pub(super) transfer: Vec<f64>,
    pub(super) activation: Vec<u64>,
    pub(super) kept: Vec<u64>,
    pub(super) resident: Vec<u64>,
    pub(super) limit: u64,
    /// Whether all microbatches cost the same.
    pub(super) uniform: bool,
    /// Whether some B is shorter than its I and W, so that a whole backward can be worth it.
    pub(super) merges: bool,
}

impl Instance {
    pub(super) fn new(
        costs: &Costs,
        ranks: usize,
        microbatches: usize,
        limit: Option<u64>,
    ) -> Result<Self, PlanError> {
        let stages = costs.stages.len();
        costs.check(stages, microbatches)?;
        let max = usize::from(u16::MAX);
        if ranks == 0 || microbatches == 0 || stages < ranks || stages.max(microbatches) > max {
            let reason = format!(
                "{stages} stages on {ranks} ranks with {microbatches} microbatches; there must be \
                 at least one of each, a stage for every rank, and no more than {max}"
            );
            return Err(PlanError::Costs { reason });
        }
        let table = |kind| {
            let of = |s: usize| (0..microbatches).map(move |mb| costs.stages[s].time(kind, mb));
            (0..stages).flat_map(of).collect::<Vec<f64>>()
        };
        let time = [Kind::Forward, Kind::Input, Kind::Weight, Kind::Backward].map(table);
        let uniform = time
            .iter()
            .all(|t| t.chunks(microbatches).all(|c| c.iter().all(|x| *x == c[0])));
        let merges = (0..time[0].len()).any(|k| time[3][k] < time[1][k] + time[2][k]);
        let of = |f: fn(&super::super::StageCosts) -> u64| costs.stages.iter().map(f).collect();
        Ok(Self {
            stages,
            ranks,
            microbatches,
            time,
            transfer: costs.stages.iter().map(|s| s.transfer).collect(),
            activation: of(|s| s.activation),
            kept: of(|s| s.kept_for_weight),
            resident: of(|s| s.resident),
            limit: limit.unwrap_or(u64::MAX),
            uniform,
            merges,
        })
    }

    pub(super) fn time(&self, kind: Kind, stage: usize, mb: usize) -> f64 {
        let k = match kind {
            Kind::Forward => 0,
            Kind::Input => 1,
            Kind::Weight => 2,
            _ => 3,
        };
        self.time[k][stage * self.microbatches + mb]
    }

    /// A stage's time for all microbatches.
    pub(super) fn total(&self, kind: Kind, stage: usize) -> f64 {
        (0..self.microbatches)
            .map(|mb| self.time(kind, stage, mb))
            .sum()
    }

    /// A stage's time for its quickest microbatch.
    pub(super) fn least(&self, kind: Kind, stage: usize) -> f64 {
        (0..self.microbatches)
            .map(|mb| self.time(kind, stage, mb))
            .fold(f64::INFINITY, f64::min)
    }

    /// What a backward pass takes at least, whole or split, over all microbatches.
    pub(super) fn total_backward(&self, stage: usize) -> f64 {
        let least = |mb| {
            let split = self.time(Kind::Input, stage, mb) + self.time(Kind::Weight, stage, mb);
            split.min(self.time(Kind::Backward, stage, mb))
        };
        (0..self.microbatches).map(least).sum()
    }

    /// Whether a plan of this length meets the bound, up to rounding.
    pub(super) fn reached(&self, makespan: f64, lower_bound: f64) -> bool {
        makespan <= lower_bound * (1.0 + 1e-12)
    }

    /// How an action changes what its rank holds.
    pub(super) fn held(&self, kind: Kind, stage: usize) -> i64 {
        let (all, kept) = (self.activation[stage] as i64, self.kept[stage] as i64);
        match kind {
            Kind::Forward => all,
            Kind::Input => kept - all,
            Kind::Weight => -kept,
            _ => -all,
        }
    }

    /// The most that one rank ever holds, beside what is resident.
    pub(super) fn peak_of(&self, list: &[Action]) -> u64 {
        let (mut held, mut peak) = (0i64, 0i64);
        for action in list {
            held += self.held(action.kind(), action.stage());
            peak = peak.max(held);
        }
        peak as u64
    }

    /// What a rank holds all the time.
    pub(super) fn resident_of(&self, placement: &[u16], rank: usize) -> u64 {
        let here = |&s: &usize| usize::from(placement[s]) == rank;
        (0..self.stages)
            .filter(here)
            .map(|s| self.resident[s])
            .sum()
    }

    /// The most that any rank ever holds.
    pub(super) fn peak(&self, plan: &Plan) -> u64 {
        let of = |rank: usize| {
            self.resident_of(&plan.placement, rank)
                .saturating_add(self.peak_of(&plan.lists[rank]))
        };
        (0..self.ranks).map(of).max().unwrap_or(0)
    }
}

/// A placement and the orders of the ranks.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) placement: Vec<u16>,
    pub(super) lists: Vec<Vec<Action>>,
}

impl Plan {
    pub(super) fn of(schedule: &Schedule) -> Self {
        Self {
            placement: schedule.placement().to_vec(),
            lists: schedule.ranks().to_vec(),
        }
    }

    pub(super) fn schedule(self, microbatches: u16) -> Result<Schedule, PlanError> {
        let graph = StageGraph::chain(self.placement.len() as u16);
        Schedule::new(graph, self.placement, microbatches, self.lists)
    }
}

/// Room for [`Evaluator::makespan`], reused from plan to plan.
///
/// It agrees with [`super::super::simulate`] on plans without transfers; a test holds it to that.
pub(super) struct Evaluator {
    /// By stage and microbatch: when its output is at the next stage; NaN before.
    forward: Vec<f64>,
    /// The same for its input gradient and the stage before.
    gradient: Vec<f64>,
    /// When the link from a stage's rank to the next stage's is free, by channel.
    links: Vec<f64>,
    clock: Vec<f64>,
    at: Vec<usize>,
    /// By rank and place: when the action begins and ends.
    pub(super) spans: Vec<Vec<(f64, f64)>>,
}

impl Evaluator {
    pub(super) fn new(instance: &Instance) -> Self {
        let n = instance.stages * instance.microbatches;
        Self {
            forward: vec![f64::NAN; n],
            gradient: vec![f64::NAN; n],
            links: vec![0.0; instance.ranks * instance.ranks],
            clock: vec![0.0; instance.ranks],
            at: vec![0; instance.ranks],
            spans: vec![Vec::new(); instance.ranks],
        }
    }

    /// When the plan ends; `None` if it gets stuck.
    pub(super) fn makespan(&mut self, instance: &Instance, plan: &Plan) -> Option<f64> {
        self.forward.fill(f64::NAN);
        self.gradient.fill(f64::NAN);
        self.links.fill(0.0);
        self.clock.fill(0.0);
        self.at.fill(0);
        self.spans.iter_mut().for_each(Vec::clear);
        loop {
            let mut moved = false;
            for rank in 0..instance.ranks {
                moved |= self.advance(instance, plan, rank);
            }
            if !moved {
                break;
            }
        }
        let done = self
            .at
            .iter()
            .zip(&plan.lists)
            .all(|(&at, list)| at == list.len());
        done.then(|| self.clock.iter().fold(0.0, |a: f64, &b| a.max(b)))
    }

    /// Takes one rank as far as it goes.
    fn advance(&mut self, instance: &Instance, plan: &Plan, rank: usize) -> bool {
        let m = instance.microbatches;
        let first = self.at[rank];
        while let Some(&action) = plan.lists[rank].get(self.at[rank]) {
            let (kind, stage, mb) = (action.kind(), action.stage(), action.microbatch());
            let slot = stage * m + mb;
            let ready = match kind {
                Kind::Forward if stage > 0 => self.forward[slot - m],
                Kind::Input | Kind::Backward if stage + 1 < instance.stages => {
                    self.gradient[slot + m]
                }
                _ => 0.0,
            };
            if ready.is_nan() {
                break;
            }
            let start = ready.max(self.clock[rank]);
            let end = start + instance.time(kind, stage, mb);
            self.clock[rank] = end;
            self.spans[rank].push((start, end));
            self.at[rank] += 1;
            match kind {
                Kind::Forward => {
                    let next = plan.placement.get(stage + 1).copied();
                    self.forward[slot] = self.deliver(rank, next, instance.transfer[stage], end);
                }
                Kind::Input | Kind::Backward if stage > 0 => {
                    let before = Some(plan.placement[stage - 1]);
                    let transfer = instance.transfer[stage - 1];
                    self.gradient[slot] = self.deliver(rank, before, transfer, end);
                }
                _ => {}
            }
        }
        self.at[rank] > first
    }

    /// When what is there at `now` is on the rank that wants it.
    fn deliver(&mut self, from: usize, to: Option<u16>, transfer: f64, now: f64) -> f64 {
        let Some(to) = to.map(usize::from).filter(|&to| to != from) else {
            return now;
        };
        let link = &mut self.links[from * self.clock.len() + to];
        let end = link.max(now) + transfer;
        *link = end;
        end
    }
}
