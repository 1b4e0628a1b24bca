//! The search for a plan under given costs: which rank holds which stage, who does what in which
//! order, and whether a backward pass is split.
//!
//! 1. Every named schedule that exists for these numbers is a candidate, so the result is never
//!    worse than the best of them.
//! 2. A list scheduler (`greedy.rs`) builds plans event by event under some hundred rules, on
//!    several placements.
//! 3. Small cases are solved exactly by dynamic programming over the sets of done actions
//!    (`exact.rs`), for every placement.
//! 4. What time is left goes into simulated annealing (`anneal.rs`) over the orders, along the
//!    critical path.
//!
//! `bound.rs` says how far from the best the result can be at most.

mod anneal;
mod bound;
mod exact;
mod greedy;
mod instance;
mod trials;

use std::time::{Duration, Instant};

use super::{Action, Costs, Named, PlanError, Schedule, StageGraph};
use instance::{Evaluator, Instance, Plan};

/// How long to search.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    /// Stop after so long, once there is any plan at all.
    pub time: Duration,
    /// List scheduling, exact search and annealing each stop after so many steps, even if there is
    /// time left; with a `time` that is long enough the result is then the same on every machine.
    pub steps: u64,
    /// Where the random numbers begin.
    pub seed: u64,
}

impl Default for Budget {
    /// Ten seconds.
    fn default() -> Self {
        Self {
            time: Duration::from_secs(10),
            steps: u64::MAX,
            seed: 0,
        }
    }
}

/// What the search found.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Found {
    /// The plan, without transfers.
    pub schedule: Schedule,
    /// Its makespan with overlapped transfers.
    pub makespan: f64,
    /// No plan for these costs, on any placement, is shorter.
    pub lower_bound: f64,
    /// Whether no plan at all is better.
    pub exact: bool,
    /// Where the plan comes from.
    pub origin: String,
    /// The best named schedule under the limit, and its makespan.
    pub best_named: Option<(Named, f64)>,
}

impl Found {
    /// By which share of the lower bound the plan is longer.
    pub fn gap(&self) -> f64 {
        if self.lower_bound > 0.0 {
            self.makespan / self.lower_bound - 1.0
        } else {
            0.0
        }
    }
}

/// The best so far. Of two equally long plans, the one that holds less memory is the better.
struct Best {
    plan: Option<Plan>,
    makespan: f64,
    peak: u64,
    origin: String,
}

impl Best {
    /// Looks at a plan; says whether it is the new best.
    fn offer(
        &mut self,
        instance: &Instance,
        evaluator: &mut Evaluator,
        plan: &Plan,
        origin: impl FnOnce() -> String,
    ) -> Option<f64> {
        let makespan = evaluator.makespan(instance, plan)?;
        let peak = instance.peak(plan);
        if peak > instance.limit {
            return None;
        }
        if (makespan, peak) < (self.makespan, self.peak) {
            *self = Self {
                plan: Some(plan.clone()),
                makespan,
                peak,
                origin: origin(),
            };
        }
        Some(makespan)
    }
}

/// The best plan that is found in the given time for a chain of stages with these costs.
///
/// `costs` has one entry per stage, at least one per rank; `memory` is the most that any rank may
/// hold, in the unit of [`super::StageCosts::activation`].
///
/// # Errors
/// [`PlanError::Costs`] if there are fewer stages than ranks or a cost is not a time;
/// [`PlanError::Memory`] if nothing that was found stays under the limit, and how much it would
/// need.
///
/// ```
/// use std::time::Duration;
/// use phalanx_parallel::pipeline::*;
///
/// // The second stage is twice as slow as the others.
/// let mut costs = Costs::unit(4);
/// costs.stages[1] = StageCosts::new(2.0, 2.0, 2.0);
/// let budget = Budget { time: Duration::from_millis(20), ..Budget::default() };
/// let found = optimize(&costs, 4, 8, Some(4), &budget)?;
/// assert!(found.makespan <= found.best_named.unwrap().1);
/// assert!(found.lower_bound <= found.makespan);
/// validate(&found.schedule, &Rules { live_limit: Some(4), ..Rules::default() })?;
/// # Ok::<(), PlanError>(())
/// ```
pub fn optimize(
    costs: &Costs,
    ranks: usize,
    microbatches: usize,
    memory: Option<u64>,
    budget: &Budget,
) -> Result<Found, PlanError> {
    let instance = Instance::new(costs, ranks, microbatches, memory)?;
    let begin = Instant::now();
    let deadline = begin + budget.time;
    let mut evaluator = Evaluator::new(&instance);
    let mut best = Best {
        plan: None,
        makespan: f64::INFINITY,
        peak: u64::MAX,
        origin: String::new(),
    };
    let lower_bound = bound::lower_bound(&instance);

    let mut best_named: Option<(Named, f64)> = None;
    if instance.stages.is_multiple_of(ranks) {
        for named in Named::ALL {
            let Ok(plan) = named.schedule(ranks, instance.stages / ranks, microbatches) else {
                continue;
            };
            let plan = Plan::of(&plan);
            let time = best.offer(&instance, &mut evaluator, &plan, || named.title().into());
            if let Some(time) = time.filter(|&t| best_named.is_none_or(|(_, b)| t < b)) {
                best_named = Some((named, time));
            }
        }
    }
    trials::all(
        &instance,
        &mut evaluator,
        &mut best,
        lower_bound,
        budget,
        deadline,
    );
    let mut exact = false;
    if !instance.reached(best.makespan, lower_bound) {
        let until = begin + budget.time / 2;
        if let Some(solved) = exact::solve(&instance, best.makespan, budget.steps, until) {
            exact = true;
            if let Some(plan) = solved {
                best.offer(&instance, &mut evaluator, &plan, || "exact search".into());
            }
        }
    }
    if best.plan.is_some() && !exact {
        anneal::improve(
            &instance,
            &mut evaluator,
            &mut best,
            lower_bound,
            budget,
            deadline,
        );
    }
    let Some(plan) = best.plan else {
        let limit = memory.unwrap_or(u64::MAX);
        return Err(PlanError::Memory {
            limit,
            needed: trials::least_memory(&instance),
        });
    };
    let exact = exact || instance.reached(best.makespan, lower_bound);
    Ok(Found {
        schedule: plan.schedule(microbatches as u16)?,
        makespan: best.makespan,
        lower_bound: if exact { best.makespan } else { lower_bound },
        exact,
        origin: best.origin,
        best_named,
    })
}
