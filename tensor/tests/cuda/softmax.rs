//! Softmax, log-softmax and cross-entropy against the CPU's.

use crate::support::*;
use phalanx_tensor::ops::softmax::{CrossEntropyConfig, Reduction};
use phalanx_tensor::{DType, Device, Error, Tensor};

/// One of the functions along the last axis but of a view, and its name.
type Case = (
    &'static str,
    fn(&Tensor, isize) -> phalanx_tensor::Result<Tensor>,
);
const FORWARD: [Case; 2] = [
    ("softmax", Tensor::softmax),
    ("log_softmax", Tensor::log_softmax),
];

/// Both directions of both functions.
fn compare(
    name: &str,
    device: Device,
    x: &Tensor,
    grad: &Tensor,
    view: fn(&Tensor) -> Tensor,
    axis: isize,
) {
    let there = |t: &Tensor| view(&t.to_device(device).unwrap());
    for (function, run) in FORWARD {
        let name = format!("{function} {name} {} axis {axis}", x.dtype());
        let y = run(&view(x), axis).unwrap();
        let got = run(&there(x), axis).unwrap();
        assert_near(&name, &got, &y, 1e-6);
        let back = |grad: &Tensor, y: &Tensor| match function {
            "softmax" => grad.softmax_backward(y, axis),
            _ => grad.log_softmax_backward(y, axis),
        };
        let dx = back(&view(grad), &y).unwrap();
        let got = back(&there(grad), &y.to_device(device).unwrap()).unwrap();
        assert_near(&format!("{name} backward"), &got, &dx, 1e-4);
    }
}

#[test]
fn rows_of_every_length_are_the_cpus() {
    let (device, _turn) = card!();
    // Short rows share a warp, long ones have a block, the longest one beyond what its lanes hold;
    // odd ones are read element by element.
    let shapes: &[&[usize]] = &[
        &[1],
        &[7, 1],
        &[300, 3],
        &[5, 10],
        &[9, 16],
        &[2, 3, 64],
        &[3, 100],
        &[2, 512],
        &[2, 1023],
        &[2, 1032],
        &[5, 67],
        &[3, 4101],
        &[1, 5001],
        &[1, 20_000],
    ];
    for dtype in FLOATS {
        for (seed, shape) in (1..).zip(shapes) {
            let (x, g) = (values(shape, dtype, seed), values(shape, dtype, seed + 100));
            compare(&format!("{shape:?}"), device, &x, &g, Tensor::clone, -1);
        }
    }
}

#[test]
fn views_of_rows_are_the_cpus() {
    let (device, _turn) = card!();
    let views: [fn(&Tensor) -> Tensor; 6] = [
        |t| t.clone(),
        |t| t.transpose(0, 2).unwrap(),
        |t| t.narrow(2, 1, 16).unwrap(),
        |t| t.narrow(1, 2, 3).unwrap().narrow(2, 8, 8).unwrap(),
        |t| t.slice(2, 0..24, 3).unwrap(),
        |t| t.select(1, 1).unwrap().broadcast_to([2, 4, 24]).unwrap(),
    ];
    for dtype in FLOATS {
        for seed in SEEDS {
            let (x, g) = (
                values(&[4, 5, 24], dtype, seed),
                values(&[4, 5, 24], dtype, seed + 9),
            );
            for (i, view) in views.into_iter().enumerate() {
                for axis in 0..3 {
                    compare(&format!("view {i} seed {seed}"), device, &x, &g, view, axis);
                }
            }
        }
    }
}

#[test]
fn nothing_gives_nothing() {
    let (device, _turn) = card!();
    for shape in [&[0][..], &[3, 0], &[0, 3], &[2, 0, 4]] {
        let x = values(shape, DType::F32, 1);
        compare(&format!("{shape:?}"), device, &x, &x, Tensor::clone, -1);
        compare(&format!("{shape:?}"), device, &x, &x, Tensor::clone, 0);
    }
}

