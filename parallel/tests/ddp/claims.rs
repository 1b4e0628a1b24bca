//! Whose gradients a sweep may make: what would train replicas apart in silence is an error.

use crate::model::{Mlp, mse, on_ranks, values};
use phalanx_autograd::nn::{Linear, Module, Visitor};
use phalanx_autograd::optim::{Optimizer, Sgd, SgdConfig};
use phalanx_autograd::{Error as AutogradError, Param, Tape, Var};
use phalanx_parallel::ddp::{accumulate_all, backward_all};
use phalanx_parallel::{Ddp, DdpConfig, Error, Result};
use phalanx_tensor::{DType, Device, Rng, Tensor};
use std::sync::Arc;

fn model(dims: &[usize], device: Device, seed: u64) -> Mlp {
    Mlp::new(dims, DType::F64, device, seed)
}

/// A rank's own input of a step.
fn input(rank: usize, step: usize, device: Device) -> Result<Tensor> {
    let mut rng = Rng::new((100 * rank + step) as u64);
    Ok(Tensor::randn([4, 3], DType::F64, device, &mut rng)?)
}

fn loss(forward: impl Fn(&Var) -> phalanx_autograd::Result<Var>, x: &Var) -> Result<Var> {
    let y = forward(x)?;
    let zeros = Tensor::zeros(y.shape(), y.dtype(), y.device())?;
    Ok(mse(&y, &x.tape().constant(zeros))?)
}

#[test]
fn a_plain_backward_is_an_error_and_leaves_the_recording_to_the_right_one() {
    on_ranks(2, |group| {
        let (rank, device) = (group.rank(), group.device());
        let ddp = Ddp::new(model(&[3, 2], device, 0), group, DdpConfig::default())?;
        let tape = Tape::new();
        let x = tape.constant(input(rank, 0, device)?);
        let loss = loss(|x| ddp.forward(&tape, x), &x)?;
        let error = tape.backward(&loss).unwrap_err();
        let AutogradError::Claimed {
            id,
            ref shape,
            op: "linear",
            holder: "a Ddp",
            ..
        } = error
        else {
            panic!("{error}");
        };
        let reached = |p: &Param| p.id() == id && p.shape() == shape;
        assert!(ddp.parameters().iter().any(reached), "{error}");
        assert!(error.to_string().contains("call Ddp::backward"), "{error}");
        assert_eq!(ddp.backward(&tape, &loss)?.len(), 2);
        // Unwrapped, it is a module like any other.
        let module = ddp.into_module();
        assert_eq!(
            tape.backward(&module.forward(&tape, &x)?.mean_all()?)?
                .len(),
            2
        );
        Ok(())
    });
}

/// Shows one of its two layers.
struct Forgetful {
    shown: Linear,
    forgotten: Linear,
}

impl Module for Forgetful {
    fn forward(&self, tape: &Tape, x: &Var) -> phalanx_autograd::Result<Var> {
        self.forgotten.forward(tape, &self.shown.forward(tape, x)?)
    }

    fn visit(&self, v: &mut Visitor<'_>) {
        v.child("shown", &self.shown);
    }
}

#[test]
fn a_child_that_visit_forgets_is_an_error_before_anything_is_sent() {
    on_ranks(2, |group| {
        let (rank, device) = (group.rank(), group.device());
        let mut layers = model(&[3, 4, 2], device, 0).0.into_iter();
        let (shown, forgotten) = (layers.next().unwrap(), layers.next().unwrap());
        let forgotten_params = forgotten.parameters();
        let ddp = Ddp::new(Forgetful { shown, forgotten }, group, DdpConfig::default())?;
        let tape = Tape::new();
        let x = tape.constant(input(rank, 0, device)?);
        let loss = || loss(|x| ddp.forward(&tape, x), &x);
        for refused in [
            ddp.backward(&tape, &loss()?).map(drop),
            ddp.backward_weighted(&tape, &loss()?, 1.0).map(drop),
            ddp.accumulate(&tape, &loss()?),
        ] {
            let error = refused.unwrap_err();
            let Error::Autograd(AutogradError::Unclaimed {
                id,
                ref shape,
                op: "linear",
                ..
            }) = error
            else {
                panic!("{error}");
            };
            let reached = |p: &Param| p.id() == id && p.shape() == shape;
            assert!(forgotten_params.iter().any(reached), "{error}");
            assert!(error.to_string().contains("visit"), "{error}");
        }
        // The ranks are still in step.
        let only_shown = ddp.module().shown.forward(&tape, &x)?.mean_all()?;
        assert_eq!(ddp.backward(&tape, &only_shown)?.len(), 2);
        Ok(())
    });
}

