//! Batch normalisation against its formulas in `f64`, its gradients against central differences.

use crate::util::*;
use phalanx_tensor::ops::norm::{BatchNormGrads, BatchNormMask, BatchNormMomentum, BatchNormSaved};
use phalanx_tensor::{DType, Error, Tensor, cpu};

/// `[n, c, …]` with at least two elements per channel.
fn random_shape(rng: &mut TestRng) -> Vec<usize> {
    let mut shape = vec![1 + rng.below(5), 1 + rng.below(5)];
    (0..rng.below(3)).for_each(|_| shape.push(1 + rng.below(9)));
    if shape.iter().product::<usize>() == shape[1] {
        shape[0] += 1;
    }
    shape
}

/// The channel of each element.
fn channels(shape: &[usize]) -> Vec<usize> {
    let plane: usize = shape[2..].iter().product();
    (0..shape.iter().product())
        .map(|i| i / plane % shape[1])
        .collect()
}

/// Mean and variance per channel.
fn statistics(x: &[f64], shape: &[usize]) -> (Vec<f64>, Vec<f64>) {
    let (at, count) = (channels(shape), x.len() as f64 / shape[1] as f64);
    let mut mean = vec![0.0; shape[1]];
    at.iter().zip(x).for_each(|(&c, v)| mean[c] += v / count);
    let mut var = vec![0.0; shape[1]];
    at.iter()
        .zip(x)
        .for_each(|(&c, v)| var[c] += (v - mean[c]).powi(2) / count);
    (mean, var)
}

/// The normalised tensor, plus the residual, clipped.
fn normalised(
    (x, at): (&[f64], &[usize]),
    (mean, var, eps): (&[f64], &[f64], f64),
    (w, b): (&[f64], &[f64]),
    residual: Option<&[f64]>,
    relu: bool,
) -> Vec<f64> {
    let value = |(i, &c): (usize, &usize)| {
        let y = (x[i] - mean[c]) / (var[c] + eps).sqrt() * w[c] + b[c];
        let y = y + residual.map_or(0.0, |r| r[i]);
        if relu { y.max(0.0) } else { y }
    };
    at.iter().enumerate().map(value).collect()
}

#[test]
fn normalises_as_the_formula() {
    let mut rng = TestRng::new(91);
    for i in 0..200 {
        let dtype = FLOATS[i % 4];
        let shape = random_shape(&mut rng);
        let at = channels(&shape);
        let x = rng.tensor(&shape, dtype, (-2.0, 3.0));
        let w = rng.tensor(&shape[1..2], dtype, (-1.0, 1.0));
        let b = rng.tensor(&shape[1..2], dtype, (-1.0, 1.0));
        let r = rng.tensor(&shape, dtype, (-1.0, 1.0));
        let (with_w, with_b) = (rng.below(3) > 0, rng.below(3) > 0);
        let (with_r, relu) = (rng.below(2) > 0, rng.below(2) > 0);
        let (w, b) = (with_w.then_some(&w), with_b.then_some(&b));
        let r = with_r.then_some(&r);
        let eps = 1e-2;
        let y = x.batch_norm_act(w, b, eps, r, relu).unwrap();
        let (mean, var) = statistics(&values(&x), &shape);
        let wv = w.map_or(vec![1.0; shape[1]], values);
        let bv = b.map_or(vec![0.0; shape[1]], values);
        let rv = r.map(values);
        let expected = normalised(
            (&values(&x), &at),
            (&mean, &var, eps),
            (&wv, &bv),
            rv.as_deref(),
            relu,
        );
        // Ten times 1/√eps at most: what a rounding of the mean can grow to.
        let tol = tolerance(dtype, 64.0);
        let working = if dtype == DType::F64 {
            DType::F64
        } else {
            DType::F32
        };
        let what = format!("{dtype} {shape:?} relu {relu}");
        assert_close(&y.out, &shape, &expected, tol, &what);
        assert_close(&y.mean, &shape[1..2], &mean, tolerance(working, 8.0), &what);
        assert_close(&y.var, &shape[1..2], &var, tolerance(working, 16.0), &what);
        let invstd: Vec<f64> = var.iter().map(|v| 1.0 / (v + eps).sqrt()).collect();
        assert_close(
            &y.invstd,
            &shape[1..2],
            &invstd,
            tolerance(working, 64.0),
            &what,
        );
        assert_eq!(y.mean.dtype(), working);
        if w.is_some() && r.is_none() && !relu {
            assert_same(&x.batch_norm(w, b, eps).unwrap().out, &y.out, &what);
        }
        let again = x
            .batch_norm_inference(&y.mean, &y.var, w, b, eps, r, relu)
            .unwrap();
        assert_close(
            &again,
            &shape,
            &values(&y.out),
            tolerance(dtype, 64.0),
            &what,
        );
    }
}

