//! Optimizer steps against the CPU's.

use crate::counts::{Count, counted};
use crate::support::*;
use phalanx_tensor::ops::optim::{
    AdamConfig, AdamState, Part, SgdConfig, adam_step, adam_steps, clip_by_norm, global_norm,
    scale, sgd_step, sgd_steps,
};
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
    let other = other!();
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

const PAIRS: [(DType, DType); 6] = [
    (DType::F32, DType::F32),
    (DType::F64, DType::F64),
    (DType::BF16, DType::BF16),
    (DType::BF16, DType::F32),
    (DType::F16, DType::F16),
    (DType::F16, DType::F32),
];

/// Parameters of any size, some of which span several blocks or begin where four elements cannot be
/// read at once.
fn odd(device: Device, dtype: DType, seed: u64) -> Vec<Tensor> {
    let shapes: [&[usize]; 6] = [&[3], &[65, 129], &[0], &[4096], &[4097], &[1]];
    let mut all: Vec<Tensor> = shapes
        .iter()
        .map(|s| values(s, dtype, seed).to_device(device).unwrap())
        .collect();
    let whole = values(&[5000], dtype, seed + 1).to_device(device).unwrap();
    all.push(whole.narrow(0, 3, 4501).unwrap());
    all
}

fn train_adam(
    device: Device,
    (param, grad): (DType, DType),
    config: &AdamConfig,
    seed: u64,
) -> Vec<Vec<f64>> {
    let mut params = odd(device, param, seed);
    let mut states: Vec<Option<AdamState>> = vec![None; params.len()];
    for step in 0..3 {
        let grads = odd(device, grad, seed + 20 + step);
        adam_step(&mut params, &grads, &mut states, config).unwrap();
    }
    let states = states.iter().flatten();
    let states = states.flat_map(|s| [&s.exp_avg, &s.exp_avg_sq]);
    params.iter().chain(states).map(read).collect()
}

#[test]
fn adam_is_the_cpus() {
    let (device, _turn) = card!();
    let decayed = AdamConfig {
        weight_decay: 0.1,
        ..AdamConfig::adam()
    };
    for config in [AdamConfig::adamw(), decayed] {
        for types in PAIRS {
            for seed in SEEDS {
                let here = train_adam(Device::cpu(0), types, &config, seed);
                let there = train_adam(device, types, &config, seed);
                for (here, there) in here.iter().zip(&there) {
                    let apart = distance(there, here);
                    assert!(apart <= tolerance(types.0), "{config:?} {types:?}: {apart}");
                }
            }
        }
    }
}

/// A learning rate and a number of the step that are on the device: as those of the host, on the CPU
/// to the bit.
#[test]
fn numbers_may_be_on_the_device() {
    let (card, _turn) = card!();
    let lrs = [0.25, 0.0625, 0.125];
    let sgd = |device: Device, on_device: bool| {
        let mut params = odd(device, DType::F32, 1);
        let mut momenta: Vec<Option<Tensor>> = vec![None; params.len()];
        for (step, lr) in lrs.into_iter().enumerate() {
            let grads = odd(device, DType::F32, 20 + step as u64);
            let scale = Tensor::scalar(lr as f32, device).unwrap();
            let config = SgdConfig {
                lr: if on_device { 1.0 } else { lr },
                momentum: 0.5,
                ..SgdConfig::default()
            };
            let mut part = Part::new(&mut params, &grads, &mut momenta, config);
            if on_device {
                part.lr_scale = (&scale).into();
            }
            sgd_steps(&mut [part]).unwrap();
        }
        params.iter().flat_map(read).collect::<Vec<f64>>()
    };
    let adam = |device: Device, on_device: bool| {
        let mut params = odd(device, DType::F32, 1);
        let mut states: Vec<Option<AdamState>> = vec![None; params.len()];
        for (step, lr) in lrs.into_iter().enumerate() {
            let grads = odd(device, DType::F32, 20 + step as u64);
            let scale = Tensor::scalar(lr, device).unwrap();
            let count = Tensor::scalar(step as f32 + 1.0, device).unwrap();
            let config = AdamConfig {
                lr: if on_device { 1.0 } else { lr },
                ..AdamConfig::adamw()
            };
            let mut part = Part::new(&mut params, &grads, &mut states, config);
            if on_device {
                part.lr_scale = (&scale).into();
                part.step = Some((&count).into());
            }
            adam_steps(&mut [part]).unwrap();
        }
        assert!(states.iter().flatten().all(|state| state.step == 3));
        params.iter().flat_map(read).collect::<Vec<f64>>()
    };
    let cpu = Device::cpu(0);
    assert_eq!(sgd(cpu, true), sgd(cpu, false));
    assert_eq!(adam(cpu, true), adam(cpu, false));
    assert_eq!(sgd(card, true), sgd(card, false));
    let apart = distance(&adam(card, true), &adam(cpu, false));
    assert!(apart <= tolerance(DType::F32), "{apart}");
}

