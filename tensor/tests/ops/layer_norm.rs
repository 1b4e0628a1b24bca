//! Layer norm against its formula over `f64`, PyTorch's values, and central differences.

use crate::util::*;
use phalanx_tensor::{DType, Device, Error, Tensor, cpu};

const EPS: f64 = 1e-5;

fn plain(x: &[f64], width: usize, w: &[f64], b: &[f64], eps: f64) -> Vec<f64> {
    let row = |x: &[f64]| -> Vec<f64> {
        let mean = x.iter().sum::<f64>() / width as f64;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
        let normal = x.iter().map(|x| (x - mean) / (variance + eps).sqrt());
        normal
            .zip(w.iter().zip(b))
            .map(|(x, (w, b))| x * w + b)
            .collect()
    };
    x.chunks(width).flat_map(row).collect()
}

#[test]
fn rows_are_normalised_by_the_formula_on_any_view() {
    // Rows may have a small variance, by which errors are divided; eps bounds that.
    let eps = 0.01;
    let mut rng = TestRng::new(41);
    for _ in 0..100 {
        let lead = rng.shape(2, 5);
        let normalized: Vec<usize> = (0..=rng.below(2)).map(|_| 1 + rng.below(23)).collect();
        let shape = [&lead[..], &normalized].concat();
        let width: usize = normalized.iter().product();
        for dtype in FLOATS {
            let x = rng.tensor(&shape, dtype, (-3.0, 5.0));
            let w = (rng.below(2) == 0).then(|| rng.tensor(&normalized, dtype, (0.5, 2.0)));
            let b = (rng.below(2) == 0).then(|| rng.tensor(&normalized, dtype, (-1.0, 1.0)));
            let or = |t: &Option<Tensor>, d| t.as_ref().map_or(vec![d; width], values);
            let expected = plain(&values(&x), width, &or(&w, 1.0), &or(&b, 0.0), eps);
            let y = x
                .layer_norm(normalized.as_slice(), w.as_ref(), b.as_ref(), eps)
                .unwrap();
            let what = format!("{dtype} {} {}", show(&lead), show(&normalized));
            let tol = tolerance(dtype, 400.0);
            assert_close(&y.out, &shape, &expected, tol, &what);
            assert_eq!(y.mean.dims(), lead);
            assert_eq!(
                y.rstd.dtype(),
                if dtype == DType::F64 {
                    dtype
                } else {
                    DType::F32
                }
            );
        }
    }
}

#[test]
fn gradients_are_the_central_differences() {
    let mut rng = TestRng::new(42);
    for case in 0..30 {
        // Enough rows for several blocks now and then.
        let rows = if case % 10 == 0 {
            150
        } else {
            1 + rng.below(5)
        };
        let width = 2 + rng.below(if rows > 100 { 3 } else { 40 });
        let x = rng.tensor(&[rows, width], DType::F64, (-1.0, 1.0));
        let w = rng.tensor(&[width], DType::F64, (0.5, 2.0));
        let b = rng.tensor(&[width], DType::F64, (-1.0, 1.0));
        let grad = rng.tensor(&[rows, width], DType::F64, (-1.0, 1.0));
        let inputs = [x.clone(), w.clone(), b];
        // A large eps keeps rows of two elements away from the steep part.
        let eps = 0.1;
        let f = |t: &[Tensor]| {
            t[0].layer_norm([width], Some(&t[1]), Some(&t[2]), eps)
                .unwrap()
                .out
        };
        let y = x
            .layer_norm([width], Some(&w), Some(&inputs[2]), eps)
            .unwrap();
        let g = grad
            .layer_norm_backward(&x, [width], Some(&w), &y.mean, &y.rstd)
            .unwrap();
        assert_gradient(f, &inputs, 0, &grad, &g.input, "input");
        assert_gradient(f, &inputs, 1, &grad, &g.weight.unwrap(), "weight");
        assert_gradient(f, &inputs, 2, &grad, &g.bias.unwrap(), "bias");
        let f = |t: &[Tensor]| t[0].layer_norm([width], None, None, eps).unwrap().out;
        let g = grad
            .layer_norm_backward(&x, [width], None, &y.mean, &y.rstd)
            .unwrap();
        assert_gradient(f, &inputs, 0, &grad, &g.input, "input, no weight");
        assert!(g.weight.is_none() && g.bias.is_none());
    }
}