/// Two modules, one after the other, as one.
struct Both(Mlp, Mlp);

impl Module for Both {
    fn forward(&self, tape: &Tape, x: &Var) -> phalanx_autograd::Result<Var> {
        self.1.forward(tape, &self.0.forward(tape, x)?.tanh()?)
    }

    fn visit(&self, v: &mut Visitor<'_>) {
        v.child("encoder", &self.0);
        v.child("head", &self.1);
    }
}

const ENCODER: [usize; 3] = [3, 8, 5];
const HEAD: [usize; 3] = [5, 6, 2];

#[test]
fn one_loss_over_two_wrapped_modules() {
    for config in [1, usize::MAX].map(Some).map(|in_place_bytes| DdpConfig {
        in_place_bytes,
        ..Default::default()
    }) {
        on_ranks(2, |group| {
            let (rank, device) = (group.rank(), group.device());
            let wrap = |m| Ddp::new(m, Arc::clone(&group), config.clone());
            let encoder = wrap(model(&ENCODER, device, 1))?;
            let head = wrap(model(&HEAD, device, 2))?;
            let both = Both(model(&ENCODER, device, 1), model(&HEAD, device, 2));
            let both = Ddp::new(both, Arc::clone(&group), config.clone())?;
            let sgd = |params: Vec<Param>| {
                Sgd::new(
                    params,
                    SgdConfig {
                        lr: 0.1,
                        momentum: 0.9,
                        ..Default::default()
                    },
                )
                .unwrap()
            };
            let split: Vec<Param> = [encoder.parameters(), head.parameters()].concat();
            let (mut of_split, mut of_both) = (sgd(split.clone()), sgd(both.parameters()));
            let tape = Tape::new();
            for step in 0..3 {
                let x = tape.constant(input(rank, step, device)?);
                let forward = |x: &Var| {
                    let h = encoder.forward(&tape, x)?.tanh()?;
                    // Rank 1 uses the head in the last step only.
                    if rank == 1 && step < 2 {
                        Ok(h)
                    } else {
                        head.forward(&tape, &h)
                    }
                };
                // Either alone would leave the other's gradients to this rank.
                let found = loss(forward, &x)?;
                if !(rank == 1 && step < 2) {
                    for alone in [&encoder, &head] {
                        let error = alone.backward(&tape, &found).unwrap_err();
                        assert!(
                            matches!(&error, Error::Autograd(AutogradError::Claimed { .. })),
                            "{error}"
                        );
                        assert!(error.to_string().contains("backward_all"), "{error}");
                    }
                }
                of_split.step(&backward_all(&[&encoder, &head], &tape, &found)?)?;

                let forward = |x: &Var| match rank == 1 && step < 2 {
                    true => both.module().0.forward(&tape, x)?.tanh(),
                    false => both.forward(&tape, x),
                };
                let x = tape.constant(input(rank, step, device)?);
                of_both.step(&both.backward(&tape, &loss(forward, &x)?)?)?;
                let pairs = split.iter().zip(both.parameters());
                for (p, q) in pairs {
                    assert_eq!(
                        values(&p.value().unwrap()),
                        values(&q.value().unwrap()),
                        "step {step}"
                    );
                }
            }
            encoder.check_replicas()?;
            head.check_replicas()
        });
    }
}

