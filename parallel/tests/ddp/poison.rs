//! A step that ends half done leaves a wrapper that refuses all further steps, and a rank that is out of
//! step all the same meets no other's reduction.

use crate::model::{Mlp, on_ranks};
use phalanx_autograd::nn::Module;
use phalanx_autograd::{Error as AutogradError, Grads, Tape, Var, Vjp};
use phalanx_comm::op::Difference;
use phalanx_comm::{Error as CommError, ProcessGroup, ReduceOp};
use phalanx_parallel::ddp::{Wrapper, accumulate_all, backward_all};
use phalanx_parallel::{Ddp, DdpConfig, Error, Result};
use phalanx_tensor::{DType, Device, Tensor};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// The identity, whose backward fails or panics.
#[derive(Debug)]
enum Broken {
    Fails,
    Panics,
}

impl Vjp for Broken {
    fn name(&self) -> &'static str {
        "broken"
    }

    fn backward(&self, _: Tensor, _: &[bool]) -> phalanx_autograd::Result<Grads> {
        match self {
            Broken::Fails => Err(AutogradError::other("a fault in the sweep")),
            Broken::Panics => panic!("a fault in the sweep"),
        }
    }

    fn saved_bytes(&self) -> usize {
        0
    }
}

fn wrap(group: Arc<dyn ProcessGroup>) -> Result<Ddp<Mlp>> {
    let config = DdpConfig {
        in_place_bytes: Some(1), // a bucket for each parameter
        uneven_inputs: true,
        ..Default::default()
    };
    let model = Mlp::new(&[3, 4, 2], DType::F32, group.device(), 0);
    Ddp::new(model, group, config)
}

/// The loss; `broken`: the sweep ends between the last layer's gradients and the first's.
fn loss(ddp: &Ddp<Mlp>, tape: &Tape, broken: Option<Broken>) -> Result<Var> {
    let x = tape.constant(Tensor::ones([2, 3], DType::F32, ddp.group().device())?);
    let mut x = ddp.module().0[0].forward(tape, &x)?;
    if let Some(broken) = broken {
        x = Var::from_vjp(tape, &[&x], x.value().clone(), |_| broken)?;
    }
    Ok(ddp.module().0[1].forward(tape, &x)?.square()?.mean_all()?)
}

