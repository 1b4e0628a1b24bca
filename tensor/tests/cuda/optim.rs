//! Optimizer steps against the CPU's.

use crate::support::*;
use phalanx_tensor::ops::optim::{SgdConfig, sgd_step};
use phalanx_tensor::{DType, Device, Tensor};

fn train(
    device: Device,
    param: DType,
    grad: DType,
    config: &SgdConfig,
    seed: u64,
) -> Vec<Vec<f64>> {
    let shapes: [&[usize]; 4] = [&[3], &[17, 5], &[0], &[1]];
    let on = |t: Tensor| t.to_device(device).unwrap();
    let mut params: Vec<Tensor> = shapes.iter().map(|s| on(values(s, param, seed))).collect();
    let mut momenta = vec![None; params.len()];
    for step in 0..3 {
        let grads: Vec<Tensor> = shapes
            .iter()
            .map(|s| {
                let g = on(values(s, grad, seed + 20 + step));
                // One of them has gaps.
                if s.len() == 2 {
                    on(values(&[5, 17], grad, seed + 30 + step)).t().unwrap()
                } else {
                    g
                }
            })
            .collect();
        sgd_step(&mut params, &grads, &mut momenta, config).unwrap();
    }
    let states = momenta.iter().flatten();
    params.iter().chain(states).map(read).collect()
}

#[test]
fn sgd_is_the_cpus() {
    let (device, _turn) = card!();
    let plain = SgdConfig {
        lr: 0.1,
        ..SgdConfig::default()
    };
    let momentum = SgdConfig {
        momentum: 0.9,
        dampening: 0.1,
        weight_decay: 0.01,
        ..plain
    };
    let nesterov = SgdConfig {
        dampening: 0.0,
        nesterov: true,
        ..momentum
    };
    for config in [plain, momentum, nesterov] {
        for (param, grad) in [
            (DType::F32, DType::F32),
            (DType::F64, DType::F64),
            (DType::BF16, DType::BF16),
            (DType::BF16, DType::F32),
            (DType::F16, DType::F32),
        ] {
            for seed in SEEDS {
                let here = train(Device::cpu(0), param, grad, &config, seed);
                let there = train(device, param, grad, &config, seed);
                for (here, there) in here.iter().zip(&there) {
                    let apart = distance(there, here);
                    assert!(
                        apart <= tolerance(param),
                        "{config:?} {param} {grad}: {apart}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_step_stays_where_it_is_and_allocates_nothing() {
    let (device, _turn) = card!();
    let mut params = [values(&[100], DType::F32, 1).to_device(device).unwrap()];
    let grads = [values(&[100], DType::F32, 2).to_device(device).unwrap()];
    let mut momenta = [None];
    let config = SgdConfig {
        momentum: 0.9,
        ..SgdConfig::default()
    };
    for _ in 0..3 {
        sgd_step(&mut params, &grads, &mut momenta, &config).unwrap();
    }
    let before = device.memory().unwrap();
    for _ in 0..3 {
        sgd_step(&mut params, &grads, &mut momenta, &config).unwrap();
    }
    assert_eq!(device.memory().unwrap(), before);
}
