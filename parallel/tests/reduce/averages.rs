//! What a step gives is what a single process makes of all ranks' gradients.

use crate::model::{assert_close, on_ranks, values};
use crate::support::{SHAPES, params, reducer, shuffled, single, small, step};
use phalanx_parallel::{Average, Compress, Error, GradReducer, ReduceConfig};
use phalanx_tensor::{DType, Device};
use std::sync::Arc;

/// Buckets of several sizes, one for all, and each gradient alone.
fn configs() -> Vec<ReduceConfig> {
    let in_place = |bytes| ReduceConfig {
        in_place_bytes: Some(bytes),
        ..ReduceConfig::default()
    };
    vec![small(), in_place(usize::MAX), in_place(1)]
}

#[test]
fn they_are_the_single_process_s_whatever_order_gradients_come_in() {
    for ranks in [1, 2, 3, 5] {
        for config in configs() {
            let found = on_ranks(ranks, |group| {
                let reducer = reducer(&group, config.clone())?;
                let mut found = Vec::new();
                for i in 0..4 {
                    // Another order on every rank, and in every step.
                    let order = shuffled(1 + 7 * i + group.rank());
                    let averages = step(&reducer, &order, i, &Average::EQUAL)?;
                    assert_eq!(averages.len(), SHAPES.len());
                    let params = reducer.parameters().iter();
                    let tensors = params.map(|(_, p)| averages.get(p).unwrap());
                    let shapes = tensors.clone().map(|t| t.dims().to_vec());
                    assert!(shapes.eq(SHAPES.map(<[usize]>::to_vec)));
                    found.push(tensors.map(values).collect::<Vec<_>>());
                }
                assert_eq!(reducer.stats().steps, 4);
                Ok(found)
            });
            assert!(
                found.iter().all(|f| *f == found[0]),
                "the same bits everywhere"
            );
            for (i, averages) in found[0].iter().enumerate() {
                for (p, found) in averages.iter().enumerate() {
                    let share = |_| Some(1.0 / ranks as f64);
                    let want = single(p, i, DType::F32, ranks, share).unwrap();
                    assert_close(
                        found,
                        &want,
                        1e-6,
                        &format!("step {i}, p{p}, {ranks} ranks"),
                    );
                }
            }
        }
    }
}

#[test]
fn with_weights_too() {
    const WEIGHTS: [f64; 3] = [3.0, 0.0, 1.0];
    for config in configs() {
        on_ranks(3, |group| {
            let reducer = reducer(&group, config.clone())?;
            for i in 0..3 {
                let average = Average::weighted(&*group, WEIGHTS[group.rank()])?;
                let averages = step(&reducer, &shuffled(i), i, &average)?;
                for (p, (_, param)) in reducer.parameters().iter().enumerate() {
                    let share = |rank: usize| (rank != 1).then(|| WEIGHTS[rank] / 4.0);
                    let want = single(p, i, DType::F32, 3, share).unwrap();
                    let found = values(averages.get(param).unwrap());
                    assert_close(&found, &want, 1e-6, "weighted");
                }
            }
            Ok(())
        });
    }
}

#[test]
fn an_average_is_of_one_group() {
    on_ranks(2, |group| {
        let alone = group.split(Some(group.rank() as u32), 0)?.expect("a color");
        let average = Average::weighted(&*group, 1.0 + group.rank() as f64)?;
        let end = reducer(&alone, small())?.begin([], &average).map(drop);
        assert!(matches!(end, Err(Error::InvalidUse { .. })), "{end:?}");
        Ok(())
    });
}

/// A gradient may have the parameter's own type: it is averaged in the gradients' type all the same.
#[test]
fn gradients_of_half_types_are_averaged_in_f32() {
    for config in configs() {
        for dtype in [DType::BF16, DType::F16] {
            on_ranks(2, |group| {
                let params = params(dtype, Device::cpu(group.rank()));
                let reducer = GradReducer::new(params, Arc::clone(&group), config.clone())?;
                let averages = step(&reducer, &shuffled(3), 0, &Average::EQUAL)?;
                for (p, (_, param)) in reducer.parameters().iter().enumerate() {
                    let found = averages.get(param).unwrap();
                    assert_eq!(found.dtype(), DType::F32);
                    // Two summands of a half type have a mean that is exact in f32.
                    let want = single(p, 0, dtype, 2, |_| Some(0.5)).unwrap();
                    assert_eq!(values(found), want);
                }
                Ok(())
            });
        }
    }
}

#[test]
fn a_hook_stands_for_the_average() {
    on_ranks(2, |group| {
        let config = ReduceConfig {
            hook: Some(Arc::new(Compress::Bf16)),
            ..small()
        };
        let reducer = reducer(&group, config)?;
        for i in 0..3 {
            let averages = step(&reducer, &shuffled(i), i, &Average::EQUAL)?;
            for (p, (_, param)) in reducer.parameters().iter().enumerate() {
                let want = single(p, i, DType::F32, 2, |_| Some(0.5)).unwrap();
                let found = values(averages.get(param).unwrap());
                assert_close(&found, &want, 2e-2, "compressed");
            }
        }
        Ok(())
    });
}

#[test]
fn ranks_that_give_other_parameters_are_told_so() {
    let errors = on_ranks(2, |group| {
        let mut params = params(DType::F32, Device::cpu(group.rank()));
        if group.rank() == 1 {
            params.swap(0, 2);
        }
        let end = GradReducer::new(params, group, ReduceConfig::default());
        Ok(end.map(drop).unwrap_err().to_string())
    });
    assert_eq!(errors[0], errors[1]);
    assert!(
        errors[0].contains("rank 1 has parameter p2"),
        "{}",
        errors[0]
    );
}

#[test]
fn ranks_that_use_other_configurations_are_told_so() {
    let errors = on_ranks(2, |group| {
        let config = ReduceConfig {
            find_unused_parameters: group.rank() == 0,
            ..ReduceConfig::default()
        };
        let end = GradReducer::new(params(DType::F32, group.device()), group, config);
        Ok(end.map(drop).unwrap_err().to_string())
    });
    assert_eq!(errors[0], errors[1]);
    let words = "rank 1 has configuration find_unused_parameters: false";
    assert!(errors[0].contains(words), "{}", errors[0]);
}

#[test]
fn a_parameter_occurs_once() {
    on_ranks(1, |group| {
        let mut params = params(DType::F32, group.device());
        params.push(("again".into(), params[2].1.clone()));
        let end = GradReducer::new(params, group, ReduceConfig::default());
        let text = end.map(drop).unwrap_err().to_string();
        assert!(
            text.contains("`p2` and `again` are one parameter"),
            "{text}"
        );
        Ok(())
    });
}
