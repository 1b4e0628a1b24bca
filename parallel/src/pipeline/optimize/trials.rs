//! Which rules and which placements the list scheduler is tried with, and for how long.

use std::time::Instant;

use super::super::Kind;
use super::greedy::{Rule, build, rules};
use super::instance::{Evaluator, Instance};
use super::{Best, Budget};

/// What the rules are tried with.
struct Trial<'a> {
    instance: &'a Instance,
    evaluator: &'a mut Evaluator,
    best: &'a mut Best,
    lower_bound: f64,
    deadline: Instant,
    /// How many more plans may be built.
    steps: u64,
}

impl Trial<'_> {
    /// Whether nothing is left to gain, or no time to gain it in. Some plan must be found first.
    fn over(&self) -> bool {
        let found = self.best.plan.is_some();
        found
            && (self.steps == 0
                || Instant::now() > self.deadline
                || self.instance.reached(self.best.makespan, self.lower_bound))
    }

    /// The shortest plan of any of the rules on a placement.
    fn placement(&mut self, placement: &[u16], rules: &[Rule], what: &str) -> f64 {
        let mut least = f64::INFINITY;
        for rule in rules {
            if self.over() {
                break;
            }
            self.steps = self.steps.saturating_sub(1);
            let Some(plan) = build(self.instance, placement, rule) else {
                continue;
            };
            let origin = || format!("{what} ({rule})");
            if let Some(time) = self
                .best
                .offer(self.instance, self.evaluator, &plan, origin)
            {
                least = least.min(time);
            }
        }
        least
    }
}

/// Tries every rule on every placement worth trying, as far as there is time.
pub(super) fn all(
    instance: &Instance,
    evaluator: &mut Evaluator,
    best: &mut Best,
    lower_bound: f64,
    budget: &Budget,
    deadline: Instant,
) {
    let steps = budget.steps;
    let mut trial = Trial {
        instance,
        evaluator,
        best,
        lower_bound,
        deadline,
        steps,
    };
    let rules = rules(instance);
    let mut first: Option<(f64, Vec<u16>)> = None;
    for placement in placements(instance) {
        let time = trial.placement(&placement, &rules, "list scheduling");
        if first.as_ref().is_none_or(|(least, _)| time < *least) {
            first = Some((time, placement));
        }
    }
    let Some((mut time, mut here)) = first.filter(|_| instance.stages > instance.ranks) else {
        return;
    };
    // Exchange stages, or move one, as long as it helps; with the quicker half of the rules.
    let rules: Vec<Rule> = rules
        .into_iter()
        .filter(|rule| rule.patience == 0.0)
        .collect();
    let mut improved = true;
    while improved {
        improved = false;
        for a in 0..instance.stages {
            for b in 0..instance.stages + instance.ranks {
                if trial.over() {
                    return;
                }
                let mut there = here.clone();
                match b.checked_sub(instance.stages) {
                    Some(rank) => there[a] = rank as u16,
                    None => there.swap(a, b),
                }
                if there == here {
                    continue;
                }
                let then = trial.placement(&there, &rules, "list scheduling, stages moved");
                if then < time {
                    (time, here, improved) = (then, there, true);
                }
            }
        }
    }
}

/// Placements to begin with: dealt out in turn, as a zigzag, in blocks, and by weight.
fn placements(instance: &Instance) -> Vec<Vec<u16>> {
    let (n, p) = (instance.stages, instance.ranks);
    let looped: Vec<u16> = (0..n).map(|s| (s % p) as u16).collect();
    if n == p {
        return vec![looped];
    }
    let zigzag = (0..n).map(|s| if s / p % 2 == 0 { s % p } else { p - 1 - s % p } as u16);
    let blocks = (0..n).map(|s| (s * p / n) as u16);
    let mut all = vec![looped, zigzag.collect(), blocks.collect()];

    let work = |s: usize| instance.total(Kind::Forward, s) + instance.total_backward(s);
    let mut heaviest: Vec<usize> = (0..n).collect();
    heaviest.sort_by(|&a, &b| work(b).total_cmp(&work(a)));
    let mut load = vec![0.0f64; p];
    let mut by_weight = vec![0u16; n];
    for s in heaviest {
        let least = (0..p)
            .min_by(|&a, &b| load[a].total_cmp(&load[b]))
            .unwrap_or(0);
        load[least] += work(s);
        by_weight[s] = least as u16;
    }
    all.push(by_weight);
    all.dedup();
    all
}

/// What the most frugal plan holds: one microbatch at a time, which at the turn is saved in every
/// stage.
pub(super) fn least_memory(instance: &Instance) -> u64 {
    let of = |placement: &Vec<u16>| {
        let mut held = vec![0u64; instance.ranks];
        for (s, &rank) in placement.iter().enumerate() {
            let rank = &mut held[usize::from(rank)];
            *rank = rank.saturating_add(instance.activation[s] + instance.resident[s]);
        }
        held.into_iter().max().unwrap_or(0)
    };
    placements(instance).iter().map(of).min().unwrap_or(0)
}