/// A step is one launch for all parameters, and what lies where it was is not uploaded again.
#[test]
fn a_step_is_one_launch() {
    let (device, _turn) = card!();
    let counts = || [counted(Count::Launches), counted(Count::Copies)];
    if counts().contains(&None) {
        eprintln!("SKIPPED: a_step_is_one_launch: a real card counts no launches");
        return;
    }
    let apart = |work: &mut dyn FnMut()| {
        let before = counts();
        work();
        [0, 1].map(|i| counts()[i].unwrap() - before[i].unwrap())
    };
    let n = 37;
    let of = |seed: u64| -> Vec<Tensor> {
        let all = (0..n).map(|i| values(&[i * 7 + 1], DType::F32, seed + i as u64));
        all.map(|t| t.to_device(device).unwrap()).collect()
    };
    let (mut params, mut grads) = (of(1), of(100));
    let (mut momenta, mut states) = (vec![None; n], vec![None; n]);
    let sgd = SgdConfig {
        momentum: 0.9,
        ..SgdConfig::default()
    };
    let norm = global_norm(&grads).unwrap();
    for step in 0..4 {
        let sgd = SgdConfig {
            lr: 0.1 / (step + 1) as f64,
            ..sgd
        };
        let uploads = u64::from(step == 0);
        let made = apart(&mut || sgd_step(&mut params, &grads, &mut momenta, &sgd).unwrap());
        assert_eq!(made, [1, uploads], "sgd {step}");
        let adam = AdamConfig::adam();
        let made = apart(&mut || adam_step(&mut params, &grads, &mut states, &adam).unwrap());
        // The first step zeroes the moments.
        let zeroed = uploads * 2 * n as u64;
        assert_eq!(made, [1 + zeroed, uploads], "adam {step}");
        let made = apart(&mut || drop(global_norm(&grads).unwrap()));
        assert_eq!(made, [2, 0], "norm {step}");
        let made = apart(&mut || scale(&mut grads, &norm).unwrap());
        // The norm has the same table.
        assert_eq!(made, [1, 0], "scale {step}");
        let made = apart(&mut || clip_by_norm(&mut grads, &norm, 0.5).unwrap());
        assert_eq!(made, [1, 0], "clip {step}");
    }
    // Other tensors are another table, and the one before is still there.
    let other = of(200);
    let made = apart(&mut || sgd_step(&mut params, &other, &mut momenta, &sgd).unwrap());
    assert_eq!(made, [1, 1]);
    for grads in [&grads, &other] {
        let made = apart(&mut || sgd_step(&mut params, grads, &mut momenta, &sgd).unwrap());
        assert_eq!(made, [1, 0]);
    }
    device.synchronize().unwrap();
}

/// More different numbers than a launch has room for, more tensors than a kept table has, more tables
/// than are kept, and more uploads in one step than buffers are in flight.
#[test]
fn long_lists_step_as_short_ones() {
    let (device, _turn) = card!();
    let run = |device: Device, n: usize, parts: usize| {
        let of = |seed: u64| -> Vec<Tensor> {
            let flat = values(&[n * 3], DType::F32, seed)
                .to_device(device)
                .unwrap();
            (0..n)
                .map(|i| flat.narrow(0, i * 3, 3).unwrap().copy().unwrap())
                .collect()
        };
        let (mut params, grads) = (of(1), of(2));
        let mut momenta: Vec<Option<Tensor>> = vec![None; n];
        for _ in 0..2 {
            let each = n / parts;
            let lists = params.chunks_mut(each).zip(grads.chunks(each));
            let lists = lists.zip(momenta.chunks_mut(each)).enumerate();
            let mut all: Vec<_> = lists
                .map(|(i, ((p, g), m))| {
                    let config = SgdConfig {
                        lr: 0.01 * (i + 1) as f64,
                        momentum: 0.9,
                        ..SgdConfig::default()
                    };
                    Part::new(p, g, m, config)
                })
                .collect();
            sgd_steps(&mut all).unwrap();
        }
        params.iter().flat_map(read).collect::<Vec<f64>>()
    };
    for (n, parts) in [(1500, 1), (200, 200), (600, 600)] {
        let apart = distance(&run(device, n, parts), &run(Device::cpu(0), n, parts));
        assert!(apart <= tolerance(DType::F32), "{n} {parts}: {apart}");
    }
}