/// The naive `E[x²] − E[x]²` in `f32` has no digit left here.
#[test]
fn a_mean_far_from_zero_costs_no_digits() {
    let mut rng = TestRng::new(92);
    let shape = [8, 3, 28, 28];
    let x = rng
        .tensor(&shape, DType::F32, (4095.0, 4097.0))
        .contiguous()
        .unwrap();
    let (mean, var) = statistics(&values(&x), &shape);
    let y = x.batch_norm(None, None, 1e-5).unwrap();
    let ones = vec![1.0; 3];
    let expected = normalised(
        (&values(&x), &channels(&shape)),
        (&mean, &var, 1e-5),
        (&ones, &[0.0; 3]),
        None,
        false,
    );
    assert_close(&y.var, &[3], &var, 1e-6, "variance");
    // The mean itself rounds to 2⁻¹² at this distance.
    assert_close(&y.out, &shape, &expected, 2.0 * 2f64.powi(-12), "output");
}

#[test]
fn nan_shows_in_the_statistics() {
    let x = tensor_of(&[1.0, f64::NAN, 3.0, 4.0], &[2, 2], DType::F32);
    let var = values(&x.batch_norm(None, None, 1e-5).unwrap().var);
    assert!(var[0] == 1.0 && var[1].is_nan(), "{var:?}");
}

#[test]
fn gradients_agree_with_central_differences() {
    let mut rng = TestRng::new(93);
    let mut kinds = [0; 4];
    for _ in 0..60 {
        let mut shape = random_shape(&mut rng);
        shape[0] += 1; // with two elements the gradient is nothing but cancellation
        let c = shape[1];
        let kind = rng.below(4);
        kinds[kind] += 1;
        let (residual, relu) = (kind >= 2, kind % 2 == 1);
        let inputs = [
            rng.tensor(&shape, DType::F64, (-2.0, 2.0))
                .contiguous()
                .unwrap(),
            rng.tensor(&[c], DType::F64, (0.5, 1.5)),
            rng.tensor(&[c], DType::F64, (-0.5, 0.5)),
            rng.tensor(&shape, DType::F64, (-1.0, 1.0)),
        ];
        let eps = 0.1;
        let run = |t: &[Tensor]| {
            t[0].batch_norm_act(
                Some(&t[1]),
                Some(&t[2]),
                eps,
                residual.then_some(&t[3]),
                relu,
            )
            .unwrap()
        };
        let y = run(&inputs);
        let without = inputs[0]
            .batch_norm_act(
                Some(&inputs[1]),
                Some(&inputs[2]),
                eps,
                residual.then_some(&inputs[3]),
                false,
            )
            .unwrap();
        if relu && values(&without.out).iter().any(|v| v.abs() < 1e-3) {
            continue; // on the kink
        }
        let dy = rng.tensor(&shape, DType::F64, (-1.0, 1.0));
        let grads = Tensor::batch_norm_backward(
            &dy,
            &BatchNormSaved {
                input: &inputs[0],
                mean: &y.mean,
                invstd: &y.invstd,
                weight: Some(&inputs[1]),
                bias: Some(&inputs[2]),
                activation: match (residual, relu) {
                    (_, false) => BatchNormMask::Linear,
                    (false, true) => BatchNormMask::Relu,
                    (true, true) => BatchNormMask::ResidualRelu(&y.out),
                },
            },
        )
        .unwrap();
        let what = format!("{shape:?} residual {residual} relu {relu}");
        let f = |t: &[Tensor]| run(t).out;
        assert_gradient(f, &inputs, 0, &dy, &grads.input, &what);
        assert_gradient(f, &inputs, 1, &dy, &grads.weight, &what);
        assert_gradient(f, &inputs, 2, &dy, &grads.bias, &what);
        assert_eq!(grads.residual.is_some(), residual && relu, "{what}");
        if let Some(r) = &grads.residual {
            assert_gradient(f, &inputs, 3, &dy, r, &what);
        }
    }
    assert!(kinds.iter().all(|&k| k > 5), "{kinds:?}");
}

