//! Modules of every kind: half types, weights used twice, parts on two devices, two wrappers at once.

use crate::model::{Mlp, on_ranks, own_gradients, values};
use phalanx_autograd::nn::{Module, Visitor};
use phalanx_autograd::optim::{Optimizer, Sgd, SgdConfig};
use phalanx_autograd::{Gradients, Param, Tape, Var};
use phalanx_comm::ProcessGroup;
use phalanx_parallel::{Compress, Ddp, DdpConfig, Result};
use phalanx_tensor::{DType, Device, Rng, Tensor};
use std::sync::Arc;

/// Two: their mean is exact but for one rounding, so that gradients are compared bit for bit.
const WORLD: usize = 2;

/// A bucket for each parameter, and one for all.
fn configs() -> [DdpConfig; 2] {
    [1, usize::MAX].map(Some).map(|in_place_bytes| DdpConfig {
        in_place_bytes,
        ..Default::default()
    })
}

/// Another input on each rank and in each step.
fn input(step: usize, width: usize, dtype: DType, group: &dyn ProcessGroup) -> Result<Tensor> {
    let mut rng = Rng::new((10 * step + group.rank()) as u64);
    Ok(Tensor::randn([3, width], dtype, group.device(), &mut rng)?)
}

fn loss(module: &impl Module, tape: &Tape, x: &Tensor) -> Result<Var> {
    Ok(module
        .forward(tape, &tape.constant(x.clone()))?
        .square()?
        .mean_all()?)
}

/// The mean of what the two ranks have, rounded once.
fn mean(group: &dyn ProcessGroup, local: &Tensor) -> Result<Tensor> {
    let wide = match local.dtype() {
        DType::F64 => DType::F64,
        _ => DType::F32,
    };
    let both = group.all_gather(local.cast(wide)?)?.wait()?;
    let sum = both.narrow(0, 0, 1)?.add(&both.narrow(0, 1, 1)?)?;
    let mean = sum.mul_scalar(0.5)?.reshape(local.shape())?;
    Ok(mean.cast(local.dtype())?)
}

/// Holds gradients to the mean over the ranks of what each has alone.
fn assert_means(
    group: &dyn ProcessGroup,
    params: &[Param],
    local: &Gradients,
    found: &Gradients,
) -> Result<()> {
    for p in params {
        let (want, found) = (mean(group, local.get(p).unwrap())?, found.get(p).unwrap());
        assert_eq!(
            (found.dtype(), found.device()),
            (p.grad_dtype(), p.device()),
            "{p:?}"
        );
        assert_eq!(values(found), values(&want), "{p:?}");
        assert!(values(found).iter().any(|&v| v != 0.0), "{p:?}");
    }
    Ok(())
}

/// Two steps of a wrapped module.
fn check<M: Module>(ddp: &Ddp<M>, width: usize, dtype: DType) -> Result<()> {
    let tape = Tape::new();
    for step in 0..2 {
        let x = input(step, width, dtype, &**ddp.group())?;
        let local = own_gradients(ddp, &tape, &loss(ddp.module(), &tape, &x)?)?;
        let found = ddp.backward(&tape, &loss(ddp, &tape, &x)?)?;
        assert_eq!(found.len(), ddp.parameters().len());
        assert_means(&**ddp.group(), &ddp.parameters(), &local, &found)?;
    }
    Ok(())
}

#[test]
fn parameters_of_half_precision() {
    for dtype in [DType::BF16, DType::F16] {
        for config in configs() {
            on_ranks(WORLD, |group| {
                let model = Mlp::new(&[5, 16, 3], dtype, group.device(), 1);
                check(&Ddp::new(model, group, config.clone())?, 5, dtype)
            });
        }
    }
}

