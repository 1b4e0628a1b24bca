//! An error in mid-step, or a step that is given up, ends the reducer on this rank.

use crate::model::on_ranks;
use crate::support::{gradient, reducer, shuffled, small, step};
use phalanx_autograd::Param;
use phalanx_comm::ProcessGroup;
use phalanx_parallel::{
    Average, CommHook, Completion, Error, GradBucket, GradReducer, ReduceConfig, Result,
};
use phalanx_tensor::{DType, Device, Tensor};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

fn assert_poisoned(reducer: &GradReducer, at: u64, words: &str) {
    match reducer.begin([], &Average::EQUAL).map(drop) {
        Err(Error::Poisoned {
            rank: 0,
            step,
            reason,
        }) => {
            assert_eq!(step, at);
            assert!(reason.contains(words), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

/// A reducer of a group of one rank that has done one step.
fn alone<T>(f: impl Fn(GradReducer) -> Result<T> + Sync) {
    on_ranks(1, |group| {
        let reducer = reducer(&group, small())?;
        drop(step(&reducer, &shuffled(0), 0, &Average::EQUAL)?);
        f(reducer).map(drop)
    });
}

fn of(reducer: &GradReducer, i: usize) -> (&Param, Tensor) {
    let (_, param) = &reducer.parameters()[i];
    (param, gradient(i, 0, 1, DType::F32, param.device()))
}

#[test]
fn a_gradient_that_never_comes_is_an_error_that_names_it() {
    alone(|reducer| {
        let all = reducer.parameters().iter().map(|(_, p)| p);
        let mut step = reducer.begin(all, &Average::EQUAL)?;
        for i in [0, 1, 2, 3, 4, 6] {
            let (param, gradient) = of(&reducer, i);
            step.ready(param, gradient)?;
        }
        let Err(Error::GradientMissing {
            rank: 0, parameter, ..
        }) = step.finish().map(drop)
        else {
            panic!();
        };
        assert_eq!(parameter, "p5");
        assert_poisoned(&reducer, 1, "the gradient of `p5`");
        Ok(())
    });
}

#[test]
fn what_cannot_be_taken_is_an_error_and_the_step_goes_no_further() {
    let other = Param::new(Tensor::zeros([2], DType::F32, Device::cpu(0)).unwrap());
    let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, Device::cpu(0)).unwrap();
    let cases: [(&str, Option<usize>, Tensor); 5] = [
        ("none of its parameters", None, zeros(&[2], DType::F32)),
        (
            "`p0` has its gradient already",
            Some(0),
            zeros(&[3, 5], DType::F32),
        ),
        (
            "does not expect a gradient of `p1`",
            Some(1),
            zeros(&[], DType::F32),
        ),
        (
            "no gradient of it is f32 [71]",
            Some(2),
            zeros(&[71], DType::F32),
        ),
        (
            "no gradient of it is f64 [70]",
            Some(2),
            zeros(&[70], DType::F64),
        ),
    ];
    for (words, param, bad) in &cases {
        alone(|reducer| {
            let (first, third) = (of(&reducer, 0), of(&reducer, 2));
            let mut step = reducer.begin([first.0, third.0], &Average::EQUAL)?;
            step.ready(first.0, first.1)?;
            let param = param.map_or(&other, |i| &reducer.parameters()[i].1);
            let end = step.ready(param, bad.clone());
            let Err(error @ Error::InvalidUse { .. }) = end else {
                panic!("{end:?}");
            };
            assert!(error.to_string().contains(words), "{error}");
            // Nothing goes on behind it.
            let refused = [step.ready(third.0, third.1), step.finish().map(drop)];
            for refused in refused {
                assert!(
                    matches!(refused, Err(Error::Poisoned { .. })),
                    "{refused:?}"
                );
            }
            assert_poisoned(&reducer, 1, words);
            Ok(())
        });
    }
}

#[test]
fn a_step_that_is_given_up_poisons() {
    alone(|reducer| {
        drop(reducer.begin([of(&reducer, 0).0], &Average::EQUAL)?);
        assert_poisoned(&reducer, 1, "given up");
        Ok(())
    });
    alone(|reducer| {
        let end = catch_unwind(AssertUnwindSafe(|| {
            let _step = reducer.begin([of(&reducer, 0).0], &Average::EQUAL);
            panic!("on purpose");
        }));
        assert!(end.is_err());
        assert_poisoned(&reducer, 1, "a panic ended it");
        Ok(())
    });
}

#[test]
fn one_step_at_a_time() {
    alone(|reducer| {
        let step = reducer.begin([], &Average::EQUAL)?;
        assert_poisoned(&reducer, 1, "under way");
        step.finish()?; // which goes on, and is whole
        reducer.begin([], &Average::EQUAL)?.finish().map(drop)
    });
}

#[test]
fn what_is_wrong_before_anything_is_sent_leaves_it_whole() {
    let other = Param::new(Tensor::zeros([2], DType::F32, Device::cpu(0)).unwrap());
    alone(|reducer| {
        let (param, _) = of(&reducer, 0);
        for wrong in [[param, param], [param, &other]] {
            let end = reducer.begin(wrong, &Average::EQUAL).map(drop);
            assert!(matches!(end, Err(Error::InvalidUse { .. })), "{end:?}");
        }
        step(&reducer, &shuffled(1), 1, &Average::EQUAL).map(drop)
    });
}

/// Fails in its first bucket, at once or when it is waited for.
struct Fails(bool);

impl CommHook for Fails {
    fn start(&self, _: &Arc<dyn ProcessGroup>, _: GradBucket<'_>) -> Result<Box<dyn Completion>> {
        let failed = || phalanx_autograd::Error::other("the hook has failed").into();
        match self.0 {
            true => Err(failed()),
            false => Ok(Box::new(move || Err(failed()))),
        }
    }
}

#[test]
fn a_hook_that_fails_poisons() {
    for at_once in [true, false] {
        on_ranks(1, |group| {
            let config = ReduceConfig {
                hook: Some(Arc::new(Fails(at_once))),
                ..small()
            };
            let reducer = reducer(&group, config)?;
            let end = step(&reducer, &shuffled(0), 0, &Average::EQUAL).map(drop);
            let text = end.unwrap_err().to_string();
            assert_eq!(text, "the hook has failed", "as the hook said it");
            assert_poisoned(&reducer, 0, "the hook has failed");
            Ok(())
        });
    }
}

#[test]
fn steps_of_two_reducers_of_equal_shape_do_not_meet() {
    let errors = on_ranks(2, |group| {
        let (a, b) = (reducer(&group, small())?, reducer(&group, small())?);
        let first = if group.rank() == 0 { &a } else { &b };
        let end = step(first, &shuffled(0), 0, &Average::EQUAL).map(drop);
        Ok(end.unwrap_err().to_string())
    });
    assert_eq!(errors[0], errors[1]);
    assert!(errors[0].contains("owner"), "{}", errors[0]);
}
