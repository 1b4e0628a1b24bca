//! Text from anywhere: the reader never panics, says where it stumbled, and keeps its memory
//! linear.

use phalanx_parallel::pipeline::*;
use proptest::prelude::*;

/// Pieces that occur in schedules, so that random texts get far into the reader.
fn nearly_a_schedule() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => (0u32..5, 0usize..11, 0u32..5).prop_map(|(s, k, m)| {
            let kinds = ["F", "I", "W", "B", "SEND_F", "RECV_F", "SEND_B", "RECV_B", "UNSHARD",
                "RESHARD", "REDUCE_GRAD"];
            format!("{s}{}{m}", kinds[k])
        }),
        4 => Just(", ".to_string()),
        2 => Just("\n".to_string()),
        1 => prop_oneof![
            Just("edges 0>1 0>2 1>2".to_string()), Just("edges".to_string()),
            Just("(1F1;0B0)OVERLAP_F_B".to_string()), Just("(".to_string()), Just(")".to_string()),
            Just("-".to_string()), Just("#".to_string()), Just(">".to_string()),
            Just("65535F65535".to_string()), Just("99999999999999999999".to_string()),
            Just("é".to_string()), Just("\u{0}".to_string()), Just("\r".to_string()),
        ],
    ];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

/// Reads, and if that works, proves, simulates and prints: nothing may panic, whatever it says.
fn exercise(text: &str) -> Result<(), TestCaseError> {
    match text.parse::<Schedule>() {
        Ok(plan) => {
            prop_assert_eq!(&plan.to_string().parse::<Schedule>().unwrap(), &plan);
            let valid = validate(&plan, &Rules::default());
            let time = simulate(&plan, &Costs::unit(plan.stages()), Transfers::Blocking);
            prop_assert!(valid.is_err() || time.is_ok());
            releases(&plan);
            if let Ok(lowered) = lower(&plan, &Lowering::default()) {
                prop_assert!(validate(&lowered, &Rules::default()).is_ok());
            }
        }
        Err(PlanError::Parse {
            line,
            column,
            token,
            reason,
        }) => {
            prop_assert!(!reason.is_empty());
            prop_assert!(token.chars().count() <= 41);
            let found = text.lines().nth(line - 1).unwrap_or_default();
            let found: String = found.chars().skip(column - 1).collect();
            prop_assert!(
                found.starts_with(token.trim_end_matches('…')),
                "{token:?} in {text:?}"
            );
        }
        Err(other) => prop_assert!(false, "not a parse error: {other}"),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn near_misses_never_panic(text in nearly_a_schedule()) {
        exercise(&text)?;
    }

    #[test]
    fn any_text_never_panics(text in any::<String>()) {
        exercise(&text)?;
        let _ = text.parse::<Action>();
    }

    #[test]
    fn actions_round_trip(stage in any::<u16>(), peer in any::<u16>(), mb in any::<u16>()) {
        for kind in [Kind::SendForward, Kind::RecvForward, Kind::SendBackward, Kind::RecvBackward] {
            let action = Action::transfer(kind, stage, peer, mb);
            prop_assert_eq!(action.to_string().parse::<Action>().unwrap(), action);
        }
    }
}

#[test]
fn large_numbers_in_short_texts_are_refused() {
    for text in [
        "0F65534",
        "65534F0",
        "0F0,0B0,0F40000",
        "edges 0>65000\n0F0,0B0",
        "0SEND_F0>60000",
    ] {
        let error = text.parse::<Schedule>().unwrap_err().to_string();
        assert!(error.starts_with("line "), "{error}");
    }
}

#[test]
fn many_stages_of_many_microbatches_need_no_table() {
    // 20,000 stages and 20,000 microbatches in 60,000 actions: a table of both would be 400 MB.
    let n = 20_000;
    let stages: String = (0..n).map(|s| format!("{s}F0,{s}B0,")).collect();
    let microbatches: String = (0..n).map(|mb| format!("0F{mb},")).collect();
    let plan: Schedule = format!("{stages}\n{microbatches}\n").parse().unwrap();
    assert_eq!((plan.stages(), plan.microbatches()), (n, n));
    assert!(validate(&plan, &Rules::default()).is_err());
    assert!(simulate(&plan, &Costs::unit(n), Transfers::Overlapped).is_err());
}
