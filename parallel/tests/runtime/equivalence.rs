//! Every named schedule gives the bits of one process that works through the same microbatches in ascending order.

use crate::models::{batch_norm_parts, parts};
use crate::ranks::{has_ranks, on_cpus};
use crate::reference::{Task, alone, expect};
use crate::rng::Rng;
use phalanx_parallel::pipeline::{Named, Schedule, StageGraph};
use phalanx_tensor::DType;
use std::ops::RangeInclusive;

/// Every named schedule that exists for these numbers of ranks and microbatches.
fn named(ranks: RangeInclusive<usize>, microbatches: &[usize]) -> Vec<(String, Schedule)> {
    let mut plans = Vec::new();
    for named in Named::ALL {
        for p in ranks.clone().filter(|&p| has_ranks(p)) {
            for &m in microbatches {
                let per_rank = named.default_stages_per_rank();
                if let Ok(plan) = named.schedule(p, per_rank, m) {
                    plans.push((format!("{named} on {p} ranks, {m} microbatches"), plan));
                }
            }
        }
    }
    plans
}

/// The same order over a graph in which every stage but the last also feeds the one after the next.
fn with_skips(plan: &Schedule) -> Schedule {
    let stages = plan.stages() as u16;
    let next = (1..stages).map(|s| (s - 1, s));
    let skips = (2..stages).map(|s| (s - 2, s));
    let edges: Vec<(u16, u16)> = next.chain(skips).collect();
    plan.over(StageGraph::new(stages, &edges).unwrap()).unwrap()
}

#[test]
fn every_named_schedule_gives_the_bits_of_one_process() {
    const NAME: &str = "every_named_schedule_gives_the_bits_of_one_process";
    if !on_cpus(
        NAME,
        "sixty of the cells run (some_cells_agree_with_one_process)",
    ) {
        return;
    }
    let mut cells = 0;
    for (name, plan) in named(1..=4, &[1, 2, 4, 7, 8]) {
        for plan in [plan.clone(), with_skips(&plan)] {
            let m = plan.microbatches();
            for dtype in [DType::F32, DType::F64] {
                for rows in [2 * m, 2 * m + m / 2 + 1] {
                    let task = Task::new(dtype, rows);
                    let want = alone(plan.graph(), &parts, m, task);
                    let name = format!("{name}, {dtype}, {rows} rows");
                    expect(&plan, &parts, task, &want, 0.0, &name);
                    cells += 1;
                }
            }
        }
    }
    // 146 plans exist for these numbers, on a chain and with skips, of two types, with rows that divide and that do not.
    assert!(cells == 1168 || !has_ranks(4), "{cells} cells");
}

/// Sixty of the cells, in `f64`, on CPUs and on cards.
#[test]
fn some_cells_agree_with_one_process() {
    let mut rng = Rng(5);
    let plans = named(1..=4, &[1, 2, 4, 7, 8]);
    for _ in 0..60 {
        let (name, plan) = rng.pick(&plans);
        let plan = match rng.below(3) {
            0 => with_skips(plan),
            _ => plan.clone(),
        };
        let m = plan.microbatches();
        let task = Task::new(DType::F64, 2 * m + rng.below(m));
        let want = alone(plan.graph(), &parts, m, task);
        expect(&plan, &parts, task, &want, 0.0, name);
    }
}

#[test]
fn batch_norm_keeps_its_running_statistics() {
    for (name, plan) in named(2..=3, &[4, 7]) {
        let task = Task::new(DType::F64, 3 * plan.microbatches());
        let want = alone(plan.graph(), &batch_norm_parts, plan.microbatches(), task);
        expect(&plan, &batch_norm_parts, task, &want, 0.0, &name);
    }
}

/// The whole batch in one go is another order of the same sums.
#[test]
fn every_named_schedule_agrees_with_the_whole_batch() {
    for (name, plan) in named(2..=4, &[4, 8]) {
        let task = Task::new(DType::F64, 3 * plan.microbatches() + 1);
        let want = alone(plan.graph(), &parts, 1, task);
        expect(&plan, &parts, task, &want, 1e-12, &name);
    }
}