/// Forward and backward of one layer, with every mask.
fn layer(x: &Tensor, w: &Tensor, b: &Tensor, r: &Tensor, dy: &Tensor) -> Vec<Tensor> {
    let mut all = Vec::new();
    for kind in 0..3 {
        let y = x
            .batch_norm_act(Some(w), Some(b), 1e-5, (kind == 2).then_some(r), kind > 0)
            .unwrap();
        let activation = match kind {
            0 => BatchNormMask::Linear,
            1 => BatchNormMask::Relu,
            _ => BatchNormMask::ResidualRelu(&y.out),
        };
        let saved = BatchNormSaved {
            input: x,
            mean: &y.mean,
            invstd: &y.invstd,
            weight: Some(w),
            bias: Some(b),
            activation,
        };
        let BatchNormGrads {
            input,
            weight,
            bias,
            residual,
        } = Tensor::batch_norm_backward(dy, &saved).unwrap();
        all.extend([y.out.clone(), y.mean, y.var, y.invstd, input, weight, bias]);
        all.extend(residual);
    }
    all
}

#[test]
fn small_types_agree_with_f64() {
    let mut rng = TestRng::new(94);
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let shape = [6, 5, 9, 7];
        let tensors = [
            rng.tensor(&shape, dtype, (-2.0, 2.0)),
            rng.tensor(&[5], dtype, (0.5, 1.5)),
            rng.tensor(&[5], dtype, (-0.5, 0.5)),
            rng.tensor(&shape, dtype, (-1.0, 1.0)),
            rng.tensor(&shape, dtype, (-1.0, 1.0)),
        ];
        let wide = tensors
            .each_ref()
            .map(|t| tensor_of(&values(t), t.dims(), DType::F64));
        let [x, w, b, r, dy] = &tensors;
        let [wx, ww, wb, wr, wdy] = &wide;
        for (i, (a, e)) in layer(x, w, b, r, dy)
            .iter()
            .zip(layer(wx, ww, wb, wr, wdy))
            .enumerate()
        {
            assert_close(
                a,
                e.dims(),
                &values(&e),
                tolerance(dtype, 128.0),
                &format!("{dtype} result {i}"),
            );
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let mut rng = TestRng::new(95);
    for shape in [vec![9, 13, 28, 28], vec![64, 64, 7, 7], vec![300, 100]] {
        let x = rng.tensor(&shape, DType::F32, (-2.0, 2.0));
        let (w, b) = (
            rng.tensor(&shape[1..2], DType::F32, (0.5, 1.5)),
            rng.tensor(&shape[1..2], DType::F32, (-0.5, 0.5)),
        );
        let (r, dy) = (
            rng.tensor(&shape, DType::F32, (-1.0, 1.0)),
            rng.tensor(&shape, DType::F32, (-1.0, 1.0)),
        );
        let run = |threads| cpu::with_threads(threads, || layer(&x, &w, &b, &r, &dy));
        let one = run(1);
        for threads in [2, 5] {
            one.iter()
                .zip(&run(threads))
                .for_each(|(a, b)| assert_same(a, b, "batch norm"));
        }
    }
}

#[test]
fn says_what_does_not_fit() {
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, device()).unwrap();
    let (x, w) = (zeros(&[2, 3, 4]), zeros(&[3]));
    let rank = w.batch_norm(None, None, 1e-5).unwrap_err();
    assert!(rank.to_string().contains("at least two axes"), "{rank}");
    let weight = x.batch_norm(Some(&zeros(&[4])), None, 1e-5).unwrap_err();
    assert!(
        matches!(
            weight,
            Error::ShapeMismatch {
                op: "batch_norm",
                ..
            }
        ),
        "{weight}"
    );
    let residual = x
        .batch_norm_act(None, None, 1e-5, Some(&w), true)
        .unwrap_err();
    assert!(
        matches!(
            residual,
            Error::ShapeMismatch {
                op: "batch_norm_act",
                ..
            }
        ),
        "{residual}"
    );
    let dtype = x.batch_norm(
        Some(&Tensor::zeros([3], DType::F64, device()).unwrap()),
        None,
        1e-5,
    );
    assert!(matches!(dtype.unwrap_err(), Error::DTypeMismatch { .. }));
    let ints = Tensor::zeros([2, 3], DType::I64, device())
        .unwrap()
        .batch_norm(None, None, 1e-5);
    assert!(matches!(ints.unwrap_err(), Error::UnsupportedDType { .. }));
}

