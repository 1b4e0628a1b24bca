//! Softmax and cross-entropy against plain formulas over `f64`, PyTorch's values, and central
//! differences.

use crate::util::*;
use phalanx_tensor::ops::softmax::{CrossEntropyConfig, Reduction};
use phalanx_tensor::{DType, Device, Error, Tensor, cpu};

/// Applies `f` to every line along `axis`.
fn along(values: &[f64], shape: &[usize], axis: usize, f: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    let inner: usize = shape[axis + 1..].iter().product();
    let n = shape[axis];
    let mut out = values.to_vec();
    for start in 0..values.len() {
        if n > 0 && (start / inner).is_multiple_of(n) {
            let line: Vec<f64> = (0..n).map(|i| values[start + i * inner]).collect();
            let line = f(&line);
            (0..n).for_each(|i| out[start + i * inner] = line[i]);
        }
    }
    out
}

fn softmax(line: &[f64]) -> Vec<f64> {
    let max = line.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = line.iter().map(|x| (x - max).exp()).sum();
    line.iter().map(|x| (x - max).exp() / sum).collect()
}

fn log_softmax(line: &[f64]) -> Vec<f64> {
    let max = line.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = line.iter().map(|x| (x - max).exp()).sum();
    line.iter().map(|x| x - max - sum.ln()).collect()
}

#[test]
fn softmax_and_log_softmax_match_their_formulas_on_any_view() {
    let mut rng = TestRng::new(11);
    for case in 0..200 {
        let mut shape = rng.shape(3, 6);
        shape.push(1 + rng.below(40));
        let axis = rng.below(shape.len());
        let signed = axis as isize
            - if case % 2 == 0 {
                shape.len() as isize
            } else {
                0
            };
        for dtype in FLOATS {
            let x = rng.tensor(&shape, dtype, (-8.0, 8.0));
            let what = format!("{dtype} {} axis {axis}", show(&shape));
            let expected = along(&values(&x), &shape, axis, softmax);
            assert_close(
                &x.softmax(signed).unwrap(),
                &shape,
                &expected,
                tolerance(dtype, 16.0),
                &what,
            );
            let expected = along(&values(&x), &shape, axis, log_softmax);
            let actual = x.log_softmax(signed).unwrap();
            assert_close(&actual, &shape, &expected, tolerance(dtype, 32.0), &what);
        }
    }
}

#[test]
fn softmax_survives_large_and_infinite_logits() {
    for dtype in [DType::F32, DType::F64] {
        let inf = f64::INFINITY;
        let x = tensor_of(
            &[1e30, 1e30, -inf, -1e30, -inf, -inf, -inf, -inf],
            &[2, 4],
            dtype,
        );
        let p = values(&x.softmax(-1).unwrap());
        assert_eq!(p[..4], [0.5, 0.5, 0.0, 0.0]);
        assert!(p[4..].iter().all(|p| p.is_nan()));
        let x = tensor_of(&[0.0, f64::NAN, 1.0], &[3], dtype);
        assert!(values(&x.softmax(0).unwrap()).iter().all(|p| p.is_nan()));
        assert!(
            values(&x.log_softmax(0).unwrap())
                .iter()
                .all(|p| p.is_nan())
        );
    }
}

#[test]
fn softmax_gradients_are_the_central_differences() {
    let mut rng = TestRng::new(12);
    for _ in 0..20 {
        let mut shape = rng.shape(2, 4);
        shape.push(1 + rng.below(20));
        let axis = rng.below(shape.len()) as isize;
        let x = [rng.tensor(&shape, DType::F64, (-2.0, 2.0))];
        let grad = rng.tensor(&shape, DType::F64, (-1.0, 1.0));
        let dx = grad
            .softmax_backward(&x[0].softmax(axis).unwrap(), axis)
            .unwrap();
        assert_gradient(
            |x| x[0].softmax(axis).unwrap(),
            &x,
            0,
            &grad,
            &dx,
            "softmax",
        );
        let y = x[0].log_softmax(axis).unwrap();
        let dx = grad.log_softmax_backward(&y, axis).unwrap();
        assert_gradient(
            |x| x[0].log_softmax(axis).unwrap(),
            &x,
            0,
            &grad,
            &dx,
            "log_softmax",
        );
    }
}

