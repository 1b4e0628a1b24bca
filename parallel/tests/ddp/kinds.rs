//! Modules of every kind: half types, weights used twice, parts on two devices, two wrappers at once.

use crate::model::{Mlp, on_ranks, own_gradients, values};
use phalanx_autograd::nn::{Module, Visitor};
use phalanx_autograd::{Gradients, Param, Tape, Var};
use phalanx_comm::ProcessGroup;
use phalanx_parallel::{Ddp, DdpConfig, Result};
use phalanx_tensor::{DType, Device, Rng, Tensor};
use std::sync::Arc;

/// Two: their mean is exact but for one rounding, so that gradients are compared bit for bit.
const WORLD: usize = 2;

/// A bucket for each parameter, and one for all.
fn configs() -> [DdpConfig; 2] {
    [1, usize::MAX].map(|in_place_bytes| DdpConfig {
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
            (p.dtype(), p.device()),
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

/// Half of the layers in `f32`, the others in `bf16`: buckets of two types.
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
            check(&Ddp::new(model, group, config.clone())?, 5, DType::F32)
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
