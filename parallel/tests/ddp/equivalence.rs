//! The contract: gradients and parameters equal those of one process on the joined batch.

use crate::model::{Mlp, assert_close, has_ranks, mse, on_cpus, on_ranks, own_gradients, values};
use phalanx_autograd::Tape;
use phalanx_autograd::nn::Module;
use phalanx_autograd::optim::{Optimizer, Sgd, SgdConfig};
use phalanx_parallel::{Compress, Ddp, DdpConfig};
use phalanx_tensor::{DType, Device, Rng, Tensor};
use std::sync::Arc;

const DIMS: [usize; 4] = [5, 16, 12, 3];
const BATCH: usize = 24;
const STEPS: usize = 6;

/// The joined batch of a step: inputs and targets.
fn data(step: usize, dtype: DType, device: Device) -> (Tensor, Tensor) {
    let mut rng = Rng::new(1000 + step as u64);
    let x = Tensor::randn([BATCH, DIMS[0]], dtype, device, &mut rng).unwrap();
    let y = Tensor::randn([BATCH, DIMS[3]], dtype, device, &mut rng).unwrap();
    (x, y)
}

fn sgd(model: &Mlp) -> Sgd {
    Sgd::new(
        model.params(),
        SgdConfig {
            lr: 0.05,
            momentum: 0.9,
            weight_decay: 1e-3,
            ..Default::default()
        },
    )
    .unwrap()
}

/// First gradients and final parameters of one process on the joined batches.
fn reference(dtype: DType) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
    let device = Device::cpu(0);
    let model = Mlp::new(&DIMS, dtype, device, 3);
    let mut sgd = sgd(&model);
    let mut first = Vec::new();
    for step in 0..STEPS {
        let (x, y) = data(step, dtype, device);
        let tape = Tape::new();
        let y = tape.constant(y);
        let loss = mse(&model.forward(&tape, &tape.constant(x)).unwrap(), &y).unwrap();
        let gradients = tape.backward(&loss).unwrap();
        if step == 0 {
            first = model
                .params()
                .iter()
                .map(|p| values(gradients.get(p).unwrap()))
                .collect();
        }
        sgd.step(&gradients).unwrap();
    }
    (
        first,
        model
            .params()
            .iter()
            .map(|p| values(&p.value().unwrap()))
            .collect(),
    )
}

/// The same by `world` ranks, each on its part of the batch, compared on every rank. Returns the
/// bits of the parameters at the end.
fn check(
    world: usize,
    dtype: DType,
    config: &DdpConfig,
    micro: usize,
    tolerance: f64,
) -> Option<Vec<u64>> {
    let (first, last) = reference(dtype);
    let bits = on_ranks(world, |group| {
        let (rank, device) = (group.rank(), group.device());
        let seed = if rank == 0 { 3 } else { 50 + rank as u64 }; // rank 0's values must win
        let ddp = Ddp::new(Mlp::new(&DIMS, dtype, device, seed), group, config.clone())?;
        let mut sgd = sgd(ddp.module());
        for step in 0..STEPS {
            let (x, y) = data(step, dtype, device);
            let part = BATCH / world;
            let (x, y) = (
                x.narrow(0, rank * part, part)?,
                y.narrow(0, rank * part, part)?,
            );
            let piece = part / micro;
            let loss = |tape: &Tape, i: usize| {
                let x = tape.constant(x.narrow(0, i * piece, piece)?);
                let y = tape.constant(y.narrow(0, i * piece, piece)?);
                mse(&ddp.forward(tape, &x)?, &y)?.mul_scalar(1.0 / micro as f64)
            };
            for i in 0..micro - 1 {
                let tape = Tape::new();
                ddp.accumulate(&tape, &loss(&tape, i)?)?;
            }
            let tape = Tape::new();
            let gradients = ddp.backward(&tape, &loss(&tape, micro - 1)?)?;
            if step == 0 {
                for (p, want) in ddp.parameters().iter().zip(&first) {
                    let what = format!("gradients of world {world}");
                    assert_close(&values(gradients.get(p).unwrap()), want, tolerance, &what);
                }
            }
            sgd.step(&gradients)?;
        }
        for (p, want) in ddp.parameters().iter().zip(&last) {
            assert_close(
                &values(&p.value().unwrap()),
                want,
                tolerance,
                &format!("parameters of world {world}"),
            );
        }
        Ok(ddp
            .parameters()
            .iter()
            .flat_map(|p| values(&p.value().unwrap()))
            .map(f64::to_bits)
            .collect::<Vec<_>>())
    });
    assert!(
        bits.iter().all(|b| *b == bits[0]),
        "replicas are equal bit for bit"
    );
    bits.into_iter().next() // under mpirun, this process may take no part
}