/// One row of cross-entropy, straight from the definition.
fn plain_loss(row: &[f64], target: i64, weight: &[f64], smoothing: f64, ignore: i64) -> f64 {
    if target == ignore {
        return 0.0;
    }
    let nll: Vec<f64> = log_softmax(row).iter().map(|l| -l).collect();
    let all: f64 = nll.iter().zip(weight).map(|(l, w)| l * w).sum();
    let t = target as usize;
    (1.0 - smoothing) * weight[t] * nll[t] + smoothing / row.len() as f64 * all
}

#[test]
fn cross_entropy_matches_its_definition_and_central_differences() {
    let mut rng = TestRng::new(13);
    for case in 0..160 {
        let classes = 1 + rng.below(35);
        let mut targets_shape = rng.shape(3, 4);
        targets_shape.retain(|&d| d > 0);
        let class_axis = targets_shape.len().min(1);
        let mut shape = targets_shape.clone();
        shape.insert(class_axis, classes);
        let ignore = if case % 3 == 0 { 0 } else { -100 };
        let rows: usize = targets_shape.iter().product();
        let t: Vec<i64> = (0..rows)
            .map(|_| {
                if rng.below(5) == 0 {
                    ignore
                } else {
                    rng.below(classes) as i64
                }
            })
            .collect();
        let targets = Tensor::from_slice(&t, targets_shape.as_slice(), device()).unwrap();
        let smoothing = [0.0, 0.1, 1.0][rng.below(3)];
        for dtype in FLOATS {
            let weight = rng.tensor(&[classes], dtype, (0.5, 2.0));
            let weighted = rng.below(2) == 0;
            let w = if weighted {
                values(&weight)
            } else {
                vec![1.0; classes]
            };
            let logits = rng.tensor(&shape, dtype, (-5.0, 5.0));
            let last: Vec<isize> = (0..shape.len() as isize)
                .filter(|&a| a != class_axis as isize)
                .chain([class_axis as isize])
                .collect();
            let x = values(&logits.permute(&last).unwrap());
            let each: Vec<f64> = t
                .iter()
                .zip(x.chunks(classes))
                .map(|(&t, row)| plain_loss(row, t, &w, smoothing, ignore))
                .collect();
            let counted: f64 = t
                .iter()
                .filter(|&&t| t != ignore)
                .map(|&t| w[t as usize])
                .sum();
            for reduction in [Reduction::None, Reduction::Sum, Reduction::Mean] {
                let config = CrossEntropyConfig {
                    reduction,
                    label_smoothing: smoothing,
                    ignore_index: ignore,
                    weight: weighted.then(|| weight.clone()),
                };
                let out = logits.cross_entropy(&targets, &config).unwrap();
                let (loss_shape, expected) = match reduction {
                    Reduction::None => (&targets_shape[..], each.clone()),
                    Reduction::Sum => (&[][..], vec![each.iter().sum()]),
                    Reduction::Mean => (&[][..], vec![each.iter().sum::<f64>() / counted]),
                };
                let what = format!("{dtype} {} {config:?}", show(&shape));
                let wide = out.saved.dtype();
                assert_eq!(out.loss.dtype(), wide, "{what}");
                // On a CPU the weights are summed in this order; on a card in another one, which may change
                // the last bits.
                let total = out.total_weight.item::<f64>().unwrap();
                let slack = match device() {
                    Device::Cpu(_) => 0.0,
                    _ => 1e-14 * counted,
                };
                let apart = (total - counted).abs();
                assert!(apart <= slack, "{what}: {total}, not {counted}");
                assert_close(
                    &out.loss,
                    loss_shape,
                    &expected,
                    tolerance(wide, 64.0),
                    &what,
                );

                let grad = rng.tensor(loss_shape, wide, (-1.0, 1.0));
                let dx = grad
                    .cross_entropy_backward(
                        &logits,
                        &targets,
                        &out.saved,
                        &out.total_weight,
                        &config,
                    )
                    .unwrap();
                assert_eq!(dx.dtype(), dtype);
                if counted == 0.0 && reduction == Reduction::Mean {
                    assert!(values(&dx).iter().all(|v| *v == 0.0));
                    continue;
                }
                let of = |x: &[Tensor]| {
                    let config = CrossEntropyConfig {
                        weight: weighted.then(|| tensor_of(&w, &[classes], DType::F64)),
                        ..config.clone()
                    };
                    x[0].cross_entropy(&targets, &config).unwrap().loss
                };
                if case < 40 {
                    let exact = [tensor_of(&values(&logits), &shape, DType::F64)];
                    let slope = central_differences(of, &exact, 0, &grad);
                    let tol = tolerance(dtype, 64.0).max(1e-6);
                    assert_close(&dx, &shape, &slope, tol, &what);
                }
            }
        }
    }
}