/// Holds every call of the wrapper to the refusal.
fn assert_poisoned(ddp: &Ddp<Mlp>, words: &str) {
    let tape = Tape::new();
    let loss = || loss(ddp, &tape, None).unwrap();
    for refused in [
        ddp.backward(&tape, &loss()).map(drop),
        ddp.backward_weighted(&tape, &loss(), 1.0).map(drop),
        ddp.accumulate(&tape, &loss()),
        ddp.join(|_| Ok(())).map(drop),
        ddp.check_replicas(),
        backward_all(&[ddp], &tape, &loss()).map(drop),
        accumulate_all(&[ddp], &tape, &loss()),
    ] {
        match refused {
            Err(Error::Poisoned {
                rank: 0,
                step: 1,
                reason,
            }) => {
                assert!(reason.contains(words), "{reason}")
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_step_that_fails_half_way_poisons_the_wrapper() {
    on_ranks(1, |group| {
        let ddp = wrap(group)?;
        let tape = Tape::new();
        ddp.backward(&tape, &loss(&ddp, &tape, None)?)?;
        let failed = ddp.backward(&tape, &loss(&ddp, &tape, Some(Broken::Fails))?);
        assert!(matches!(failed.map(drop), Err(Error::Autograd(_))));
        assert_poisoned(&ddp, "a fault in the sweep");
        // It still computes, and can be wrapped again.
        let group = Arc::clone(ddp.group());
        let again = Ddp::new(ddp.into_module(), group, DdpConfig::default())?;
        again.backward(&tape, &loss(&again, &tape, None)?).map(drop)
    });
}

#[test]
fn a_step_that_panics_half_way_poisons_the_wrapper() {
    on_ranks(1, |group| {
        let ddp = wrap(group)?;
        let tape = Tape::new();
        ddp.backward(&tape, &loss(&ddp, &tape, None)?)?;
        let broken = loss(&ddp, &tape, Some(Broken::Panics))?;
        let caught = catch_unwind(AssertUnwindSafe(|| ddp.backward(&tape, &broken).map(drop)));
        assert!(caught.is_err());
        assert_poisoned(&ddp, "a panic ended it");
        Ok(())
    });
}

#[test]
fn an_optimizer_that_fails_in_join_poisons_the_wrapper() {
    on_ranks(2, |group| {
        let rank = group.rank();
        let ddp = wrap(group)?;
        let tape = Tape::new();
        ddp.backward(&tape, &loss(&ddp, &tape, None)?)?;
        if rank == 1 {
            ddp.backward(&tape, &loss(&ddp, &tape, None)?)?;
            return ddp.group().barrier()?.wait().map_err(Into::into);
        }
        let failed = ddp.join(|_| Err(AutogradError::other("no step").into()));
        assert!(matches!(failed, Err(Error::Autograd(_))));
        let refused = ddp.join(|_| Ok(()));
        assert!(
            matches!(refused, Err(Error::Poisoned { step: 2, .. })),
            "{refused:?}"
        );
        Ok(ddp.group().barrier()?.wait()?)
    });
}

#[test]
fn what_fails_before_anything_is_sent_leaves_the_wrapper_whole() {
    on_ranks(1, |group| {
        let ddp = wrap(group)?;
        let (tape, other) = (Tape::new(), Tape::new());
        let elsewhere = loss(&ddp, &other, None)?;
        assert!(ddp.backward(&tape, &elsewhere).is_err());
        assert!(ddp.accumulate(&tape, &elsewhere).is_err());
        ddp.backward(&tape, &loss(&ddp, &tape, None)?).map(drop)
    });
}

#[test]
fn a_bucket_meets_no_reduction_of_equal_shape() {
    let errors = on_ranks(2, |group| {
        let rank = group.rank();
        let config = DdpConfig {
            in_place_bytes: Some(1),
            ..Default::default()
        };
        let model = Mlp::new(&[3, 4], DType::F32, group.device(), 0);
        let ddp = Ddp::new(model, Arc::clone(&group), config)?;
        let tape = Tape::new();
        let step = || -> Result<()> {
            let x = tape.constant(Tensor::ones([2, 3], DType::F32, group.device())?);
            let loss = ddp.forward(&tape, &x)?.mean_all()?;
            ddp.backward(&tape, &loss).map(drop)
        };
        step()?;
        let ended = if rank == 0 {
            step()
        } else {
            // What rank 0 calls, shape by shape, from outside of any step.
            let lens: Vec<usize> = ddp.buckets().unwrap().iter().map(|b| b.len).collect();
            let call_alike = || -> Result<()> {
                // Which parameters are used is small talk, in the host's memory.
                let uses = Tensor::zeros([2], DType::Bool, Device::cpu(rank))?;
                group.all_gather(uses)?.wait()?;
                for len in lens {
                    let t = Tensor::zeros([len], DType::F32, group.device())?;
                    group.all_reduce(t, ReduceOp::Avg)?.wait()?;
                }
                Ok(())
            };
            call_alike()
        };
        match ended {
            Err(Error::Comm(error @ CommError::Divergence { .. })) => Ok(error),
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(errors[0], errors[1]);
    assert!(matches!(
        &errors[0],
        CommError::Divergence {
            difference: Difference::Label,
            ..
        }
    ));
    let text = errors[0].to_string();
    assert!(text.contains("step 1, part 0"), "{text}");
}

#[test]
fn buckets_of_two_wrappers_of_equal_shape_do_not_meet() {
    let errors = on_ranks(2, |group| {
        let wrap = |seed| {
            let model = Mlp::new(&[3, 4], DType::F32, group.device(), seed);
            Ddp::new(model, Arc::clone(&group), DdpConfig::default())
        };
        let (a, b) = (wrap(1)?, wrap(2)?);
        let tape = Tape::new();
        let x = || -> Result<Var> {
            Ok(tape.constant(Tensor::ones([2, 3], DType::F32, group.device())?))
        };
        // The first step of each, in another order on rank 1.
        let first = if group.rank() == 0 { &a } else { &b };
        let loss = first.forward(&tape, &x()?)?.mean_all()?;
        match first.backward(&tape, &loss).map(drop) {
            Err(Error::Comm(error @ CommError::Divergence { .. })) => Ok(error),
            other => panic!("{other:?}"),
        }
    });
    let of_label = |e: &CommError| {
        matches!(
            e,
            CommError::Divergence {
                difference: Difference::Label,
                ..
            }
        )
    };
    assert!(errors.iter().all(of_label), "{errors:?}");
}

#[test]
fn wrappers_in_another_order_are_one_error_on_every_rank() {
    on_ranks(2, |group| {
        let wrap = |seed| {
            let model = Mlp::new(&[3, 3], DType::F32, group.device(), seed);
            Ddp::new(model, Arc::clone(&group), DdpConfig::default())
        };
        let (a, b) = (wrap(1)?, wrap(2)?);
        let tape = Tape::new();
        let x = tape.constant(Tensor::ones([2, 3], DType::F32, group.device())?);
        let loss = b.forward(&tape, &a.forward(&tape, &x)?)?.mean_all()?;
        let order: [&dyn Wrapper; 2] = match group.rank() {
            0 => [&a, &b],
            _ => [&b, &a],
        };
        let error = backward_all(&order, &tape, &loss).map(drop).unwrap_err();
        assert!(
            matches!(error, Error::RanksDiffer { rank: 1, .. }),
            "{error}"
        );
        Ok(())
    });
}