/// Steps of which each has another table, and a host that runs ahead: it waits only where many of their
/// buffers are in flight.
#[test]
fn tables_that_change_each_time_hold_few_buffers() {
    let (device, _turn) = card!();
    const STEPS: usize = 80;
    let run = |device: Device| {
        let grads: Vec<Tensor> = (0..STEPS)
            .map(|i| values(&[20], DType::F32, i as u64))
            .map(|t| t.to_device(device).unwrap())
            .collect();
        let mut params = [values(&[20], DType::F32, 99).to_device(device).unwrap()];
        device.synchronize().unwrap();
        let before = [Count::Waits, Count::Pinned].map(counted);
        for grad in &grads {
            sgd_step(
                &mut params,
                std::slice::from_ref(grad),
                &mut [],
                &SgdConfig::default(),
            )
            .unwrap();
        }
        let after = [Count::Waits, Count::Pinned].map(counted);
        let apart = [0, 1].map(|i| Some(after[i]? - before[i]?));
        (read(&params[0]), apart)
    };
    let ((here, _), (there, apart)) = (run(Device::cpu(0)), run(device));
    assert!(distance(&there, &here) <= tolerance(DType::F32));
    if let [Some(waits), Some(pinned)] = apart {
        assert!(
            waits <= 2 && pinned <= 32,
            "{waits} waits, {pinned} buffers"
        );
    }
}

#[test]
fn the_global_norm_is_the_cpus() {
    let (device, _turn) = card!();
    let norm = |tensors: &[Tensor]| global_norm(tensors).unwrap().item::<f64>().unwrap();
    for dtype in FLOATS {
        for seed in SEEDS {
            let mut here = odd(Device::cpu(0), dtype, seed);
            here.push(values(&[33, 65], dtype, seed).t().unwrap());
            here.push(values(&[3], DType::F64, seed));
            let mut there: Vec<Tensor> =
                here.iter().map(|t| t.to_device(device).unwrap()).collect();
            there[7] = values(&[33, 65], dtype, seed)
                .to_device(device)
                .unwrap()
                .t()
                .unwrap();
            let (a, b) = (norm(&here), norm(&there));
            assert!((a - b).abs() <= 1e-12 * a, "{dtype}: {a} {b}");
            assert_eq!(b.to_bits(), norm(&there).to_bits(), "{dtype}");
        }
    }
    let many = [values(&[5_000_000], DType::F32, 1)];
    let there = many.each_ref().map(|t| t.to_device(device).unwrap());
    let (a, b) = (norm(&many), norm(&there));
    assert!((a - b).abs() <= 1e-12 * a, "{a} {b}");
    for special in [f64::NAN, f64::INFINITY] {
        let t = Tensor::from_slice(&[1.0, special], [2], device).unwrap();
        assert_eq!(norm(&[t]).to_bits() << 1 >> 1, special.to_bits() << 1 >> 1);
    }
    assert_eq!(
        norm(&[values(&[0], DType::F32, 1).to_device(device).unwrap()]),
        0.0
    );
    // Parts of several devices are added, and then the root is taken.
    let parts = [
        values(&[700], DType::F32, 1).to_device(device).unwrap(),
        values(&[50], DType::F32, 2),
    ];
    let here = parts
        .each_ref()
        .map(|t| t.to_device(Device::cpu(0)).unwrap());
    let (a, b) = (norm(&here), norm(&parts));
    assert!((a - b).abs() <= 1e-12 * a, "{a} {b}");
    let whole = Tensor::from_slice(&[1i64], [1], device).unwrap();
    let here = whole.to_device(Device::cpu(0)).unwrap();
    assert_eq!(
        global_norm([&whole]).unwrap_err(),
        global_norm([&here]).unwrap_err()
    );
}

#[test]
fn clipping_is_the_cpus() {
    let (device, _turn) = card!();
    for dtype in FLOATS {
        for (norm, max_norm) in [(8.0, 2.0), (0.5, 2.0), (8.0, f64::INFINITY)] {
            let run = |device: Device, on_device: bool| {
                let mut list = odd(device, dtype, 3);
                let number = Tensor::full((), norm, dtype, device).unwrap();
                match on_device {
                    true => clip_by_norm(&mut list, &number, max_norm).unwrap(),
                    false => clip_by_norm(&mut list, norm, max_norm).unwrap(),
                }
                list.iter().flat_map(read).collect::<Vec<f64>>()
            };
            let here = run(Device::cpu(0), false);
            assert_eq!(run(device, false), here, "{dtype} {norm} {max_norm}");
            assert_eq!(run(device, true), here, "{dtype} {norm} {max_norm}");
        }
    }
    let mut list = odd(device, DType::F32, 3);
    let nan = Tensor::full((), f64::NAN, DType::F64, device).unwrap();
    clip_by_norm(&mut list, &nan, 1.0).unwrap();
    assert!(list.iter().flat_map(read).all(f64::is_nan));
}