#[test]
fn every_world_size_equals_the_single_process() {
    for world in [1, 2, 3, 4, 8].into_iter().filter(|&n| has_ranks(n)) {
        check(world, DType::F32, &DdpConfig::default(), 1, 1e-6);
        check(world, DType::F64, &DdpConfig::default(), 1, 1e-13);
    }
}

#[test]
fn every_bucket_size_equals_the_single_process() {
    for (first, cap, single) in [
        (1, 1, 1),
        (1, 1, usize::MAX),
        (64, 300, 500),
        (usize::MAX, usize::MAX, usize::MAX),
    ] {
        let config = DdpConfig {
            first_bucket_bytes: Some(first),
            bucket_cap_bytes: Some(cap),
            in_place_bytes: Some(single),
            ..Default::default()
        };
        check(3, DType::F32, &config, 1, 1e-6);
    }
}

#[test]
fn accumulation_equals_the_single_process() {
    for (world, micro) in [(2, 2), (3, 4), (2, 12)] {
        check(world, DType::F32, &DdpConfig::default(), micro, 1e-6);
    }
}

#[test]
fn compressed_gradients_are_near_and_replicas_equal() {
    if !has_ranks(4) {
        return;
    }
    let with = |hook| DdpConfig {
        hook: Some(Arc::new(hook)),
        ..Default::default()
    };
    let exact = check(4, DType::F32, &DdpConfig::default(), 1, 1e-6);
    let bf16 = check(4, DType::F32, &with(Compress::Bf16), 1, 2e-2);
    let f16 = check(4, DType::F32, &with(Compress::F16), 1, 2e-3);
    if exact.is_some() {
        assert!(
            exact != bf16 && exact != f16 && bf16 != f16,
            "each rounds in its way"
        );
    }
}

#[test]
fn a_compressed_average_is_the_sum_of_the_rounded_shares() {
    if !on_cpus(
        "a_compressed_average_is_the_sum_of_the_rounded_shares",
        "sums are in no promised order",
    ) {
        return;
    }
    const WORLD: usize = 4; // a quarter of a gradient has its digits
    if !has_ranks(WORLD) {
        return;
    }
    for (hook, short) in [(Compress::Bf16, DType::BF16), (Compress::F16, DType::F16)] {
        on_ranks(WORLD, |group| {
            let device = group.device();
            let config = DdpConfig {
                hook: Some(Arc::new(hook)),
                ..Default::default()
            };
            let model = Mlp::new(&DIMS, DType::F32, device, 3);
            let ddp = Ddp::new(model, Arc::clone(&group), config)?;
            let (x, y) = data(group.rank(), DType::F32, device);
            let tape = Tape::new();
            let loss = || {
                let x = tape.constant(x.clone());
                mse(&ddp.forward(&tape, &x)?, &tape.constant(y.clone()))
            };
            let local = own_gradients(&ddp, &tape, &loss()?)?;
            let averaged = ddp.backward(&tape, &loss()?)?;
            for p in ddp.parameters() {
                let share = local.get(&p).unwrap().mul_scalar(1.0 / WORLD as f64)?;
                let shares = group
                    .all_gather(share.cast(short)?)?
                    .wait()?
                    .cast(DType::F32)?;
                let mut sum = shares.narrow(0, 0, 1)?;
                for rank in 1..WORLD {
                    sum = sum.add(&shares.narrow(0, rank, 1)?)?;
                }
                assert_eq!(values(averaged.get(&p).unwrap()), values(&sum.cast(short)?));
            }
            Ok(())
        });
    }
}
