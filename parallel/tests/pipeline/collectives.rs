//! Collectives in time: averages over replicas run beside the compute, one after the other on a rank, and an exchange of
//! what is tied follows the averages of both stages.

use phalanx_parallel::pipeline::*;

/// F = 1, B = 2; an average takes `reduce`, an exchange `tied`.
fn costs(reduce: &[f64], tied: f64) -> Costs {
    let stage = |&reduce| StageCosts {
        reduce,
        tied,
        ..StageCosts::new(1.0, 1.0, 1.0)
    };
    Costs {
        stages: reduce.iter().map(stage).collect(),
    }
}

fn lowered(text: &str) -> Schedule {
    lower(&text.parse().unwrap(), &Lowering::default()).unwrap()
}

/// When an action begins and ends.
fn span(time: &Timeline, action: &str) -> (f64, f64) {
    let action: Action = action.parse().unwrap();
    let mut spans = time.ranks.iter().flatten();
    let span = spans.find(|span| span.action == action).unwrap();
    (span.start, span.end)
}

#[test]
fn an_average_runs_beside_the_stages_before_it() {
    let plan = lowered("0F0, 0F1, 0B0, 0B1\n1F0, 1B0, 1F1, 1B1");
    for transfers in [Transfers::Overlapped, Transfers::Blocking] {
        let time = simulate(&plan, &costs(&[5.0, 5.0], 0.0), transfers).unwrap();
        assert_eq!(span(&time, "1REDUCE_GRAD"), (7.0, 12.0));
        assert_eq!(span(&time, "0REDUCE_GRAD"), (9.0, 14.0));
        assert_eq!((time.makespan, time.idle[0]), (14.0, 8.0));
    }
    let free = simulate(&plan, &Costs::unit(2), Transfers::Overlapped).unwrap();
    assert_eq!(free.makespan, 9.0);
}

#[test]
fn a_rank_averages_one_stage_after_the_other() {
    let plan = lowered("0F0, 1F0, 1B0, 0B0");
    let time = simulate(&plan, &costs(&[3.0, 3.0], 0.0), Transfers::Overlapped).unwrap();
    assert_eq!(span(&time, "1REDUCE_GRAD"), (4.0, 7.0));
    assert_eq!(span(&time, "0REDUCE_GRAD"), (7.0, 10.0));
    assert_eq!(time.makespan, 10.0);
}

#[test]
fn an_exchange_follows_both_averages() {
    let plan = lowered("0F0, 0B0\n1F0, 1B0").with_tied(&[(0, 1)]);
    let time = simulate(&plan, &costs(&[1.0, 1.0], 2.0), Transfers::Overlapped).unwrap();
    assert_eq!(span(&time, "1REDUCE_TIED>0"), (5.0, 9.0));
    assert_eq!(span(&time, "0REDUCE_TIED>1"), (7.0, 9.0));
    assert_eq!(time.makespan, 9.0);
    // On one rank nothing is exchanged.
    let plan = lowered("0F0, 1F0, 1B0, 0B0").with_tied(&[(0, 1)]);
    let time = simulate(&plan, &costs(&[1.0, 1.0], 2.0), Transfers::Overlapped).unwrap();
    assert_eq!(time.makespan, 7.0);
}

#[test]
fn times_that_make_no_sense_are_refused() {
    let plan = lowered("0F0, 0B0\n1F0, 1B0");
    for (reduce, tied, word) in [(-1.0, 0.0, "reduce"), (0.0, f64::NAN, "tied")] {
        let costs = costs(&[0.0, reduce], tied);
        let error = simulate(&plan, &costs, Transfers::Overlapped).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    }
}