#[test]
fn extremes_are_the_cpus() {
    let (device, _turn) = card!();
    let (inf, nan) = (f64::INFINITY, f64::NAN);
    let rows = [
        [-inf; 12],
        [
            -inf, -inf, 1.0, -inf, -inf, 2.0, -inf, -inf, -inf, -inf, -inf, -inf,
        ],
        [0.0, 1.0, nan, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0],
        [
            -inf, -inf, -inf, -inf, nan, -inf, -inf, -inf, -inf, -inf, -inf, -inf,
        ],
        [0.0, inf, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [6e4, 6e4, -6e4, 0.0, 6e4, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -6e4],
        [-6e4; 12],
        [1e-7; 12],
    ];
    for dtype in FLOATS {
        for width in [12usize, 5, 700, 701] {
            let wide =
                |row: &[f64; 12]| row.iter().copied().cycle().take(width).collect::<Vec<_>>();
            let data: Vec<f64> = rows.iter().flat_map(wide).collect();
            let x = Tensor::from_vec(data, [rows.len(), width], Device::cpu(0)).unwrap();
            let x = x.cast(dtype).unwrap();
            let grad = values(&[rows.len(), width], dtype, 3);
            compare(
                &format!("width {width}"),
                device,
                &x,
                &grad,
                Tensor::clone,
                -1,
            );
        }
    }
}

/// Both directions of the cross-entropy under one configuration.
fn compare_losses(
    name: &str,
    device: Device,
    x: &Tensor,
    targets: &Tensor,
    config: &CrossEntropyConfig,
) {
    let there = |t: &Tensor| t.to_device(device).unwrap();
    let far = CrossEntropyConfig {
        weight: config.weight.as_ref().map(there),
        ..config.clone()
    };
    let name = format!(
        "{name} {} {:?} smoothing {} reduction {:?} weights {}",
        x.dtype(),
        x.layout(),
        config.label_smoothing,
        config.reduction,
        config.weight.is_some(),
    );
    let out = x.cross_entropy(targets, config).unwrap();
    let got = x
        .to_device(device)
        .unwrap()
        .cross_entropy(&there(targets), &far)
        .unwrap();
    assert_near(&format!("{name}: loss"), &got.loss, &out.loss, 0.0);
    if x.numel() > 0 {
        assert_near(&format!("{name}: saved"), &got.saved, &out.saved, 0.0);
    }
    let total = [&got, &out].map(|out| read(&out.total_weight)[0]);
    assert!(
        (total[0] - total[1]).abs() <= 1e-12 * total[1].abs(),
        "{name}: {total:?}"
    );
    let grad = values(out.loss.dims(), out.loss.dtype(), 5);
    let back = |grad: &Tensor, x: &Tensor, targets: &Tensor, out: [&Tensor; 2], config: &_| {
        grad.cross_entropy_backward(x, targets, out[0], out[1], config)
    };
    let dx = back(&grad, x, targets, [&out.saved, &out.total_weight], config).unwrap();
    let saved = [&there(&out.saved), &there(&out.total_weight)];
    let got = back(&there(&grad), &there(x), &there(targets), saved, &far).unwrap();
    assert_near(&format!("{name}: gradient"), &got, &dx, 1e-6);
}

fn targets(n: usize, classes: usize, ignore: i64, seed: u64) -> Vec<i64> {
    (0..n as u64)
        .map(
            |i| match i.wrapping_mul(2_654_435_761).wrapping_add(seed * 77) % 7 {
                0 => ignore,
                v => ((v * 31 + i) % classes as u64) as i64,
            },
        )
        .collect()
}

#[test]
fn losses_and_their_gradients_are_the_cpus() {
    let (device, _turn) = card!();
    let shapes: &[&[usize]] = &[
        &[5],
        &[1, 1],
        &[300, 3],
        &[17, 10],
        &[6, 64],
        &[3, 1000],
        &[2, 5003],
        &[2, 20_000],
        &[3, 7, 5],
        &[2, 40, 3, 4],
    ];
    for dtype in FLOATS {
        for (seed, &shape) in (1..).zip(shapes) {
            let x = values(shape, dtype, seed).mul_scalar(3.0).unwrap();
            let axis = usize::from(shape.len() > 1);
            let classes = shape[axis];
            let mut rest = shape.to_vec();
            rest.remove(axis);
            let ignore = if seed % 2 == 0 { -100 } else { 2 };
            let t = targets(rest.iter().product(), classes, ignore, seed);
            let t = Tensor::from_vec(t, rest.as_slice(), Device::cpu(0)).unwrap();
            let weight = values(&[classes], dtype, seed + 50).abs().unwrap();
            for reduction in [Reduction::None, Reduction::Mean, Reduction::Sum] {
                for label_smoothing in [0.0, 0.1] {
                    for weight in [None, Some(&weight)] {
                        let config = CrossEntropyConfig {
                            reduction,
                            label_smoothing,
                            ignore_index: ignore,
                            weight: weight.cloned(),
                        };
                        compare_losses(&format!("{shape:?}"), device, &x, &t, &config);
                    }
                }
            }
        }
    }
}

#[test]
fn views_of_logits_targets_and_weights_are_the_cpus() {
    let (device, _turn) = card!();
    let config = CrossEntropyConfig {
        label_smoothing: 0.2,
        weight: Some(
            values(&[24], DType::F32, 4)
                .abs()
                .unwrap()
                .slice(0, 0..24, 2)
                .unwrap(),
        ),
        ..CrossEntropyConfig::default()
    };
    let x = values(&[12, 20], DType::F32, 1).t().unwrap();
    let t = Tensor::from_vec(targets(40, 12, -100, 3), [40], Device::cpu(0)).unwrap();
    let t = t.slice(0, 1..40, 2).unwrap().narrow(0, 0, 20).unwrap();
    compare_losses("views", device, &x, &t, &config);
    let each = CrossEntropyConfig {
        reduction: Reduction::None,
        ..config
    };
    compare_losses("views", device, &x, &t, &each);
}

/// More rows than the blocks of a launch have threads for, and rows whose elements lie apart.
#[test]
fn many_rows_are_the_cpus() {
    let (device, _turn) = card!();
    let n = 1_100_000;
    let t = Tensor::from_vec(targets(n, 2, -100, 1), [n], Device::cpu(0)).unwrap();
    let x = values(&[n, 2], DType::BF16, 1);
    compare_losses("rows", device, &x, &t, &CrossEntropyConfig::default());
    let x = values(&[7, 20_000], DType::F32, 1);
    compare("apart", device, &x, &x, Tensor::clone, 0);
}

#[test]
fn batches_without_targets_are_the_cpus() {
    let (device, _turn) = card!();
    let none = Tensor::from_vec(Vec::<i64>::new(), [0], Device::cpu(0)).unwrap();
    let ignored = Tensor::full([4], -100, DType::I64, Device::cpu(0)).unwrap();
    for reduction in [Reduction::None, Reduction::Mean, Reduction::Sum] {
        let config = CrossEntropyConfig {
            reduction,
            ..CrossEntropyConfig::default()
        };
        compare_losses(
            "no targets",
            device,
            &values(&[0, 5], DType::F32, 1),
            &none,
            &config,
        );
        compare_losses(
            "all ignored",
            device,
            &values(&[4, 5], DType::BF16, 1),
            &ignored,
            &config,
        );
        compare_losses(
            "no classes",
            device,
            &values(&[4, 0], DType::F32, 1),
            &ignored,
            &config,
        );
    }
}

#[test]
fn extreme_logits_are_the_cpus() {
    let (device, _turn) = card!();
    let (inf, nan) = (f64::INFINITY, f64::NAN);
    let data = vec![
        -inf, -inf, -inf, -inf, 0.0, -inf, 1.0, 2.0, nan, 0.0, 0.0, 1.0, 0.0, inf, 0.0, 0.0, 3e4,
        -3e4, 0.0, 3e4,
    ];
    let t = Tensor::from_vec(vec![0i64, 1, 2, 3, 1], [5], Device::cpu(0)).unwrap();
    for dtype in FLOATS {
        let x = Tensor::from_vec(data.clone(), [5, 4], Device::cpu(0)).unwrap();
        for label_smoothing in [0.0, 0.1] {
            let config = CrossEntropyConfig {
                reduction: Reduction::None,
                label_smoothing,
                ..CrossEntropyConfig::default()
            };
            compare_losses("extremes", device, &x.cast(dtype).unwrap(), &t, &config);
        }
    }
}

#[test]
fn a_target_that_is_no_class_is_an_error_at_the_next_read() {
    let (device, _turn) = card!();
    // Rows of one thread each, and of many.
    let wrong = |classes: usize| [classes as i64, -1, i64::MAX].map(|wrong| (classes, wrong));
    for (classes, wrong) in [wrong(4), wrong(300)].concat() {
        let x = values(&[3, classes], DType::F32, 1)
            .to_device(device)
            .unwrap();
        let t = Tensor::from_slice(&[0i64, wrong, 3], [3], Device::cpu(0)).unwrap();
        let t = t.to_device(device).unwrap();
        let config = CrossEntropyConfig {
            reduction: Reduction::None,
            ..CrossEntropyConfig::default()
        };
        let out = x.cross_entropy(&t, &config).unwrap();
        let error = out.loss.to_vec::<f32>().unwrap_err();
        let expected = |op| Error::IndexOutOfRange {
            op,
            index: wrong,
            extent: classes,
            late: true,
        };
        assert_eq!(error, expected("cross_entropy"));
        device.clear_index_error().unwrap();
        let losses = out.loss.to_vec::<f32>().unwrap();
        assert!(losses[1].is_nan() && losses[0].is_finite() && losses[2].is_finite());
        let grad = Tensor::ones([3], DType::F32, device).unwrap();
        let dx = grad
            .cross_entropy_backward(&x, &t, &out.saved, &out.total_weight, &config)
            .unwrap();
        assert_eq!(
            dx.to_vec::<f32>().unwrap_err(),
            expected("cross_entropy_backward")
        );
        device.clear_index_error().unwrap();
        let dx = dx.to_vec::<f32>().unwrap();
        let (before, rest) = dx.split_at(classes);
        assert!(before.iter().all(|v| v.is_finite()));
        assert!(rest[..classes].iter().all(|v| v.is_nan()));
    }
}

#[test]
fn misuse_is_the_cpus_error() {
    let (device, _turn) = card!();
    let ints = Tensor::zeros([2], DType::I64, Device::cpu(0)).unwrap();
    let there = ints.to_device(device).unwrap();
    assert_eq!(there.softmax(0).unwrap_err(), ints.softmax(0).unwrap_err());
    let x = values(&[2, 3], DType::F32, 1);
    let far = x.to_device(device).unwrap();
    assert_eq!(far.softmax(2).unwrap_err(), x.softmax(2).unwrap_err());
    let config = CrossEntropyConfig::default();
    assert!(matches!(
        far.cross_entropy(&ints, &config),
        Err(Error::DeviceMismatch { .. })
    ));
}

#[test]
fn results_repeat_bit_for_bit() {
    let (device, _turn) = card!();
    let x = values(&[700, 50], DType::F32, 1).to_device(device).unwrap();
    let t = Tensor::from_vec(targets(700, 50, -100, 1), [700], Device::cpu(0)).unwrap();
    let t = t.to_device(device).unwrap();
    let run = || {
        let out = x.cross_entropy(&t, &CrossEntropyConfig::default()).unwrap();
        [out.loss, out.saved, x.softmax(0).unwrap()].map(|t| read(&t))
    };
    assert_eq!(run(), run());
}
