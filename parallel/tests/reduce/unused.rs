//! Parameters that a rank has no gradient for: who has none then, and what it costs to know.

use crate::model::{assert_close, on_ranks, values};
use crate::support::{SHAPES, reducer, shuffled, single, small, step};
use phalanx_comm::ProcessGroup;
use phalanx_parallel::{Average, Error, ReduceConfig, Result};
use phalanx_tensor::DType;

fn spared() -> ReduceConfig {
    ReduceConfig {
        find_unused_parameters: false,
        ..small()
    }
}

#[test]
fn what_no_rank_uses_has_no_gradient_and_what_some_use_is_divided_by_all() {
    on_ranks(3, |group| {
        let reducer = reducer(&group, small())?;
        for i in 0..6 {
            let uses = |rank: usize, p: usize| (p + i) % 4 == rank;
            let order = shuffled(i).into_iter();
            let order: Vec<usize> = order.filter(|&p| uses(group.rank(), p)).collect();
            let averages = step(&reducer, &order, i, &Average::EQUAL)?;
            for (p, (_, param)) in reducer.parameters().iter().enumerate() {
                let share = |rank: usize| uses(rank, p).then_some(1.0 / 3.0);
                let want = single(p, i, DType::F32, 3, share);
                let found = averages.get(param).map(values);
                assert_eq!(found.is_some(), want.is_some(), "step {i}, p{p}");
                if let (Some(found), Some(want)) = (found, want) {
                    assert_close(&found, &want, 1e-6, "used by some");
                }
            }
        }
        Ok(())
    });
}

/// How many collectives a step takes on this rank: a group's name tells the number of the call that split it off.
fn collectives(group: &dyn ProcessGroup, step: impl FnOnce() -> Result<()>) -> Result<usize> {
    let number = || -> Result<usize> {
        let name = group.split(Some(0), 0)?.expect("a color").name().to_owned();
        let number = name.rsplit('/').next().and_then(|n| n.split(':').next());
        Ok(number.unwrap().parse().unwrap())
    };
    let before = number()?;
    step()?;
    Ok(number()? - before - 1)
}

#[test]
fn it_costs_one_small_collective_and_the_option_spares_it() {
    for (config, more) in [(small(), 1), (spared(), 0)] {
        on_ranks(2, |group| {
            let reducer = reducer(&group, config.clone())?;
            let all = |i| step(&reducer, &shuffled(i), i, &Average::EQUAL).map(drop);
            all(0)?; // which agrees on the plan
            let taken = collectives(&*group, || all(1))?;
            assert_eq!(taken, reducer.buckets().unwrap().len() + more);
            Ok(())
        });
    }
}

#[test]
fn with_the_option_one_that_is_left_out_is_an_error_before_anything_is_sent() {
    on_ranks(2, |group| {
        let reducer = reducer(&group, spared())?;
        let params = reducer.parameters();
        let some = params.iter().map(|(_, p)| p).take(5);
        let taken = collectives(&*group, || {
            let end = reducer.begin(some, &Average::EQUAL).map(drop);
            match end {
                Err(Error::UnusedParameter { rank, parameter }) => {
                    assert_eq!((rank, &*parameter), (group.rank(), "p5"));
                }
                other => panic!("{other:?}"),
            }
            Ok(())
        })?;
        assert_eq!(taken, 0);
        // It is whole.
        let averages = step(&reducer, &shuffled(0), 0, &Average::EQUAL)?;
        assert_eq!(averages.len(), SHAPES.len());
        Ok(())
    });
}

#[test]
fn a_rank_of_weight_zero_may_leave_everything_out() {
    for config in [small(), spared()] {
        on_ranks(3, |group| {
            let reducer = reducer(&group, config.clone())?;
            for i in 0..3 {
                let idle = group.rank() == i;
                let average = Average::weighted(&*group, if idle { 0.0 } else { 1.0 })?;
                let order = if idle { Vec::new() } else { shuffled(i) };
                let averages = step(&reducer, &order, i, &average)?;
                for (p, (_, param)) in reducer.parameters().iter().enumerate() {
                    let share = |rank: usize| (rank != i).then_some(0.5);
                    let want = single(p, i, DType::F32, 3, share).unwrap();
                    let found = values(averages.get(param).unwrap());
                    assert_close(&found, &want, 1e-6, "of two ranks");
                }
            }
            Ok(())
        });
    }
}
