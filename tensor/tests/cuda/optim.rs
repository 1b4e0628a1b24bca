//! Optimizer steps against the CPU's.

use crate::support::*;
use phalanx_tensor::ops::optim::{SgdConfig, scale, sgd_step};
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

/// Parameters on two cards step together, whichever card was used last.
#[test]
fn a_step_goes_over_two_cards() {
    let (device, _turn) = card!();
    let other = Device::cuda(1);
    if let Err(e) = other.memory() {
        eprintln!("SKIPPED: a_step_goes_over_two_cards: {e}");
        return;
    }
    let config = SgdConfig {
        momentum: 0.9,
        ..SgdConfig::default()
    };
    let run = |devices: [Device; 2]| {
        let on = |t: Tensor, i: usize| t.to_device(devices[i]).unwrap();
        let mut params = [0, 1, 0, 1].map(|i| on(values(&[10], DType::F32, i as u64), i));
        let mut momenta = [const { None }; 4];
        for step in 0..3 {
            let mut grads = [0, 1, 0, 1].map(|i| on(values(&[10], DType::F32, step + 5), i));
            scale(&mut grads, 0.5).unwrap();
            sgd_step(&mut params, &grads, &mut momenta, &config).unwrap();
        }
        params.iter().flat_map(read).collect::<Vec<f64>>()
    };
    let apart = distance(
        &run([device, other]),
        &run([Device::cpu(0), Device::cpu(1)]),
    );
    assert!(apart <= tolerance(DType::F32), "{apart}");
    // Between cards.
    let t = values(&[5, 7], DType::F32, 1)
        .to_device(device)
        .unwrap()
        .to_device(other)
        .unwrap();
    assert_eq!(read(&t), read(&values(&[5, 7], DType::F32, 1)));
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
