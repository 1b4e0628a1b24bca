//! Unary functions against `f64`, their derivatives against central differences.

use crate::util::*;
use phalanx_tensor::{DType, Device, Error, GeluKind, Result, Tensor};
use proptest::prelude::*;

type Op = fn(&Tensor) -> Result<Tensor>;
type Reference = fn(f64) -> f64;
/// Name, function, and its backward operation of gradient, argument and result.
type Slope = (
    &'static str,
    Op,
    fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
);

struct Row {
    name: &'static str,
    op: Op,
    reference: Reference,
    range: (f64, f64),
    /// Roundings of `f32` allowed, relative to max(1, |result|).
    roundings: f64,
}

fn row(name: &'static str, op: Op, reference: Reference, range: (f64, f64), roundings: f64) -> Row {
    Row {
        name,
        op,
        reference,
        range,
        roundings,
    }
}

fn rows() -> Vec<Row> {
    let all = (-8.0, 8.0);
    let positive = (0.01, 8.0);
    vec![
        row("neg", Tensor::neg, |x| -x, all, 0.0),
        row("abs", Tensor::abs, f64::abs, all, 0.0),
        row("sign", Tensor::sign, f64::signum, all, 0.0),
        row("square", Tensor::square, |x| x * x, all, 1.0),
        row("sqrt", Tensor::sqrt, f64::sqrt, positive, 1.0),
        row("rsqrt", Tensor::rsqrt, |x| 1.0 / x.sqrt(), positive, 3.0),
        row("recip", Tensor::recip, |x| 1.0 / x, positive, 1.0),
        row("exp", Tensor::exp, f64::exp, all, 2.0),
        row("log", Tensor::log, f64::ln, positive, 2.0),
        row("sin", Tensor::sin, f64::sin, all, 1.5),
        row("cos", Tensor::cos, f64::cos, all, 1.5),
        row("tanh", Tensor::tanh, f64::tanh, all, 2.0),
        row(
            "sigmoid",
            Tensor::sigmoid,
            |x| 1.0 / (1.0 + (-x).exp()),
            all,
            2.0,
        ),
        row("relu", Tensor::relu, |x| x.max(0.0), all, 0.0),
        row(
            "leaky_relu",
            |t| t.leaky_relu(0.1),
            |x| if x > 0.0 { x } else { 0.1 * x },
            all,
            1.0,
        ),
        row("gelu", |t| t.gelu(GeluKind::Exact), gelu, all, 6.0),
        row(
            "gelu_tanh",
            |t| t.gelu(GeluKind::Tanh),
            gelu_tanh,
            all,
            12.0,
        ),
        row("silu", Tensor::silu, |x| x / (1.0 + (-x).exp()), all, 3.0),
        row("softplus", Tensor::softplus, |x| x.exp().ln_1p(), all, 3.0),
    ]
}

/// x Φ(x), by the midpoint rule on the density: no error function in sight.
fn gelu(x: f64) -> f64 {
    let steps = 20_000;
    let h = x / f64::from(steps);
    let density = |t: f64| (-0.5 * t * t).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let area: f64 = (0..steps).map(|i| density((f64::from(i) + 0.5) * h)).sum();
    x * (0.5 + area * h)
}

fn gelu_tanh(x: f64) -> f64 {
    let scale = (2.0 / std::f64::consts::PI).sqrt();
    0.5 * x * (1.0 + (scale * (x + 0.044715 * x.powi(3))).tanh())
}