#[test]
fn small_types_agree_with_f64() {
    let mut rng = TestRng::new(43);
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let of = |t: &Tensor| tensor_of(&values(t), t.dims(), DType::F64);
        let x = rng.tensor(&[70, 33], dtype, (-1.0, 1.0));
        let w = rng.tensor(&[33], dtype, (0.5, 2.0));
        let grad = rng.tensor(&[70, 33], dtype, (-1.0, 1.0));
        let backward = |x: &Tensor, w: &Tensor, grad: &Tensor| {
            let y = x.layer_norm([33], Some(w), None, EPS).unwrap();
            let g = grad
                .layer_norm_backward(x, [33], Some(w), &y.mean, &y.rstd)
                .unwrap();
            [g.input, g.weight.unwrap(), g.bias.unwrap()]
        };
        let exact = backward(&of(&x), &of(&w), &of(&grad));
        for (a, e) in backward(&x, &w, &grad).iter().zip(&exact) {
            assert_eq!(a.dtype(), dtype);
            assert_close(a, e.dims(), &values(e), tolerance(dtype, 256.0), "backward");
        }
    }
}

#[test]
fn a_mean_far_from_zero_costs_no_digits() {
    let x = tensor_of(
        &[10_000.0, 10_001.0, 10_002.0, 10_003.0],
        &[1, 4],
        DType::F32,
    );
    let y = x.layer_norm([4], None, None, 0.0).unwrap();
    let s = 1.25f64.sqrt();
    assert_close(
        &y.out,
        &[1, 4],
        &[-1.5 / s, -0.5 / s, 0.5 / s, 1.5 / s],
        1e-6,
        "shifted",
    );
}

/// `torch.nn.functional.layer_norm(x, (3,), w, b)` and the gradients of
/// `(y * [[1, 2, 3], [4, 5, 6]]).sum()`, by PyTorch 2.15 in `float64`.
#[test]
fn layer_norm_gives_pytorchs_values() {
    let x = tensor_of(&[0.5, -1.0, 2.0, 1.5, 0.25, -0.75], &[2, 3], DType::F64);
    let w = tensor_of(&[0.5, 2.0, 1.25], &[3], DType::F64);
    let b = tensor_of(&[0.1, -0.2, 0.3], &[3], DType::F64);
    let y = x.layer_norm([3], Some(&w), Some(&b), EPS).unwrap();
    assert_close(&y.out, &[2, 3], &GOLDEN[0], 1e-14, "out");
    let grad = tensor_of(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3], DType::F64);
    let g = grad
        .layer_norm_backward(&x, [3], Some(&w), &y.mean, &y.rstd)
        .unwrap();
    assert_close(&g.input, &[2, 3], &GOLDEN[1], 1e-13, "input");
    assert_close(&g.weight.unwrap(), &[3], &GOLDEN[2][..3], 1e-14, "weight");
    assert_close(&g.bias.unwrap(), &[3], &GOLDEN[2][3..], 1e-14, "bias");
}

#[rustfmt::skip]
const GOLDEN: [[f64; 6]; 3] = [
    [0.1, -2.6494815778581935, 1.830925986161371, 0.7337464821654925, -0.3810704234758551, -1.1711971907413223],
    [-1.8371111833936453, 0.9185562721038356, 0.9185549112898088, -1.5851472924440717, 3.566496454321241, -1.9813491618771684],
    [5.0699718573239405, -2.902157636547831, -3.3875241487710577, 5.0, 7.0, 9.0],
];

#[test]
fn threads_do_not_change_a_bit() {
    let mut rng = TestRng::new(44);
    let x = rng.tensor(&[999, 65], DType::F32, (-1.0, 1.0));
    let w = rng.tensor(&[65], DType::F32, (-1.0, 1.0));
    let run = || {
        let y = x.layer_norm([65], Some(&w), None, EPS).unwrap();
        let g = y
            .out
            .layer_norm_backward(&x, [65], Some(&w), &y.mean, &y.rstd)
            .unwrap();
        [y.out, y.mean, g.input, g.weight.unwrap(), g.bias.unwrap()]
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
    let x = Tensor::zeros([2, 3], DType::F32, device()).unwrap();
    let w = Tensor::zeros([2], DType::F32, device()).unwrap();
    let e = x.layer_norm([2], None, None, EPS).unwrap_err();
    assert!(
        e.to_string()
            .starts_with("layer_norm: shapes [2, 3] and [2] do not fit"),
        "{e}"
    );
    assert!(matches!(
        x.layer_norm([3], Some(&w), None, EPS),
        Err(Error::ShapeMismatch {
            op: "layer_norm",
            ..
        })
    ));
    assert!(matches!(
        x.layer_norm((), None, None, EPS),
        Err(Error::InvalidShape { .. })
    ));
    let far = Tensor::zeros([3], DType::F32, Device::cpu(1)).unwrap();
    assert!(matches!(
        x.layer_norm([3], None, Some(&far), EPS),
        Err(Error::DeviceMismatch { .. })
    ));
}