/// `torch.nn.functional.cross_entropy(x, y, weight=w, label_smoothing=0.1)` and its gradient, by
/// PyTorch 2.15 in `float64`, for the logits, targets and weights below; the last row of each
/// table is the loss.
#[test]
fn cross_entropy_gives_pytorchs_values() {
    let x = [
        0.5, -1.0, 2.0, 1.5, 0.25, -0.75, -2.0, 0.0, 1.0, 0.0, 3.0, -1.0,
    ];
    let x = tensor_of(&x, &[4, 3], DType::F64);
    let y = Tensor::from_slice(&[2i64, 0, -100, 1], [4], device()).unwrap();
    let w = tensor_of(&[0.5, 2.0, 1.25], &[3], DType::F64);
    #[rustfmt::skip]
    let golden = [
        (None, 0.0, [0.05843013071334556, 0.013037524423562482, -0.07146765513690803,
            -0.09385321961631168, 0.06861220133255051, 0.02524101828376117, 0.0, 0.0, 0.0,
            0.01553754085932463, -0.021253482707831412, 0.005715941848506796,
            0.21262260327393676]),
        (Some(&w), 0.1, [0.05398568626890113, -0.004740253354215293, -0.04924543291468585,
            -0.014283592134614508, 0.013783834835195458, 0.0004997572994190263, 0.0, 0.0, 0.0,
            0.019483368478915485, -0.017174807814504887, -0.002308560664410646,
            0.32996063625697364]),
    ];
    for (weight, label_smoothing, expected) in golden {
        let config = CrossEntropyConfig {
            label_smoothing,
            weight: weight.cloned(),
            ..CrossEntropyConfig::default()
        };
        let out = x.cross_entropy(&y, &config).unwrap();
        assert_close(&out.loss, &[], &expected[12..], 1e-15, "loss");
        let one = Tensor::scalar(1.0f64, device()).unwrap();
        let dx = one
            .cross_entropy_backward(&x, &y, &out.saved, &out.total_weight, &config)
            .unwrap();
        assert_close(&dx, &[4, 3], &expected[..12], 1e-15, "gradient");
    }
}