/// Micro-steps on two ranks against a single process that adds up the gradients of both.
#[test]
fn gradients_of_half_precision_add_up_in_f32() {
    const MICRO: usize = 40;
    let momentum = SgdConfig {
        lr: 0.5,
        momentum: 0.9,
        ..SgdConfig::default()
    };
    for (dtype, config) in [DType::BF16, DType::F16].into_iter().zip(configs()) {
        on_ranks(WORLD, |group| {
            let device = group.device();
            let new = || Mlp::new(&[5, 16, 3], dtype, device, 1);
            let data = |step: usize, rank: usize, micro: usize| {
                let mut rng = Rng::new((100 * (10 * step + rank) + micro) as u64);
                Tensor::randn([3, 5], dtype, device, &mut rng)
            };
            let alone = new();
            let ddp = Ddp::new(new(), Arc::clone(&group), config.clone())?;
            let optimizer = |params| Sgd::new(params, momentum).unwrap();
            let (mut sgd, mut sgd_alone) = (optimizer(ddp.parameters()), optimizer(alone.params()));
            let tape = Tape::new();
            for step in 0..3 {
                let mut ranks = [Gradients::new(), Gradients::new()];
                let mut exact = vec![Vec::new(); alone.params().len()];
                for (rank, sum) in ranks.iter_mut().enumerate() {
                    for micro in 0..MICRO {
                        let x = data(step, rank, micro)?;
                        let gradients = tape.backward(&loss(&alone, &tape, &x)?)?;
                        for (exact, p) in exact.iter_mut().zip(alone.params()) {
                            let new = values(gradients.get(&p).unwrap());
                            exact.resize(new.len(), (0.0, 0.0));
                            for ((sum, size), new) in exact.iter_mut().zip(new) {
                                *sum += new / WORLD as f64;
                                *size += new.abs() / WORLD as f64;
                            }
                        }
                        sum.accumulate(gradients)?;
                    }
                }
                let [mut mean, other] = ranks;
                mean.accumulate(other)?;
                mean.scale(1.0 / WORLD as f64)?;

                let mine = |micro| data(step, group.rank(), micro);
                for micro in 0..MICRO - 1 {
                    ddp.accumulate(&tape, &loss(&ddp, &tape, &mine(micro)?)?)?;
                }
                let found = ddp.backward(&tape, &loss(&ddp, &tape, &mine(MICRO - 1)?)?)?;
                let pairs = ddp.parameters().into_iter().zip(alone.params());
                for ((p, q), exact) in pairs.zip(exact) {
                    let found = found.get(&p).unwrap();
                    assert_eq!(found.dtype(), DType::F32);
                    assert_eq!(values(found), values(mean.get(&q).unwrap()), "{p:?}");
                    for (found, (sum, size)) in values(found).into_iter().zip(exact) {
                        let bound = size * (2 * MICRO) as f64 * 0.5f64.powi(24);
                        assert!((found - sum).abs() <= bound, "{found} is not {sum}");
                    }
                }
                sgd.step(&found)?;
                sgd_alone.step(&mean)?;
                for (p, q) in ddp.parameters().iter().zip(alone.params()) {
                    assert_eq!(
                        values(&p.value().unwrap()),
                        values(&q.value().unwrap()),
                        "step {step}"
                    );
                }
            }
            let buckets = ddp.buckets().unwrap();
            assert!(buckets.iter().all(|bucket| bucket.dtype == DType::F32));
            Ok(())
        });
    }
}

#[test]
fn compressed_gradients_of_half_precision_come_back_in_f32() {
    for (dtype, hook) in [(DType::BF16, Compress::F16), (DType::F16, Compress::Bf16)] {
        on_ranks(WORLD, |group| {
            let config = DdpConfig {
                hook: Some(Arc::new(hook)),
                ..Default::default()
            };
            let model = Mlp::new(&[5, 16, 3], dtype, group.device(), 1);
            let ddp = Ddp::new(model, group, config)?;
            let tape = Tape::new();
            let x = input(0, 5, dtype, &**ddp.group())?;
            let local = own_gradients(&ddp, &tape, &loss(ddp.module(), &tape, &x)?)?;
            let found = ddp.backward(&tape, &loss(&ddp, &tape, &x)?)?;
            for p in ddp.parameters() {
                let want = values(&mean(&**ddp.group(), local.get(&p).unwrap())?);
                let found = found.get(&p).unwrap();
                assert_eq!(found.dtype(), DType::F32);
                for (found, want) in values(found).into_iter().zip(want) {
                    assert!((found - want).abs() <= 1e-2, "{found} is not {want}");
                }
            }
            Ok(())
        });
    }
}

/// Half of the layers in `f32`, the others in `bf16`: one bucket takes the gradients of both.
struct Mixed(Mlp, Mlp);

impl Module for Mixed {
    fn forward(&self, tape: &Tape, x: &Var) -> phalanx_autograd::Result<Var> {
        let h = self.0.forward(tape, x)?.cast(DType::BF16)?;
        self.1.forward(tape, &h)?.cast(DType::F32)
    }

    fn visit(&self, v: &mut Visitor<'_>) {
        v.child("single", &self.0);
        v.child("half", &self.1);
    }
}

