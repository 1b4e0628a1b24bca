//! Lowered plans do what the plan says, in no more time, and hold nothing longer than they must.

use std::collections::HashSet;
use std::num::NonZeroUsize;

use phalanx_parallel::pipeline::*;
use proptest::prelude::*;

fn named() -> impl Strategy<Value = Schedule> {
    (0usize..8, 1usize..=8, 1usize..=3, 1usize..=24)
        .prop_filter_map("shape", |(n, p, v, m)| Named::ALL[n].schedule(p, v, m).ok())
}

/// A stage for every rank, joined by a chain and by skips.
fn skips() -> impl Strategy<Value = Schedule> {
    (3usize..=6, 1usize..=8, any::<u64>()).prop_map(|(p, m, bits)| {
        let mut edges: Vec<(u16, u16)> = (1..p as u16).map(|s| (s - 1, s)).collect();
        let mut bit = 0;
        for from in 0..p as u16 {
            for to in from + 2..p as u16 {
                if bits >> bit & 1 == 1 {
                    edges.push((from, to));
                }
                bit += 1;
            }
        }
        let chain = Named::OneFOneB.schedule(p, 1, m).unwrap();
        let graph = StageGraph::new(p as u16, &edges).unwrap();
        let placement = chain.placement().to_vec();
        Schedule::new(graph, placement, m as u16, chain.ranks().to_vec()).unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn lowered_plans_hold(plan in prop_oneof![named(), skips()], depth in 1usize..4) {
        let lowered = lower(&plan, &Lowering::default()).unwrap();
        let again: Schedule = lowered.to_string().parse().unwrap();
        prop_assert_eq!(&again, &lowered);
        // The compute is the plan's, in the plan's order.
        prop_assert_eq!(lowered.compute_only().split_backward(), plan.split_backward());
        let depth = NonZeroUsize::new(depth).unwrap();
        for (sends, transfers) in [
            (Sends::Blocking, Transfers::Blocking),
            (Sends::Buffered(depth), Transfers::Buffered(depth)),
        ] {
            validate(&lowered, &Rules { sends, ..Rules::default() }).unwrap();
            let costs = Costs::unit(plan.stages()).with_transfer(0.25);
            simulate(&lowered, &costs, transfers).unwrap();
        }
        // Written out or understood, transfers take the same time.
        let costs = Costs::unit(plan.stages()).with_transfer(0.5);
        let unmerged = lower(&plan, &Lowering { merge: false, ..Lowering::default() }).unwrap();
        let a = simulate(&plan, &costs, Transfers::Overlapped).unwrap();
        let b = simulate(&unmerged, &costs, Transfers::Overlapped).unwrap();
        prop_assert_eq!(a.makespan, b.makespan);
    }

    #[test]
    fn nothing_is_released_early_or_twice(plan in prop_oneof![named(), skips()]) {
        let lowered = lower(&plan, &Lowering::default()).unwrap();
        let saved = |b: &Buffer| matches!(b, Buffer::Saved { .. });
        for (list, released) in lowered.ranks().iter().zip(releases(&lowered)) {
            let buffers: HashSet<_> = released.iter().map(|&(_, b)| b).collect();
            prop_assert_eq!(buffers.len(), released.len());
            let forwards = list.iter().filter(|a| a.kind() == Kind::Forward).count();
            prop_assert_eq!(released.iter().filter(|(_, b)| saved(b)).count(), forwards);
            for (place, buffer) in released {
                if let Buffer::Saved { stage, microbatch } = buffer {
                    let last = list[place];
                    prop_assert!(last.kind().releases_activation());
                    prop_assert_eq!((last.stage(), last.microbatch()), (stage, microbatch));
                }
            }
        }
    }

    #[test]
    fn no_more_stages_are_gathered_than_asked(plan in named(), room in 1usize..4) {
        let lowering = Lowering { gathered: Some(room), ..Lowering::default() };
        let lowered = lower(&plan, &lowering).unwrap();
        validate(&lowered, &Rules::default()).unwrap();
        for list in lowered.ranks() {
            let mut gathered = 0i64;
            for action in list {
                match action.kind() {
                    Kind::Unshard => gathered += 1,
                    Kind::Reshard => gathered -= 1,
                    _ => {}
                }
                prop_assert!((0..=room as i64).contains(&gathered));
            }
            prop_assert_eq!(gathered, 0);
        }
    }
}

#[test]
fn a_send_keeps_the_halves_of_a_backward_apart() {
    let plan = Named::ZbH1.schedule(2, 1, 2).unwrap();
    let lowered = lower(&plan, &Lowering::default()).unwrap();
    // Stage 0 sends nothing back, so its halves meet; on stage 1 they never do.
    assert_eq!(
        lowered.to_string(),
        "0F0, 0SEND_F0, 0F1, 0SEND_F1, 0RECV_B0, 0B0, 0RECV_B1, 0B1, 0REDUCE_GRAD\n\
         1RECV_F0, 1F0, 1RECV_F1, 1I0, 1SEND_B0, 1F1, 1I1, 1SEND_B1, 1W0, 1W1, 1REDUCE_GRAD\n"
    );
}

#[test]
fn what_is_lowered_is_not_lowered_again() {
    let plan = Named::Gpipe.schedule(2, 1, 1).unwrap();
    let lowered = lower(&plan, &Lowering::default()).unwrap();
    let error = lower(&lowered, &Lowering::default())
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "the schedule is lowered already: rank 0 has 0SEND_F0"
    );
}