#[test]
fn losses_of_half_logits_are_f32() {
    for dtype in [DType::BF16, DType::F16] {
        // 4096 losses of ln 4 + 12 each: their sum is beyond what f16 holds.
        let row = [12.0, 0.0, 0.0, 0.0].repeat(4096);
        let logits = tensor_of(&row, &[4096, 4], dtype);
        let targets = Tensor::full([4096], 1.0, DType::I64, device()).unwrap();
        let each = 12.0 + (1.0 + 3.0 * (-12f64).exp()).ln();
        for (reduction, want) in [
            (Reduction::None, vec![each; 4096]),
            (Reduction::Mean, vec![each]),
            (Reduction::Sum, vec![4096.0 * each]),
        ] {
            let config = CrossEntropyConfig {
                reduction,
                ..CrossEntropyConfig::default()
            };
            let out = logits.cross_entropy(&targets, &config).unwrap();
            assert_eq!(out.loss.dtype(), DType::F32);
            for (got, want) in values(&out.loss).iter().zip(&want) {
                assert!(
                    (got - want).abs() <= 1e-6 * want,
                    "{dtype}: {got}, not {want}"
                );
            }
            let dx = out
                .loss
                .cross_entropy_backward(&logits, &targets, &out.saved, &out.total_weight, &config)
                .unwrap();
            assert_eq!(dx.dtype(), dtype);
            let half = out.loss.cast(dtype).unwrap();
            let e = half.cross_entropy_backward(
                &logits,
                &targets,
                &out.saved,
                &out.total_weight,
                &config,
            );
            assert!(matches!(e, Err(Error::DTypeMismatch { .. })));
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let mut rng = TestRng::new(14);
    let logits = rng
        .tensor(&[700, 50], DType::F32, (-3.0, 3.0))
        .contiguous()
        .unwrap();
    let t: Vec<i64> = (0..700).map(|_| rng.below(50) as i64).collect();
    let targets = Tensor::from_slice(&t, [700], device()).unwrap();
    let config = CrossEntropyConfig {
        label_smoothing: 0.1,
        ..Default::default()
    };
    let run = || {
        let out = logits.cross_entropy(&targets, &config).unwrap();
        let dx = out
            .loss
            .cross_entropy_backward(&logits, &targets, &out.saved, &out.total_weight, &config)
            .unwrap();
        let p = logits.softmax(-1).unwrap();
        let dp = p.softmax_backward(&logits, -1).unwrap();
        [
            out.loss,
            out.saved,
            dx,
            p,
            dp,
            logits.log_softmax(0).unwrap(),
        ]
    };
    let alone = cpu::with_threads(1, run);
    for threads in [2, 3, 7] {
        for (a, b) in alone.iter().zip(cpu::with_threads(threads, run)) {
            assert_same(a, &b, "threads");
        }
    }
}

#[test]
fn misuse_is_named() {
    let device = device();
    let x = Tensor::zeros([2, 3], DType::F32, device).unwrap();
    let y = |t: &[i64]| Tensor::from_slice(t, [t.len()], device).unwrap();
    let config = CrossEntropyConfig::default();
    for wrong in [3, -1, i64::MAX] {
        assert_eq!(
            out_of_range(x.cross_entropy(&y(&[0, wrong]), &config).map(|y| y.loss)),
            Error::IndexOutOfRange {
                op: "cross_entropy",
                index: wrong,
                extent: 3,
                late: matches!(device, Device::Cuda(_))
            }
        );
    }
    let e = x.cross_entropy(&y(&[0]), &config).unwrap_err().to_string();
    assert!(e.contains("[2, 3]") && e.contains("[1]"), "{e}");
    let floats = Tensor::zeros([2], DType::F32, device).unwrap();
    assert_eq!(
        x.cross_entropy(&floats, &config).unwrap_err().to_string(),
        "cross_entropy: targets must be i64, not f32"
    );
    let far = y(&[0, 1]).to_device(Device::cpu(1)).unwrap();
    assert_eq!(
        x.cross_entropy(&far, &config).unwrap_err(),
        Error::DeviceMismatch {
            op: "cross_entropy",
            lhs: device,
            rhs: Device::cpu(1)
        }
    );
    let smoothing = CrossEntropyConfig {
        label_smoothing: 1.5,
        ..Default::default()
    };
    assert!(matches!(
        x.cross_entropy(&y(&[0, 1]), &smoothing),
        Err(Error::InvalidArgument { .. })
    ));
    assert!(matches!(
        x.softmax(2),
        Err(Error::AxisOutOfRange {
            op: "softmax",
            axis: 2,
            rank: 2
        })
    ));
    let ints = Tensor::zeros([2], DType::I64, device).unwrap();
    assert!(matches!(
        ints.softmax(0),
        Err(Error::UnsupportedDType { op: "softmax", .. })
    ));
}
