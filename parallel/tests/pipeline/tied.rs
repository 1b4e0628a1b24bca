//! `REDUCE_TIED`: where it may stand, and that two ranks which meet in it cannot wait in a circle.

use phalanx_parallel::pipeline::{Lowering, Named, Rules, Schedule, Sends, lower, validate};

fn refused(plan: &str) -> String {
    let plan: Schedule = plan.parse().unwrap();
    validate(&plan, &Rules::default()).unwrap_err().to_string()
}

#[test]
fn sums_behind_all_else_are_right_in_every_named_plan() {
    for named in Named::ALL {
        let Ok(plan) = named.schedule(3, named.default_stages_per_rank(), 6) else {
            continue;
        };
        let last = plan.stages() - 1;
        for plan in [lower(&plan, &Lowering::default()).unwrap(), plan] {
            let tied = plan.with_tied(&[(0, last), (1, 1), (2, 1)]);
            validate(&tied, &Rules::default()).unwrap();
            let text = tied.to_string();
            assert_eq!(text.parse::<Schedule>().unwrap().to_string(), text);
        }
    }
}

/// Each rank does its own sum first: neither comes to the other's.
#[test]
fn sums_in_two_orders_are_a_circle() {
    for transfers in [true, false] {
        let moved = |text: &'static str| if transfers { text } else { "" };
        let plan = format!(
            "0F0, {}0B0, 0REDUCE_TIED>1, 0REDUCE_TIED>2\n\
             1F0, 1B0, 1REDUCE_TIED>0\n",
            moved("0SEND_F0, 0RECV_B0, ")
        );
        // Stages 1 and 2 on one rank, which has the sums the other way round.
        let plan = plan.replace(
            "1F0, 1B0, 1REDUCE_TIED>0",
            &format!(
                "{}1F0, 2F0, 2B0, 1B0, {}2REDUCE_TIED>0, 1REDUCE_TIED>0",
                moved("1RECV_F0, "),
                moved("1SEND_B0, ")
            ),
        );
        let said = refused(&plan);
        assert!(said.contains("in a circle"), "{said}");
        assert!(
            said.contains("0REDUCE_TIED>1") && said.contains("2REDUCE_TIED>0"),
            "{said}"
        );
        // In one order it is a good one.
        let plan = plan.replace(
            "2REDUCE_TIED>0, 1REDUCE_TIED>0",
            "1REDUCE_TIED>0, 2REDUCE_TIED>0",
        );
        validate(&plan.parse::<Schedule>().unwrap(), &Rules::default()).unwrap();
    }
}

/// A rank that is to receive before the sum, from one that sends behind it.
#[test]
fn a_sum_before_a_transfer_that_the_other_needs_is_a_circle() {
    let said = refused(
        "0F0, 0SEND_F0, 0RECV_B0, 0B0, 0REDUCE_TIED>2\n\
         1RECV_F0, 1F0, 1SEND_F0, 1RECV_B0, 1B0, 1SEND_B0\n\
         2RECV_F0, 2F0, 2B0, 2REDUCE_TIED>0, 2SEND_B0\n",
    );
    assert!(said.contains("in a circle"), "{said}");
    assert!(said.contains("2REDUCE_TIED>0 waits for rank 0"), "{said}");
}

#[test]
fn a_sum_has_two_ends_and_comes_when_the_gradients_are_whole() {
    let good = "0F0, 0SEND_F0, 0RECV_B0, 0B0, 0REDUCE_GRAD, 0REDUCE_TIED>1\n\
                1RECV_F0, 1F0, 1B0, 1SEND_B0, 1REDUCE_GRAD, 1REDUCE_TIED>0\n";
    validate(&good.parse::<Schedule>().unwrap(), &Rules::default()).unwrap();
    for (from, to, sentence) in [
        (", 1REDUCE_GRAD", "", "1REDUCE_GRAD is never done"),
        (", 1REDUCE_TIED>0", "", "1REDUCE_TIED>0 is never done"),
        (
            "1B0, 1SEND_B0, 1REDUCE_GRAD, 1REDUCE_TIED>0",
            "1REDUCE_TIED>0, 1B0, 1SEND_B0, 1REDUCE_GRAD",
            "only 0 of 1 microbatches",
        ),
        (
            "0REDUCE_GRAD, 0REDUCE_TIED>1",
            "0REDUCE_TIED>1, 0REDUCE_GRAD",
            "0REDUCE_TIED>1 needs 0REDUCE_GRAD",
        ),
        (
            "0REDUCE_TIED>1",
            "0REDUCE_TIED>1, 0REDUCE_TIED>1",
            "0REDUCE_TIED>1 was done before",
        ),
        (
            "0REDUCE_TIED>1",
            "0REDUCE_TIED",
            "0REDUCE_TIED>1 is never done",
        ),
        (
            "0REDUCE_TIED>1",
            "1REDUCE_TIED>0",
            "stage 1 lives on rank 1",
        ),
    ] {
        let said = refused(&good.replace(from, to));
        assert!(said.contains(sentence), "{sentence}: {said}");
    }
}

/// What is in flight between the two ranks would be taken for a part of the sum.
#[test]
fn nothing_is_in_flight_where_two_ranks_sum() {
    let plan = "0F0, 0SEND_F0, 3RECV_F0, 3F0, 3B0, 3SEND_B0, 3REDUCE_TIED>2, 0RECV_B0, 0B0\n\
                1RECV_F0, 1F0, 2F0, 2SEND_F0, 2RECV_B0, 2B0, 1B0, 1SEND_B0, 2REDUCE_TIED>3\n";
    let buffered = Rules {
        sends: Sends::Buffered(2.try_into().unwrap()),
        ..Rules::default()
    };
    let refused = validate(&plan.parse().unwrap(), &buffered).unwrap_err();
    let said = refused.to_string();
    assert!(said.contains("1SEND_B0 of rank 1 comes first"), "{said}");
    // Sent behind the sum, it is in order.
    let plan = plan.replace(
        "1B0, 1SEND_B0, 2REDUCE_TIED>3",
        "2REDUCE_TIED>3, 1B0, 1SEND_B0",
    );
    validate(&plan.parse().unwrap(), &buffered).unwrap();
    validate(&plan.parse().unwrap(), &Rules::default()).unwrap();
}
