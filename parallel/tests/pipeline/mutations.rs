//! The validator against a search over every interleaving, on grids with one to three faults.

use std::num::NonZeroUsize;

use phalanx_parallel::pipeline::*;

use super::mistakes::{bases, mutate, with_ties};
use super::oracle;
use super::rng::Rng;

fn modes() -> Vec<(oracle::Depth, Sends, Transfers)> {
    let mut modes = vec![(None, Sends::Blocking, Transfers::Blocking)];
    for depth in 1..=2 {
        let n = NonZeroUsize::new(depth).unwrap();
        modes.push((Some(depth), Sends::Buffered(n), Transfers::Buffered(n)));
    }
    modes
}

#[test]
fn the_verdict_is_that_of_an_exhaustive_search() {
    let mut rng = Rng(1);
    let bases = with_ties(bases(3, 3));
    let (mut accepted, mut refused, mut told_apart) = (0, 0, 0);
    for _ in 0..15_000 {
        let mut plan = rng.pick(&bases).clone();
        for _ in 0..1 + rng.below(3) {
            mutate(&mut plan, &mut rng);
        }
        let mut verdicts = Vec::new();
        for (depth, sends, transfers) in modes() {
            let verdict = validate(
                &plan,
                &Rules {
                    sends,
                    ..Rules::default()
                },
            );
            let right = oracle::is_right(&plan, depth);
            assert_eq!(verdict.is_ok(), right, "{sends:?}: {verdict:?}\n{plan}");
            verdicts.push(right);
            if right {
                accepted += 1;
                let costs = Costs::unit(plan.stages()).with_transfer(0.5);
                simulate(&plan, &costs, transfers).expect("an accepted plan never gets stuck");
                simulate(&plan, &costs, Transfers::Overlapped).expect("nor with time to spare");
            } else {
                refused += 1;
            }
        }
        told_apart += usize::from(verdicts[0] != verdicts[2]);
    }
    // The test is worth something only if all sorts occur.
    assert!(accepted > 2_000, "{accepted} accepted");
    assert!(refused > 10_000, "{refused} refused");
    assert!(told_apart > 5, "{told_apart} grids need buffers");
}

#[test]
fn what_is_accepted_at_any_size_runs() {
    let mut rng = Rng(2);
    let mut accepted = 0;
    for _ in 0..4_000 {
        let named = *rng.pick(&Named::ALL);
        let (p, v, m) = (1 + rng.below(12), 1 + rng.below(3), 1 + rng.below(24));
        let Ok(plan) = named.schedule(p, v, m) else {
            continue;
        };
        let mut plan = match rng.below(2) {
            0 => plan,
            _ => lower(&plan, &Lowering::default()).unwrap(),
        };
        mutate(&mut plan, &mut rng);
        for (_, sends, transfers) in modes() {
            if validate(
                &plan,
                &Rules {
                    sends,
                    ..Rules::default()
                },
            )
            .is_ok()
            {
                accepted += 1;
                let costs = Costs::unit(plan.stages()).with_transfer(0.5);
                simulate(&plan, &costs, transfers).unwrap_or_else(|e| panic!("{e}\n{plan}"));
            }
        }
    }
    assert!(accepted > 300, "{accepted} accepted");
}

#[test]
fn the_limit_is_the_peak() {
    let plan = Named::OneFOneB.schedule(4, 1, 8).unwrap();
    let limit = |live_limit| Rules {
        live_limit: Some(live_limit),
        ..Rules::default()
    };
    assert_eq!(validate(&plan, &limit(4)).unwrap().peak_live, [4, 3, 2, 1]);
    let error = validate(&plan, &limit(3)).unwrap_err();
    assert_eq!((error.rank, error.index), (0, 3));
    assert_eq!(
        error.to_string().lines().take(2).collect::<Vec<_>>(),
        [
            "rank 0, place 3: 0F3 makes 4 live activations on this rank, and the limit is 3",
            "  rank 0: 0F0 0F1 0F2 [0F3] 0B0 0F4 0B1 0F5 0B2 0F6 …",
        ]
    );
}

#[test]
fn each_fault_is_said_in_a_sentence() {
    let says = |text: &str, words: &str| {
        let plan: Schedule = text.parse().unwrap();
        let error = validate(&plan, &Rules::default())
            .expect_err(text)
            .to_string();
        assert!(error.contains(words), "{text}\n{error}");
    };
    says("0F0, 0B0, 0F1", "0B1 is never done");
    says("0F0, 0B0, 0F0", "0F0 was done before");
    says("0F0, 0I0, 0B0", "0B0 does again");
    says("0B0, 0F0", "0B0 needs 0F0");
    says("1F0, 0F0, 1B0, 0B0", "1F0 needs 0F0");
    says("0F0, 0I0", "0W0 is never done");
    says("0F0, 0W0, 0I0", "0W0 needs 0I0");
    says(
        "0F0, 0B0\n1F0, 0W0, 1B0",
        "0W0 stands here, but stage 0 lives on rank 0",
    );
    says(
        "0F0, 0SEND_F0, 0B0\n1RECV_F0, 1F0, 1B0, 1SEND_B0",
        "0RECV_B0 is never done",
    );
    says(
        "0F0, 0RECV_B0, 0SEND_F0, 0B0\n1RECV_F0, 1F0, 1B0, 1SEND_B0",
        "rank 0 at 0RECV_B0 waits for rank 1, rank 1 at 1RECV_F0 waits for rank 0",
    );
    says(
        "0F0, 0F1, 0SEND_F1, 0SEND_F0, 0RECV_B0, 0RECV_B1, 0B0, 0B1\n\
         1RECV_F0, 1RECV_F1, 1F0, 1F1, 1B0, 1B1, 1SEND_B0, 1SEND_B1",
        "1RECV_F0 expects another message, but 0SEND_F1 of rank 0 comes first",
    );
    says(
        "0F0, 0SEND_F0>2, 0B0\n1F0, 1B0\n2F0, 2B0",
        "which no edge joins",
    );
    says("0F0, 0SEND_F0, 1F0, 1B0, 0B0", "live on the same rank");
    says("0F0, 0REDUCE_GRAD, 0B0", "only 0 of 1 microbatches");
    says(
        "0UNSHARD, 0F0, 0RESHARD, 0B0",
        "0B0 comes while the parameters",
    );
    says("0UNSHARD, 0F0, 0UNSHARD, 0B0", "gathered already");
}
