//! Simulated annealing over the orders (Kirkpatrick et al. 1983).
//!
//! Only what stands on the critical path can shorten a plan (van Laarhoven et al. 1992, for job
//! shops): a step takes an action there that waits for its rank, not for its inputs, and puts it
//! before one of the actions that keep the rank busy until then.

use std::time::Instant;

use super::super::Kind;
use super::instance::{Evaluator, Instance, Plan};
use super::{Action, Best, Budget};

/// SplitMix64 (Steele et al. 2014).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// In 0..1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Where a walk begins to be cold, as a share of the makespan, and steps per walk.
const WARM: f64 = 0.01;
const WALK: u64 = 4_000;

/// Walks from the best plan until there is no time, no step, or no gap left.
pub(super) fn improve(
    instance: &Instance,
    evaluator: &mut Evaluator,
    best: &mut Best,
    lower_bound: f64,
    budget: &Budget,
    deadline: Instant,
) {
    let mut rng = Rng(budget.seed);
    let mut steps = 0;
    let origin = match best.origin.as_str() {
        from if from.contains("annealed") => from.to_string(),
        from => format!("{from}, annealed"),
    };
    while steps < budget.steps && !instance.reached(best.makespan, lower_bound) {
        // A plan is needed to begin with; the caller has seen to that.
        let Some(mut here) = best.plan.clone() else {
            return;
        };
        let Some(mut time) = evaluator.makespan(instance, &here) else {
            return;
        };
        let heat = WARM * time;
        let mut path = critical(evaluator, instance, &here, &mut rng);
        for step in 0..WALK {
            if steps >= budget.steps || (steps % 16 == 0 && Instant::now() > deadline) {
                return;
            }
            steps += 1;
            let Some(&(rank, from, to)) = path.get(rng.below(path.len())) else {
                return;
            };
            let action = here.lists[rank].remove(from);
            here.lists[rank].insert(to, action);
            let kept = legal(&here.lists[rank], to, from)
                && fits(instance, &here, rank)
                && evaluator.makespan(instance, &here).is_some_and(|then| {
                    let temperature = heat * (1.0 - step as f64 / WALK as f64);
                    let worse = then - time;
                    let accept = worse <= 0.0 || rng.unit() < (-worse / temperature).exp();
                    if accept {
                        time = then;
                    }
                    accept
                });
            if kept {
                path = critical(evaluator, instance, &here, &mut rng);
                if time < best.makespan {
                    best.offer(instance, evaluator, &here, || origin.clone());
                    if instance.reached(best.makespan, lower_bound) {
                        return;
                    }
                }
            } else {
                let action = here.lists[rank].remove(to);
                here.lists[rank].insert(from, action);
            }
        }
    }
}

fn fits(instance: &Instance, plan: &Plan, rank: usize) -> bool {
    let free = instance
        .limit
        .saturating_sub(instance.resident_of(&plan.placement, rank));
    instance.peak_of(&plan.lists[rank]) <= free
}

/// Whether an action that was moved ahead, from `from` to `to`, still stands behind what it needs
/// of the same stage and microbatch.
fn legal(list: &[Action], to: usize, from: usize) -> bool {
    let moved = list[to];
    let same = |a: &&Action| a.stage() == moved.stage() && a.microbatch() == moved.microbatch();
    list[to + 1..=from].iter().find(same).is_none()
}

/// Moves along one critical path: `(rank, from, to)` with `to < from`.
fn critical(
    evaluator: &Evaluator,
    instance: &Instance,
    plan: &Plan,
    rng: &mut Rng,
) -> Vec<(usize, usize, usize)> {
    let spans = &evaluator.spans;
    let end = |rank: usize| spans[rank].last().map_or(0.0, |s| s.1);
    let Some(mut rank) = (0..plan.lists.len()).max_by(|&a, &b| end(a).total_cmp(&end(b))) else {
        return Vec::new();
    };
    let mut moves = Vec::new();
    let Some(mut at) = plan.lists[rank].len().checked_sub(1) else {
        return moves;
    };
    loop {
        // Back through the rank while it was busy.
        let mut first = at;
        while first > 0 && spans[rank][first - 1].1 >= spans[rank][first].0 {
            first -= 1;
        }
        // Every action of the block could go before its neighbour, or before another at random.
        for i in first + 1..=at {
            moves.push((rank, i, i - 1));
            let to = first + rng.below(i - first);
            if to + 1 < i {
                moves.push((rank, i, to));
            }
        }
        // The first of the block waited for its input, unless it began at once.
        let (start, action) = (spans[rank][first].0, plan.lists[rank][first]);
        let needs = match action.kind() {
            Kind::Forward => action.stage().checked_sub(1),
            Kind::Weight => None,
            _ => Some(action.stage() + 1).filter(|&s| s < instance.stages),
        };
        let Some(stage) = needs.filter(|_| start > 0.0) else {
            return moves;
        };
        rank = usize::from(plan.placement[stage]);
        let forward = action.kind() == Kind::Forward;
        let feeds = |a: &Action| {
            a.stage() == stage
                && a.microbatch() == action.microbatch()
                && (a.kind() == Kind::Forward) == forward
                && a.kind() != Kind::Weight
        };
        match plan.lists[rank].iter().position(feeds) {
            Some(place) => at = place,
            None => return moves,
        }
    }
}