#[test]
fn a_batch_without_elements_has_zero_gradients() {
    for dtype in FLOATS {
        for shape in [&[0usize, 3, 4][..], &[2, 3, 0], &[0, 3], &[0, 0]] {
            let x = tensor_of(&[], shape, dtype);
            let w = Tensor::ones([shape[1]], dtype, device()).unwrap();
            let y = x.batch_norm(Some(&w), Some(&w), 1e-5).unwrap();
            assert_eq!((y.out.dims(), y.out.dtype()), (shape, dtype));
            let nothing = |t: &Tensor| values(t).iter().all(|v| v.is_nan());
            assert!(nothing(&y.mean) && nothing(&y.var) && nothing(&y.invstd));
            let given = x
                .batch_norm_inference(&w, &w, None, None, 1.0, None, false)
                .unwrap();
            assert_eq!((given.dims(), given.dtype()), (shape, dtype));
            for activation in [
                BatchNormMask::Linear,
                BatchNormMask::Relu,
                BatchNormMask::ResidualRelu(&x),
            ] {
                let saved = BatchNormSaved {
                    input: &x,
                    mean: &y.mean,
                    invstd: &y.invstd,
                    weight: Some(&w),
                    bias: Some(&w),
                    activation,
                };
                for grads in [
                    Tensor::batch_norm_backward(&x, &saved).unwrap(),
                    Tensor::batch_norm_inference_backward(&x, &saved).unwrap(),
                ] {
                    assert_eq!(grads.input.dims(), shape);
                    assert_eq!(values(&grads.weight), vec![0.0; shape[1]]);
                    assert_eq!(values(&grads.bias), vec![0.0; shape[1]]);
                }
            }
        }
    }
}

/// The bits of the operations that it stands for, whether the share is a number of the host's or
/// follows from a count on the device.
#[test]
fn running_statistics_move_by_a_share_or_by_a_count() {
    let mut rng = TestRng::new(11);
    let cpu = device();
    for dtype in FLOATS {
        let mut draw = || rng.tensor(&[5], dtype, (0.0, 1.0));
        let (running, batch) = ([draw(), draw()], [draw(), draw()]);
        let batch = batch.map(|t| t.cast(dtype.compute()).unwrap());
        let count = Tensor::scalar(7i64, cpu).unwrap();
        for (momentum, share) in [
            (BatchNormMomentum::Share(0.1), 0.1),
            (BatchNormMomentum::Cumulative(&count), 1.0 / 7.0),
        ] {
            let got = Tensor::batch_norm_track(running.each_ref(), batch.each_ref(), 9, momentum);
            let got = got.unwrap();
            for (i, factor) in [1.0, 9.0 / 8.0].into_iter().enumerate() {
                let part = batch[i].cast(dtype).unwrap().mul_scalar(share * factor);
                let kept = running[i].mul_scalar(1.0 - share).unwrap();
                let want = kept.add(&part.unwrap()).unwrap();
                assert_eq!(bytes(&got[i]), bytes(&want), "{dtype}");
            }
        }
        let [t, two] = [&running[0], &tensor_of(&[1.0, 2.0], &[2], dtype)];
        let track = |other, elements, momentum| {
            Tensor::batch_norm_track([t, t], [t, other], elements, momentum).unwrap_err()
        };
        let share = BatchNormMomentum::Share(0.5);
        assert!(matches!(track(t, 1, share), Error::InvalidArgument { .. }));
        assert!(matches!(track(two, 2, share), Error::ShapeMismatch { .. }));
        let float = BatchNormMomentum::Cumulative(t);
        assert!(matches!(track(t, 2, float), Error::WrongDType { .. }));
    }
}
