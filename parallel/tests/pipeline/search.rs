//! The search against exhaustive enumeration on small cases, and against every named schedule on
//! larger ones.

use std::time::Duration;

use phalanx_parallel::pipeline::*;

use super::rng::Rng;

fn random_costs(rng: &mut Rng, stages: usize, transfer: f64) -> Costs {
    let stage = |rng: &mut Rng| {
        // Stages differ by up to four times, their parts among each other a little.
        let size = rng.between(1.0, 4.0);
        let mut part = || size * rng.between(0.8, 1.2);
        StageCosts {
            transfer,
            ..StageCosts::new(part(), part(), part())
        }
    };
    Costs {
        stages: (0..stages).map(|_| stage(rng)).collect(),
    }
}

/// Every order of one rank in which F, I and W (or F and B) of a pair follow each other, and a
/// stage's F follows the same microbatch's F of an earlier stage of the rank.
fn orders(stages: &[usize], microbatches: usize, whole: bool) -> Vec<Vec<Action>> {
    let kinds: &[Kind] = match whole {
        true => &[Kind::Forward, Kind::Backward],
        false => &[Kind::Forward, Kind::Input, Kind::Weight],
    };
    let pairs: Vec<(usize, usize)> = stages
        .iter()
        .flat_map(|&s| (0..microbatches).map(move |mb| (s, mb)))
        .collect();
    let mut all = Vec::new();
    let mut next = vec![0; pairs.len()];
    fn go(
        pairs: &[(usize, usize)],
        kinds: &[Kind],
        next: &mut [usize],
        list: &mut Vec<Action>,
        all: &mut Vec<Vec<Action>>,
    ) {
        if list.len() == pairs.len() * kinds.len() {
            all.push(list.clone());
        }
        for i in 0..pairs.len() {
            if let Some(&kind) = kinds.get(next[i]) {
                list.push(Action::compute(kind, pairs[i].0 as u16, pairs[i].1 as u16));
                next[i] += 1;
                go(pairs, kinds, next, list, all);
                next[i] -= 1;
                list.pop();
            }
        }
    }
    go(&pairs, kinds, &mut next, &mut Vec::new(), &mut all);
    all
}

/// The shortest of all plans on one placement, by trying every one.
fn enumerate(costs: &Costs, placement: &[u16], ranks: usize, m: usize, limit: usize) -> f64 {
    let stages = placement.len();
    let graph = StageGraph::chain(stages as u16);
    let mut best = f64::INFINITY;
    let per_rank: Vec<Vec<Vec<Action>>> = (0..ranks)
        .map(|r| {
            let here: Vec<usize> = (0..stages)
                .filter(|&s| usize::from(placement[s]) == r)
                .collect();
            let fits = |list: &Vec<Action>| {
                let mut live = 0i64;
                list.iter().all(|a| {
                    live += i64::from(a.kind() == Kind::Forward);
                    live -= i64::from(a.kind().releases_activation());
                    live <= limit as i64
                })
            };
            orders(&here, m, false).into_iter().filter(fits).collect()
        })
        .collect();
    // Nothing is shorter than the busiest rank's work, so a plan of that length ends the search.
    let work = |r: usize| {
        let time = |a: &Action| costs.stages[a.stage()].time(a.kind(), a.microbatch());
        per_rank[r]
            .first()
            .map_or(f64::INFINITY, |list| list.iter().map(time).sum::<f64>())
    };
    let least = (0..ranks).map(work).fold(0.0, f64::max);
    let mut choice = vec![0usize; ranks];
    while best > least + 1e-12 {
        let lists = (0..ranks).map(|r| per_rank[r][choice[r]].clone()).collect();
        let plan = Schedule::new(graph.clone(), placement.to_vec(), m as u16, lists).unwrap();
        if let Ok(time) = simulate(&plan, costs, Transfers::Overlapped) {
            best = best.min(time.makespan);
        }
        let Some(r) = (0..ranks).find(|&r| choice[r] + 1 < per_rank[r].len()) else {
            return best;
        };
        choice[..r].fill(0);
        choice[r] += 1;
    }
    best
}

#[test]
fn small_cases_are_solved_exactly() {
    let mut rng = Rng(7);
    let budget = Budget {
        time: Duration::from_secs(20),
        ..Budget::default()
    };
    let mut cases = 0;
    // Ranks, stages, microbatches; every placement of the stages is tried.
    for (p, n, m, repeats) in [
        (1usize, 1usize, 2usize, 2),
        (1, 1, 3, 4),
        (2, 2, 1, 10),
        (2, 3, 1, 10),
        (2, 4, 1, 1),
        (2, 2, 2, 10),
        (3, 3, 1, 20),
        (1, 2, 2, 3),
    ] {
        for _ in 0..repeats {
            for limit in 1..=n * m {
                let transfer = *rng.pick(&[0.0, 0.3]);
                let costs = random_costs(&mut rng, n, transfer);
                let mut best = f64::INFINITY;
                for code in 0..p.pow(n as u32) {
                    let rank = |s: usize| (code / p.pow(s as u32) % p) as u16;
                    let placement: Vec<u16> = (0..n).map(rank).collect();
                    // Ranks are alike: stage 0 on the first.
                    if placement[0] == 0 {
                        best = best.min(enumerate(&costs, &placement, p, m, limit));
                    }
                }
                let found = optimize(&costs, p, m, Some(limit as u64), &budget);
                let Ok(found) = found else {
                    assert_eq!(best, f64::INFINITY, "p={p} n={n} m={m} limit={limit}");
                    continue;
                };
                assert!(found.exact, "p={p} n={n} m={m} limit={limit}");
                let close = (found.makespan - best).abs() < 1e-9;
                assert!(
                    close,
                    "p={p} n={n} m={m} limit={limit}: {} {best}",
                    found.makespan
                );
                cases += 1;
            }
        }
    }
    assert!(cases > 130, "{cases} cases");
}