#[test]
fn micro_steps_over_two_wrapped_modules() {
    on_ranks(2, |group| {
        let (rank, device) = (group.rank(), group.device());
        let wrap = |m| Ddp::new(m, Arc::clone(&group), DdpConfig::default());
        let (encoder, head) = (
            wrap(model(&ENCODER, device, 1))?,
            wrap(model(&HEAD, device, 2))?,
        );
        let both = Both(model(&ENCODER, device, 1), model(&HEAD, device, 2));
        let both = Ddp::new(both, Arc::clone(&group), DdpConfig::default())?;
        let tape = Tape::new();
        let split_loss = |step| -> Result<Var> {
            let x = tape.constant(input(rank, step, device)?);
            loss(
                |x| head.forward(&tape, &encoder.forward(&tape, x)?.tanh()?),
                &x,
            )
        };
        let both_loss = |step| -> Result<Var> {
            let x = tape.constant(input(rank, step, device)?);
            loss(|x| both.forward(&tape, x), &x)
        };
        accumulate_all(&[&encoder, &head], &tape, &split_loss(0)?)?;
        let found = backward_all(&[&encoder, &head], &tape, &split_loss(1)?)?;
        both.accumulate(&tape, &both_loss(0)?)?;
        let want = both.backward(&tape, &both_loss(1)?)?;
        let split = [encoder.parameters(), head.parameters()].concat();
        for (p, q) in split.iter().zip(both.parameters()) {
            assert_eq!(values(found.get(p).unwrap()), values(want.get(&q).unwrap()));
        }
        Ok(())
    });
}

#[test]
fn wrappers_that_cannot_step_together_are_refused() {
    on_ranks(2, |group| {
        let device = group.device();
        let other_group = group.split(Some(0), 0)?.expect("every rank has a color");
        let wrap =
            |group: &Arc<_>, config| Ddp::new(model(&[3, 2], device, 0), Arc::clone(group), config);
        let first = wrap(&group, DdpConfig::default())?;
        let elsewhere = wrap(&other_group, DdpConfig::default())?;
        let otherwise = wrap(
            &group,
            DdpConfig {
                in_place_bytes: Some(1),
                ..Default::default()
            },
        )?;
        let uneven = || DdpConfig {
            uneven_inputs: true,
            ..Default::default()
        };
        let (uneven, as_uneven) = (wrap(&group, uneven())?, wrap(&group, uneven())?);
        let tape = Tape::new();
        let x = tape.constant(input(0, 0, device)?);
        let loss = first.forward(&tape, &x)?.mean_all()?;
        let refused = |result: Result<_>, words: &str| match result.map(drop) {
            Err(Error::InvalidUse {
                op: "backward_all",
                reason,
            }) => {
                assert!(reason.contains(words), "{reason}")
            }
            other => panic!("{other:?}"),
        };
        refused(backward_all(&[], &tape, &loss), "at least one");
        refused(backward_all(&[&first, &first], &tape, &loss), "twice");
        refused(
            backward_all(&[&first, &elsewhere], &tape, &loss),
            "one group",
        );
        refused(
            backward_all(&[&first, &otherwise], &tape, &loss),
            "one configuration",
        );
        refused(
            backward_all(&[&uneven, &as_uneven], &tape, &loss),
            "uneven_inputs",
        );
        assert_eq!(backward_all(&[&first], &tape, &loss)?.len(), 2);
        // One alone steps as by itself, beside a rank that has joined, too.
        if group.rank() == 0 {
            let loss = uneven.forward(&tape, &x)?.mean_all()?;
            assert_eq!(backward_all(&[&uneven], &tape, &loss)?.len(), 2);
        }
        assert_eq!(uneven.join(|_| Ok(()))?, group.rank());
        Ok(())
    });
}

#[test]
fn a_parameter_has_one_wrapper() {
    on_ranks(2, |group| {
        let module = Arc::new(model(&[3, 2], group.device(), 0));
        let wrap = || {
            Ddp::new(
                Arc::clone(&module),
                Arc::clone(&group),
                DdpConfig::default(),
            )
        };
        let first = wrap()?;
        let error = wrap().map(drop).unwrap_err();
        assert!(
            matches!(&error, Error::Autograd(AutogradError::ClaimedTwice { .. })),
            "{error}"
        );
        drop(first);
        wrap().map(drop)
    });
}
