//! Random plans: what is valid gives the same numbers as one process, and what is not is refused.

use crate::mistakes::{bases, mutate};
use crate::models::{loss, parts};
use crate::ranks::{on_cpus, on_ranks};
use crate::reference::{Task, alone, expect};
use crate::rng::Rng;
use phalanx_parallel::Error;
use phalanx_parallel::pipeline::{
    Action, Kind, Named, Pipeline, PipelineConfig, Rules, Schedule, StageGraph, lower, validate,
};
use phalanx_tensor::DType;

/// A plan that came about by doing what can be done, in random order: any graph, any placement, any microbatch first.
fn free(rng: &mut Rng, skips: bool, placed: bool) -> Schedule {
    // A skip edge needs three stages, and there is one then.
    let least = if skips { 3 } else { 1 };
    let (stages, m) = (least + rng.below(3), 1 + rng.below(5));
    let mut edges: Vec<(u16, u16)> = (1..stages as u16).map(|s| (s - 1, s)).collect();
    for to in 2..stages as u16 {
        for from in 0..to - 1 {
            if skips && (edges.len() < stages || rng.below(2) == 0) {
                edges.push((from, to));
            }
        }
    }
    let graph = StageGraph::new(stages as u16, &edges).unwrap();
    let ranks = 1 + rng.below(stages.min(4));
    let home = |stage: usize, rng: &mut Rng| match placed {
        true => rng.below(ranks),
        false => stage * ranks / stages,
    };
    let rank_of: Vec<u16> = (0..stages).map(|s| home(s, rng) as u16).collect();
    let mut lists = vec![Vec::new(); ranks];
    // By stage and microbatch: how far it is. 0 nothing, 1 forward, 2 input gradient, 3 all.
    let mut done = vec![vec![0; m]; stages];
    loop {
        let mut can = Vec::new();
        for s in 0..stages {
            for (mb, &now) in done[s].iter().enumerate() {
                let all = |others: &[u16], least: usize| {
                    others.iter().all(|&o| done[usize::from(o)][mb] >= least)
                };
                match now {
                    0 if all(graph.predecessors(s), 1) => can.push((Kind::Forward, s, mb, 1)),
                    1 if all(graph.successors(s), 2) => {
                        can.push((Kind::Input, s, mb, 2));
                        can.push((Kind::Backward, s, mb, 3));
                    }
                    2 => can.push((Kind::Weight, s, mb, 3)),
                    _ => {}
                }
            }
        }
        if can.is_empty() {
            break;
        }
        let (kind, s, mb, now) = *rng.pick(&can);
        done[s][mb] = now;
        lists[usize::from(rank_of[s])].push(Action::compute(kind, s as u16, mb as u16));
    }
    Schedule::new(graph, rank_of, m as u16, lists).unwrap()
}

/// A named schedule with neighbours of a rank's list swapped wherever that leaves it right.
fn mutated(rng: &mut Rng) -> Option<Schedule> {
    let named = *rng.pick(&Named::ALL);
    let mut plan = named
        .schedule(
            1 + rng.below(4),
            named.default_stages_per_rank(),
            1 + rng.below(8),
        )
        .ok()?;
    for _ in 0..rng.below(20) {
        let rank = rng.below(plan.rank_count());
        let len = plan.ranks()[rank].len();
        if len < 2 {
            continue;
        }
        let at = rng.below(len - 1);
        plan.ranks_mut()[rank].swap(at, at + 1);
        if lower(&plan, &Default::default()).is_err() {
            plan.ranks_mut()[rank].swap(at, at + 1);
        }
    }
    Some(plan)
}

#[test]
fn random_plans_agree_with_one_process() {
    if !on_cpus(
        "random_plans_agree_with_one_process",
        "sixty plans run (some_cells_agree_with_one_process)",
    ) {
        return;
    }
    let mut rng = Rng(11);
    let mut kinds = [0; 5];
    let mut count = 0;
    while count < 2000 {
        let kind = count % 4;
        let plan = match kind {
            0 => free(&mut rng, true, count % 8 == 0),
            1 => free(&mut rng, false, true),
            _ => match mutated(&mut rng) {
                Some(plan) => plan,
                None => continue,
            },
        };
        // A quarter comes from text.
        let plan = match count % 4 {
            3 => plan.to_string().parse::<Schedule>().unwrap(),
            _ => plan,
        };
        kinds[kind] += 1;
        kinds[4] += usize::from(!plan.graph().is_chain());
        count += 1;
        let m = plan.microbatches();
        let task = Task {
            steps: 2,
            ..Task::new(DType::F64, m + rng.below(2 * m))
        };
        let want = alone(plan.graph(), &parts, m, task);
        expect(&plan, &parts, task, &want, 0.0, &format!("plan {count}"));
    }
    assert!(kinds[4] >= count / 4, "{kinds:?}");
    println!(
        "{count} plans: {} free ones with skips ({} counted), {} placed freely over a chain, {} named and \
         mutated, {} of these read from text",
        kinds[0],
        kinds[4],
        kinds[1],
        kinds[2] + kinds[3],
        kinds[3]
    );
}

#[test]
fn plans_that_are_wrong_are_refused_before_a_tensor_moves() {
    if !on_cpus(
        "plans_that_are_wrong_are_refused_before_a_tensor_moves",
        "a plan is proved before there is a device",
    ) {
        return;
    }
    let mut rng = Rng(3);
    let bases = bases(3, 3);
    let mut refused = 0;
    while refused < 2000 {
        let mut plan = rng.pick(&bases).clone();
        for _ in 0..1 + rng.below(3) {
            mutate(&mut plan, &mut rng);
        }
        if validate(&plan, &Rules::default()).is_ok() {
            continue;
        }
        refused += 1;
        on_ranks(plan.rank_count(), |group| {
            let own = plan.stages_of(group.rank());
            let stages = own.map(|s| (s, parts(plan.graph(), s, DType::F32, group.device())));
            let made = Pipeline::new(
                group.clone(),
                &plan,
                stages.collect(),
                loss,
                PipelineConfig::default(),
            );
            let error = made.err().expect("the plan is wrong");
            assert!(matches!(error, Error::Plan(_)), "{error}\n{plan}");
            let moved = group.recent().into_iter().map(|record| record.to_string());
            let messages: Vec<String> = moved
                .filter(|call| call.contains("send") || call.contains("recv"))
                .collect();
            assert!(messages.is_empty(), "{messages:?}");
            Ok(())
        });
    }
}
