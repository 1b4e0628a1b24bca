//! Unary functions against `f64`, their derivatives against central differences.

use crate::util::*;
use phalanx_tensor::{DType, Device, Error, GeluKind, Result, Tensor, unary_table};
use proptest::prelude::*;

type Function = Box<dyn Fn(&Tensor) -> Result<Tensor>>;
type Gradient = Box<dyn Fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>>;

/// A row of the tensor's table, with one value of its argument.
struct Row {
    name: &'static str,
    op: Function,
    /// The gradient of the argument, from that of the result, the argument and the result.
    gradient: Gradient,
    reference: Box<dyn Fn(f64) -> f64>,
    /// Roundings of `f32` allowed, relative to max(1, |result|).
    roundings: f64,
    /// Where the derivative is checked.
    range: (f64, f64),
}

macro_rules! table {
    (|$vx:ident, $vout:ident, $vg:ident| $({
        $Name:ident $name:ident ($($arg:ident: $ty:ty)?) [$values:expr] [$range:expr] [$saved:tt $gradient:expr]
        [$tx:ident [$reference:expr] $roundings:literal] $($rest:tt)*
    })*) => {
        let mut rows = Vec::new();
        $(for ($($arg,)?) in $values {
            rows.push(Row {
                name: stringify!($name),
                op: Box::new(move |x| x.$name($($arg)?)),
                gradient: Box::new(move |$vg, $vx, $vout| {
                    let _ = ($vx, $vout);
                    $gradient
                }),
                reference: Box::new(move |$tx: f64| $reference),
                roundings: $roundings,
                range: $range,
            });
        })*
        rows
    };
}

fn rows() -> Vec<Row> {
    unary_table! { table }
}

impl Row {
    /// Where values are checked: wider than for derivatives.
    fn domain(&self) -> (f64, f64) {
        match self.range.0 > 0.0 {
            true => (0.01, 8.0),
            false => (-8.0, 8.0),
        }
    }
}

/// The tolerance: for `f64`, what the midpoint rule of GELU leaves.
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
                let x = rng.tensor(&shape, dtype, row.domain());
                let expected: Vec<f64> = values(&x).into_iter().map(&row.reference).collect();
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
        for row in rows() {
            // Away from 0, where some have a kink.
            let magnitude = rng.tensor(&shape, DType::F64, (0.2, row.range.1));
            let low = if row.range.0 > 0.0 { 1.0 } else { -1.0 };
            let signs: Vec<f64> =
                (0..magnitude.numel()).map(|_| [low, 1.0][rng.below(2)]).collect();
            let x = magnitude.mul(&tensor_of(&signs, &shape, DType::F64)).unwrap();
            let grad = rng.tensor(x.dims(), DType::F64, (-1.0, 1.0));
            let y = (row.op)(&x).unwrap();
            let analytic = (row.gradient)(&grad, &x, &y).unwrap();
            let f = |t: &[Tensor]| (row.op)(&t[0]).unwrap();
            assert_gradient(f, &[x], 0, &grad, &analytic, row.name);
        }
    }
}

#[test]
fn gradients_in_low_precision_follow_f64() {
    let mut rng = TestRng::new(7);
    for row in rows() {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let x = rng.tensor(&[13, 50], dtype, row.range);
            let grad = rng.tensor(&[13, 50], dtype, (-1.0, 1.0));
            let wide = |t: &Tensor| t.cast(DType::F64).unwrap();
            // Both from the same rounded result, where one is saved.
            let y = (row.op)(&x).unwrap();
            let expected = (row.gradient)(&wide(&grad), &wide(&x), &wide(&y)).unwrap();
            let actual = (row.gradient)(&grad, &x, &y).unwrap();
            let tol = tolerance(dtype, 16.0);
            assert_close(&actual, &[13, 50], &values(&expected), tol, row.name);
        }
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
    let x = Tensor::from_vec(vec![-3i64, 0, i64::MIN], [3], device()).unwrap();
    assert_eq!(x.neg().unwrap().to_vec::<i64>().unwrap(), [3, 0, i64::MIN]);
    assert_eq!(x.sign().unwrap().to_vec::<i64>().unwrap(), [-1, 0, -1]);
    assert_eq!(x.relu().unwrap().to_vec::<i64>().unwrap(), [0, 0, 0]);
    let x = Tensor::from_vec(vec![-3i32, 0, i32::MIN], [3], device()).unwrap();
    assert_eq!(x.neg().unwrap().to_vec::<i32>().unwrap(), [3, 0, i32::MIN]);
    assert_eq!(x.square().unwrap().to_vec::<i32>().unwrap(), [9, 0, 0]);
    let e = x.cast(DType::I64).unwrap().exp().unwrap_err();
    assert_eq!(
        e,
        Error::UnsupportedDType {
            op: "exp",
            dtype: DType::I64
        }
    );
    let mask = Tensor::zeros([2], DType::U8, device()).unwrap();
    assert_eq!(
        mask.neg().unwrap_err().to_string(),
        "neg: not defined for elements of type u8"
    );
    let mask = mask.cast(DType::Bool).unwrap();
    for (op, result) in [
        ("neg", mask.neg()),
        ("exp", mask.exp()),
        ("add", mask.add(&mask)),
        ("maximum", mask.maximum(&mask)),
        ("mul_scalar", mask.mul_scalar(2.0)),
        ("clamp", mask.clamp(0.0, 1.0)),
        ("add_into", mask.clone().add_into(&mask)),
        (
            "add_into",
            mask.pad(&[(0, 0)], 0.0).unwrap().add_into(&mask),
        ),
        ("add_widened", mask.add_widened(&mask)),
        ("mean_all", mask.mean_all()),
    ] {
        let dtype = DType::Bool;
        assert_eq!(result.unwrap_err(), Error::UnsupportedDType { op, dtype });
    }
}

#[test]
fn backward_errors_name_operation_and_shapes() {
    let grad = Tensor::zeros([2, 3], DType::F32, device()).unwrap();
    let out = Tensor::zeros([3, 2], DType::F32, device()).unwrap();
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