/// The tolerance: for `f64`, what the midpoint rule of [`gelu`] leaves.
fn allowed(row: &Row, dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 1e-8,
        DType::F32 => row.roundings * rounding(DType::F32),
        _ => tolerance(dtype, row.roundings),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn values_are_those_of_f64_in_every_type_and_view(seed: u64) {
        let mut rng = TestRng::new(seed);
        for row in rows() {
            let shape = rng.shape(4, 6);
            for dtype in FLOATS {
                let x = rng.tensor(&shape, dtype, row.range);
                let expected: Vec<f64> = values(&x).into_iter().map(row.reference).collect();
                let what = format!("{} of {dtype} {}", row.name, show(&shape));
                let y = (row.op)(&x).unwrap();
                prop_assert_eq!(y.dtype(), dtype);
                assert_close(&y, &shape, &expected, allowed(&row, dtype), &what);
            }
        }
    }

    #[test]
    fn derivatives_are_central_differences(seed: u64) {
        let mut rng = TestRng::new(seed);
        let shape = rng.shape(3, 4);
        let smooth: [Slope; 14] = [
            ("square", Tensor::square, |g, x, _| g.square_backward(x)),
            ("sqrt", Tensor::sqrt, |g, _, y| g.sqrt_backward(y)),
            ("rsqrt", Tensor::rsqrt, |g, _, y| g.rsqrt_backward(y)),
            ("recip", Tensor::recip, |g, _, y| g.recip_backward(y)),
            ("sin", Tensor::sin, |g, x, _| g.sin_backward(x)),
            ("cos", Tensor::cos, |g, x, _| g.cos_backward(x)),
            ("tanh", Tensor::tanh, |g, _, y| g.tanh_backward(y)),
            ("sigmoid", Tensor::sigmoid, |g, _, y| g.sigmoid_backward(y)),
            ("gelu", |t| t.gelu(GeluKind::Exact), |g, x, _| g.gelu_backward(x, GeluKind::Exact)),
            ("gelu tanh", |t| t.gelu(GeluKind::Tanh), |g, x, _| g.gelu_backward(x, GeluKind::Tanh)),
            ("silu", Tensor::silu, |g, x, _| g.silu_backward(x)),
            ("softplus", Tensor::softplus, |g, x, _| g.softplus_backward(x)),
            ("exp", Tensor::exp, |g, _, y| g.mul(y)),
            ("log", Tensor::log, |g, x, _| g.div(x)),
        ];
        for (name, forward, backward) in smooth {
            // Some functions need positive arguments; all have them here, two signs below.
            let x = rng.tensor(&shape, DType::F64, (0.2, 3.0));
            check_slope(&mut rng, name, x, forward, backward);
        }
        let kinked: [Slope; 9] = [
            ("abs", Tensor::abs, |g, x, _| g.abs_backward(x)),
            ("relu", Tensor::relu, |g, _, y| g.relu_backward(y)),
            ("leaky_relu", |t| t.leaky_relu(0.1), |g, x, _| g.leaky_relu_backward(x, 0.1)),
            smooth[6], smooth[7], smooth[8], smooth[9], smooth[10], smooth[11],
        ];
        for (name, forward, backward) in kinked {
            let magnitude = rng.tensor(&shape, DType::F64, (0.2, 3.0));
            let signs: Vec<f64> =
                (0..magnitude.numel()).map(|_| [-1.0, 1.0][rng.below(2)]).collect();
            let x = magnitude.mul(&tensor_of(&signs, &shape, DType::F64)).unwrap();
            check_slope(&mut rng, name, x, forward, backward);
        }
    }
}

fn check_slope(
    rng: &mut TestRng,
    name: &str,
    x: Tensor,
    forward: Op,
    backward: fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
) {
    let grad = rng.tensor(x.dims(), DType::F64, (-1.0, 1.0));
    let y = forward(&x).unwrap();
    let analytic = backward(&grad, &x, &y).unwrap();
    assert_gradient(|t| forward(&t[0]).unwrap(), &[x], 0, &grad, &analytic, name);
}

#[test]
fn backward_in_low_precision_follows_f64() {
    let mut rng = TestRng::new(7);
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        let x = rng.tensor(&[13, 50], dtype, (-4.0, 4.0));
        let grad = rng.tensor(&[13, 50], dtype, (-1.0, 1.0));
        let wide = |t: &Tensor| t.cast(DType::F64).unwrap();
        for kind in [GeluKind::Exact, GeluKind::Tanh] {
            let expected = wide(&grad).gelu_backward(&wide(&x), kind).unwrap();
            let actual = grad.gelu_backward(&x, kind).unwrap();
            let tol = tolerance(dtype, 16.0);
            assert_close(&actual, &[13, 50], &values(&expected), tol, "gelu_backward");
        }
        let expected = wide(&grad).silu_backward(&wide(&x)).unwrap();
        let actual = grad.silu_backward(&x).unwrap();
        assert_close(
            &actual,
            &[13, 50],
            &values(&expected),
            tolerance(dtype, 16.0),
            "silu",
        );
    }
}