#[test]
fn larger_small_cases_are_solved_exactly() {
    let mut rng = Rng(8);
    let budget = Budget {
        time: Duration::from_secs(60),
        ..Budget::default()
    };
    for (p, m, limit) in [(3, 2, 6), (3, 2, 2), (2, 3, 2)] {
        let costs = random_costs(&mut rng, p, 0.2);
        // No stage shares a rank here: transfers are small, and every rank would else be free.
        let placement: Vec<u16> = (0..p as u16).collect();
        let own = enumerate(&costs, &placement, p, m, limit);
        let found = optimize(&costs, p, m, Some(limit as u64), &budget).unwrap();
        assert!(found.exact && found.makespan <= own + 1e-9);
        if found.schedule.placement() == placement {
            assert!(
                (found.makespan - own).abs() < 1e-9,
                "{} {own}",
                found.makespan
            );
        }
    }
}

#[test]
fn never_worse_than_any_named_schedule() {
    let mut rng = Rng(9);
    let (mut gaps, mut gains, mut limited) = (Vec::new(), Vec::new(), 0);
    for case in 0..200 {
        let p = 1 + rng.below(8);
        let v = 1 + rng.below(if p <= 4 { 2 } else { 1 });
        let m = 1 + rng.below(32);
        let transfer = *rng.pick(&[0.0, 0.1, 0.5]);
        let costs = random_costs(&mut rng, p * v, transfer);
        let memory = match case % 2 {
            0 => None,
            _ => Some((v + rng.below(2 * p * v)) as u64),
        };
        limited += usize::from(memory.is_some());
        let budget = Budget {
            time: Duration::from_secs(60),
            steps: 3_000,
            seed: case,
        };
        let found = optimize(&costs, p, m, memory, &budget).unwrap();
        let live_limit = memory.map(|m| m as usize);
        validate(
            &found.schedule,
            &Rules {
                live_limit,
                ..Rules::default()
            },
        )
        .unwrap();
        let time = simulate(&found.schedule, &costs, Transfers::Overlapped)
            .unwrap()
            .makespan;
        assert!(
            (time - found.makespan).abs() <= 1e-9 * time,
            "{time} {}",
            found.makespan
        );
        assert!(
            found.lower_bound <= time * (1.0 + 1e-12),
            "{} > {time}",
            found.lower_bound
        );
        let mut best_named = f64::INFINITY;
        for named in Named::ALL {
            let Ok(plan) = named.schedule(p, v, m) else {
                continue;
            };
            if validate(
                &plan,
                &Rules {
                    live_limit,
                    ..Rules::default()
                },
            )
            .is_ok()
            {
                let named_time = simulate(&plan, &costs, Transfers::Overlapped)
                    .unwrap()
                    .makespan;
                assert!(
                    time <= named_time * (1.0 + 1e-12),
                    "{named}: {named_time} < {time}"
                );
                best_named = best_named.min(named_time);
            }
        }
        gaps.push(found.gap());
        if best_named.is_finite() {
            gains.push(1.0 - time / best_named);
        }
    }
    let mean = |all: &[f64]| all.iter().sum::<f64>() / all.len() as f64;
    let exact = gaps.iter().filter(|&&gap| gap < 1e-9).count();
    println!(
        "200 cost vectors, {limited} with a memory limit: mean gap to the lower bound {:.2} %, \
         {exact} proved best; {:.2} % shorter than the best named schedule on average",
        100.0 * mean(&gaps),
        100.0 * mean(&gains)
    );
    // Never worse is so by construction, since the search starts from the best of them. What it adds:
    // 2.34 % in the mean, and a gap of 1.52 %, with 116 proved.
    assert!(mean(&gains) > 0.02, "mean gain {}", mean(&gains));
    assert!(
        gains.iter().filter(|&&gain| gain > 0.01).count() > 50,
        "{gains:?}"
    );
    assert!(mean(&gaps) < 0.02, "mean gap {}", mean(&gaps));
    assert!(exact > 100, "{exact} proved best");
}

#[test]
fn a_whole_backward_is_used_where_it_is_cheaper() {
    let mut costs = Costs::unit(2);
    for stage in &mut costs.stages {
        stage.backward = Some(1.5.into());
    }
    let budget = Budget {
        time: Duration::from_millis(200),
        ..Budget::default()
    };
    let found = optimize(&costs, 2, 3, None, &budget).unwrap();
    let whole = |a: &&Action| a.kind() == Kind::Backward;
    assert!(found.schedule.ranks().iter().flatten().any(|a| whole(&a)));
    assert!(found.makespan < 10.0, "{}", found.makespan);
}

#[test]
fn an_impossible_limit_says_what_is_needed() {
    let mut costs = Costs::unit(2);
    costs.stages[1].activation = 10;
    costs.stages[1].kept_for_weight = 10;
    let budget = Budget {
        time: Duration::from_millis(20),
        ..Budget::default()
    };
    let error = optimize(&costs, 2, 4, Some(9), &budget).unwrap_err();
    assert_eq!(
        error,
        PlanError::Memory {
            limit: 9,
            needed: 10
        }
    );
}
