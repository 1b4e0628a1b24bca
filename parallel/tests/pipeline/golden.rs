//! Every row of `golden/schedules.json`.

use std::collections::BTreeMap;

use phalanx_parallel::pipeline::*;
use serde::Deserialize;

#[derive(Deserialize)]
struct Row {
    schedule: String,
    ranks: usize,
    stages_per_rank: usize,
    microbatches: usize,
    stage_to_rank: Option<Vec<u16>>,
    compute: Option<BTreeMap<usize, Vec<String>>>,
    comms: Option<BTreeMap<usize, Vec<String>>>,
    unit_cost_sim: Option<Figures>,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Figures {
    makespan: f64,
    idle_per_rank: Vec<f64>,
    peak_live_stage_microbatches: Vec<usize>,
}

fn rows() -> Vec<Row> {
    serde_json::from_str(include_str!("../golden/schedules.json")).expect("the file is ours")
}

impl Row {
    fn named(&self) -> Named {
        match self.schedule.as_str() {
            "GPipe" => Named::Gpipe,
            "1F1B" => Named::OneFOneB,
            "ScheduleInterleaved1F1B" => Named::Interleaved,
            "ScheduleLoopedBFS" => Named::LoopedBfs,
            "ScheduleInterleavedZeroBubble" => Named::Zb1p,
            "ScheduleZBVZeroBubble" => Named::Zbv,
            "ScheduleDualPipeV" => Named::DualPipeV,
            other => panic!("what is {other}?"),
        }
    }

    fn label(&self) -> String {
        let (p, v, m) = (self.ranks, self.stages_per_rank, self.microbatches);
        format!("{} p={p} v={v} m={m}", self.schedule)
    }
}

/// A row's grid as the text that our reader takes, bubbles and overlapped pairs included.
fn text(grid: &BTreeMap<usize, Vec<String>>) -> String {
    grid.values()
        .map(|actions| actions.join(",") + "\n")
        .collect()
}

#[test]
fn our_grids_are_the_rows_grids() {
    let mut compared = 0;
    for row in rows() {
        let label = row.label();
        let ours = row
            .named()
            .schedule(row.ranks, row.stages_per_rank, row.microbatches);
        if let Some(theirs) = &row.error {
            let ours = ours.expect_err(&label).to_string();
            assert!(
                ours.contains("makes no sense"),
                "{label}: they say {theirs}, we say {ours}"
            );
            continue;
        }
        let ours = ours.unwrap_or_else(|e| panic!("{label}: {e}"));
        let theirs: Schedule = text(row.compute.as_ref().expect(&label))
            .parse()
            .expect(&label);
        assert_eq!(ours, theirs, "{label}");
        if let Some(placement) = &row.stage_to_rank {
            assert_eq!(ours.placement(), placement, "{label}");
        }
        compared += 1;
    }
    assert_eq!(compared, 110, "rows without an error");
}

#[test]
fn our_figures_are_the_rows_figures() {
    for row in rows().iter().filter(|row| row.error.is_none()) {
        let label = row.label();
        let plan = row
            .named()
            .schedule(row.ranks, row.stages_per_rank, row.microbatches)
            .unwrap();
        let proof = validate(&plan, &Rules::default()).unwrap_or_else(|e| panic!("{label}: {e}"));
        let costs = Costs::unit(plan.stages());
        let time = simulate(&plan, &costs, Transfers::Overlapped).unwrap();
        let theirs = row.unit_cost_sim.as_ref().expect(&label);
        // PyTorch's pairs of DualPipeV begin when both halves can; ours are two actions, and the
        // first does not wait for what only the second needs.
        if row.named() == Named::DualPipeV {
            assert!(time.makespan <= theirs.makespan, "{label}");
            assert!(
                time.idle
                    .iter()
                    .zip(&theirs.idle_per_rank)
                    .all(|(a, b)| a <= b),
                "{label}"
            );
        } else {
            assert_eq!(time.makespan, theirs.makespan, "{label}");
            assert_eq!(time.idle, theirs.idle_per_rank, "{label}");
        }
        assert_eq!(
            time.peak_live, theirs.peak_live_stage_microbatches,
            "{label}"
        );
        assert_eq!(proof.peak_live, time.peak_live, "{label}");
    }
}

#[test]
fn our_lowered_grids_are_valid_and_so_are_the_rows_own() {
    let mut theirs = 0;
    for row in rows().iter().filter(|row| row.error.is_none()) {
        let label = row.label();
        let plan = row
            .named()
            .schedule(row.ranks, row.stages_per_rank, row.microbatches)
            .unwrap();
        let lowered = lower(&plan, &Lowering::default()).unwrap_or_else(|e| panic!("{label}: {e}"));
        validate(&lowered, &Rules::default()).unwrap_or_else(|e| panic!("{label}: {e}"));
        let costs = Costs::unit(plan.stages());
        let time = simulate(&lowered, &costs, Transfers::Overlapped).unwrap();
        let before = simulate(&plan, &costs, Transfers::Overlapped)
            .unwrap()
            .makespan;
        assert_eq!(time.makespan, before, "{label}: lowering must cost no time");

        if let Some(comms) = &row.comms {
            let given: Schedule = text(comms).parse().expect(&label);
            validate(&given, &Rules::default()).unwrap_or_else(|e| panic!("{label}: {e}"));
            theirs += 1;
        }
    }
    assert!(theirs > 70, "only {theirs} rows have lowered grids");
}