#[test]
fn edges_are_those_of_ieee() {
    let (inf, nan) = (f64::INFINITY, f64::NAN);
    let edge = [0.0, -0.0, inf, -inf, nan, 1e30, -1e30];
    for dtype in [DType::F32, DType::F64] {
        let x = tensor_of(&edge, &[7], dtype);
        let is = |y: Result<Tensor>, expected: [f64; 7], what: &str| {
            assert_close(&y.unwrap(), &[7], &expected, 1e-6, what);
        };
        is(x.exp(), [1.0, 1.0, inf, 0.0, nan, inf, 0.0], "exp");
        is(x.tanh(), [0.0, 0.0, 1.0, -1.0, nan, 1.0, -1.0], "tanh");
        is(x.sigmoid(), [0.5, 0.5, 1.0, 0.0, nan, 1.0, 0.0], "sigmoid");
        is(x.relu(), [0.0, 0.0, inf, 0.0, nan, 1e30, 0.0], "relu");
        is(x.sign(), [0.0, 0.0, 1.0, -1.0, nan, 1.0, -1.0], "sign");
        is(
            x.softplus(),
            [2f64.ln(), 2f64.ln(), inf, 0.0, nan, 1e30, 0.0],
            "softplus",
        );
        is(
            x.log(),
            [-inf, -inf, inf, nan, nan, 1e30f64.ln(), nan],
            "log",
        );
    }
}

#[test]
fn large_tensors_have_the_same_bits_whatever_the_threads() {
    let mut rng = TestRng::new(3);
    let x = rng
        .tensor(&[300, 517], DType::F32, (-8.0, 8.0))
        .t()
        .unwrap();
    let y = phalanx_tensor::cpu::with_threads(1, || x.gelu(GeluKind::Exact).unwrap());
    for threads in [2, 3, 7] {
        let z = phalanx_tensor::cpu::with_threads(threads, || x.gelu(GeluKind::Exact).unwrap());
        assert_same(&y, &z, "gelu");
    }
    assert_same(
        &y,
        &x.contiguous().unwrap().gelu(GeluKind::Exact).unwrap(),
        "layout",
    );
}

#[test]
fn integers_have_what_makes_sense() {
    let x = Tensor::from_vec(vec![-3i64, 0, i64::MIN], [3], Device::cpu(0)).unwrap();
    assert_eq!(x.neg().unwrap().to_vec::<i64>().unwrap(), [3, 0, i64::MIN]);
    assert_eq!(x.sign().unwrap().to_vec::<i64>().unwrap(), [-1, 0, -1]);
    assert_eq!(x.relu().unwrap().to_vec::<i64>().unwrap(), [0, 0, 0]);
    let e = x.exp().unwrap_err();
    assert_eq!(
        e,
        Error::UnsupportedDType {
            op: "exp",
            dtype: DType::I64
        }
    );
    let mask = Tensor::zeros([2], DType::U8, Device::cpu(0)).unwrap();
    assert_eq!(
        mask.neg().unwrap_err().to_string(),
        "neg: not defined for elements of type u8"
    );
}

#[test]
fn backward_errors_name_operation_and_shapes() {
    let grad = Tensor::zeros([2, 3], DType::F32, Device::cpu(0)).unwrap();
    let out = Tensor::zeros([3, 2], DType::F32, Device::cpu(0)).unwrap();
    let message = grad.relu_backward(&out).unwrap_err().to_string();
    assert!(
        message.contains("relu_backward: shapes [2, 3] and [3, 2]"),
        "{message}"
    );
    let wrong = out.cast(DType::F64).unwrap();
    assert!(matches!(
        grad.tanh_backward(&wrong).unwrap_err(),
        Error::DTypeMismatch {
            op: "tanh_backward",
            lhs: DType::F32,
            rhs: DType::F64
        }
    ));
    let far = Tensor::zeros([2, 3], DType::F32, Device::cpu(1)).unwrap();
    assert!(matches!(
        grad.silu_backward(&far).unwrap_err(),
        Error::DeviceMismatch {
            op: "silu_backward",
            ..
        }
    ));
}