#[test]
fn parameters_of_two_types() {
    for config in configs() {
        on_ranks(WORLD, |group| {
            let model = Mixed(
                Mlp::new(&[5, 6, 4], DType::F32, group.device(), 1),
                Mlp::new(&[4, 6, 3], DType::BF16, group.device(), 2),
            );
            let ddp = Ddp::new(model, group, config.clone())?;
            check(&ddp, 5, DType::F32)?;
            let buckets = ddp.buckets().unwrap();
            assert!(buckets.iter().all(|bucket| bucket.dtype == DType::F32));
            assert!(config.in_place_bytes == Some(1) || buckets.len() == 1);
            Ok(())
        });
    }
}

/// `tanh(x W) Wᵀ`: an encoder and a decoder that share their weight.
struct Tied(Param);

impl Module for Tied {
    fn forward(&self, tape: &Tape, x: &Var) -> phalanx_autograd::Result<Var> {
        let w = tape.leaf(&self.0);
        x.matmul(&w)?.tanh()?.matmul(&w.transpose(0, 1)?)
    }

    fn visit(&self, v: &mut Visitor<'_>) {
        v.param("encoder", &self.0);
        v.param("decoder", &self.0);
    }
}

#[test]
fn a_weight_that_is_used_twice() {
    for config in configs() {
        on_ranks(WORLD, |group| {
            let mut rng = Rng::new(group.rank() as u64); // rank 0's must win
            let weight = Tensor::randn([5, 4], DType::F64, group.device(), &mut rng)?;
            let ddp = Ddp::new(Tied(Param::new(weight)), group, config.clone())?;
            assert_eq!(ddp.parameters().len(), 1);
            check(&ddp, 5, DType::F64)?;
            assert_eq!(ddp.buckets().unwrap().len(), 1);
            Ok(())
        });
    }
}

/// Layers on one device of the rank, then layers on another.
struct Halves(Mlp, Mlp);

impl Module for Halves {
    fn forward(&self, tape: &Tape, x: &Var) -> phalanx_autograd::Result<Var> {
        let h = self.0.forward(tape, x)?;
        let there = self.1.0[0].parameters()[0].device();
        self.1.forward(tape, &h.to_device(there)?)
    }

    fn visit(&self, v: &mut Visitor<'_>) {
        v.child("first", &self.0);
        v.child("second", &self.1);
    }
}

#[test]
fn a_module_over_two_devices_of_each_rank() {
    for config in configs() {
        on_ranks(WORLD, |group| {
            let devices = [group.device(), Device::cpu(20 + group.rank())];
            let model = Halves(
                Mlp::new(&[5, 6, 4], DType::F64, devices[0], 1),
                Mlp::new(&[4, 6, 3], DType::F64, devices[1], 2),
            );
            let ddp = Ddp::new(model, group, config.clone())?;
            check(&ddp, 5, DType::F64)?;
            // Gradients of two devices share no bucket.
            let (params, buckets) = (ddp.parameters(), ddp.buckets().unwrap());
            for bucket in &*buckets {
                let here = |p: usize| params[p].device() == bucket.device;
                assert!(bucket.slots.iter().all(|slot| here(slot.param)));
            }
            assert!(
                devices
                    .iter()
                    .all(|d| buckets.iter().any(|b| b.device == *d))
            );
            Ok(())
        });
    }
}

#[test]
fn two_wrappers_on_one_group() {
    on_ranks(WORLD, |group| {
        let wrap = |seed: u64| {
            let model = Mlp::new(&[5, 16, 3], DType::F64, group.device(), seed);
            Ddp::new(model, Arc::clone(&group), DdpConfig::default())
        };
        let (a, b) = (wrap(1)?, wrap(2)?);
        // Their micro-steps and steps interleave, in the same order on both ranks.
        let tapes = [Tape::new(), Tape::new()];
        for step in 0..3 {
            let x = input(step, 5, DType::F64, &*group)?;
            let local = |ddp: &Ddp<Mlp>, times: f64| -> Result<Gradients> {
                let tape = Tape::new();
                let loss = loss(ddp.module(), &tape, &x)?.mul_scalar(times)?;
                own_gradients(ddp, &tape, &loss)
            };
            a.accumulate(&tapes[0], &loss(&a, &tapes[0], &x)?)?;
            let losses = (loss(&b, &tapes[1], &x)?, loss(&a, &tapes[0], &x)?);
            let of_b = b.backward(&tapes[1], &losses.0)?;
            let of_a = a.backward(&tapes[0], &losses.1)?;
            assert_means(&*group, &a.parameters(), &local(&a, 2.0)?, &of_a)?;
            assert_means(&*group, &b.parameters(), &local(&b, 1.0)?, &of_b)?;
        }
        Ok(())
    });
}
