//! Arithmetic with broadcasting against plain loops over `f64`.

use crate::util::*;
use phalanx_tensor::{DType, Device, Error, Result, Tensor, cpu};
use proptest::prelude::*;

type Row = (
    &'static str,
    fn(&Tensor, &Tensor) -> Result<Tensor>,
    fn(f64, f64) -> f64,
);

const ROWS: [Row; 7] = [
    ("add", Tensor::add, |a, b| a + b),
    ("sub", Tensor::sub, |a, b| a - b),
    ("mul", Tensor::mul, |a, b| a * b),
    ("div", Tensor::div, |a, b| a / b),
    ("maximum", Tensor::maximum, f64::max),
    ("minimum", Tensor::minimum, f64::min),
    ("pow", Tensor::pow, f64::powf),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn floats_broadcast_as_a_plain_loop_does(seed: u64) {
        let mut rng = TestRng::new(seed);
        // Now and then rows are long enough for the path that goes row by row.
        let mut shape = rng.shape(4, 5);
        if let Some(last) = shape.last_mut() && rng.below(3) == 0 {
            *last = 40 + rng.below(1500);
        }
        let (left, right) = if rng.below(2) == 0 {
            (shape.clone(), rng.shape_below(&shape))
        } else {
            (rng.shape_below(&shape), shape.clone())
        };
        for dtype in FLOATS {
            let a = rng.tensor(&left, dtype, (0.5, 3.0));
            let b = rng.tensor(&right, dtype, (0.5, 3.0));
            let (x, y) = (broadcast(&values(&a), &left, &shape), broadcast(&values(&b), &right, &shape));
            for (name, op, reference) in ROWS {
                let expected: Vec<f64> = x.iter().zip(&y).map(|(x, y)| reference(*x, *y)).collect();
                let what = format!("{name} of {dtype} {} and {}", show(&left), show(&right));
                assert_close(&op(&a, &b).unwrap(), &shape, &expected, tolerance(dtype, 2.0), &what);
            }
        }
    }

    #[test]
    fn integers_wrap_and_broadcast(seed: u64) {
        let mut rng = TestRng::new(seed);
        let shape = rng.shape(3, 6);
        let below = rng.shape_below(&shape);
        for dtype in [DType::I64, DType::I32, DType::U8] {
            let a = rng.tensor(&shape, dtype, (0.0, 256.0));
            let b = rng.tensor(&below, dtype, (0.0, 256.0));
            let y = broadcast(&values(&b), &below, &shape);
            for (name, op, reference) in ROWS {
                if matches!(name, "div" | "pow") {
                    let e = op(&a, &b).unwrap_err();
                    prop_assert_eq!(e, Error::UnsupportedDType { op: name, dtype });
                    continue;
                }
                let wrap = |v: f64| if dtype == DType::U8 { v.rem_euclid(256.0) } else { v };
                let expected: Vec<f64> =
                    values(&a).iter().zip(&y).map(|(x, y)| wrap(reference(*x, *y))).collect();
                assert_close(&op(&a, &b).unwrap(), &shape, &expected, 0.0, name);
            }
        }
    }

    #[test]
    fn numbers_act_on_every_element(seed: u64) {
        let mut rng = TestRng::new(seed);
        let shape = rng.shape(4, 6);
        type Scalar = fn(&Tensor, f64) -> Result<Tensor>;
        let ops: [Scalar; 7] = [
            Tensor::add_scalar, Tensor::sub_scalar, Tensor::mul_scalar, Tensor::div_scalar,
            Tensor::maximum_scalar, Tensor::minimum_scalar, Tensor::pow_scalar,
        ];
        for dtype in FLOATS {
            let x = rng.tensor(&shape, dtype, (0.5, 3.0));
            for (op, (name, _, reference)) in ops.iter().zip(ROWS) {
                for c in [2.0, 3.0, 0.75] {
                    let expected: Vec<f64> =
                        values(&x).iter().map(|x| reference(*x, c)).collect();
                    let tol = tolerance(dtype, 2.0);
                    assert_close(&op(&x, c).unwrap(), &shape, &expected, tol, name);
                }
            }
        }
    }

    #[test]
    fn add_into_is_add(seed: u64) {
        let mut rng = TestRng::new(seed);
        let shape = rng.shape(3, 40);
        let below = rng.shape_below(&shape);
        for dtype in DType::ALL.into_iter().filter(|dtype| *dtype != DType::Bool) {
            let a = rng.tensor(&shape, dtype, (0.0, 100.0));
            let b = rng.tensor(&below, dtype, (0.0, 100.0));
            let expected = a.add(&b).unwrap();
            let unique = tensor_of(&values(&a), &shape, dtype);
            let at = unique.address();
            let sum = unique.add_into(&b).unwrap();
            assert_same(&sum, &expected, "in place");
            prop_assert_eq!(sum.address(), at, "no other buffer");
            let before = values(&a);
            assert_same(&a.clone().add_into(&b).unwrap(), &expected, "shared");
            prop_assert_eq!(values(&a), before, "a shared operand is left alone");
        }
    }

    #[test]
    fn half_types_add_up_in_f32(seed: u64) {
        let mut rng = TestRng::new(seed);
        let shape = rng.shape(3, 40);
        let below = rng.shape_below(&shape);
        for dtype in [DType::BF16, DType::F16] {
            let wide = |t: &Tensor| t.cast(DType::F32).unwrap();
            let a = rng.tensor(&shape, dtype, (0.0, 100.0));
            let b = rng.tensor(&below, dtype, (0.0, 100.0));
            let sum = a.add_widened(&b).unwrap();
            assert_same(&sum, &wide(&a).add(&wide(&b)).unwrap(), "two halves");
            let expected = sum.add(&wide(&b)).unwrap();
            let shared = sum.clone();
            assert_same(&sum.add_into(&b).unwrap(), &expected, "shared");
            let at = shared.address();
            let sum = shared.add_into(&b).unwrap();
            assert_same(&sum, &expected, "in place");
            prop_assert_eq!(sum.address(), at, "no other buffer");
            let view = rng.tensor(&shape, DType::F32, (0.0, 100.0));
            let expected = view.add(&wide(&b)).unwrap();
            assert_same(&view.add_into(&b).unwrap(), &expected, "a view");
        }
        for dtype in [DType::F32, DType::F64, DType::I64, DType::I32, DType::U8] {
            let a = rng.tensor(&shape, dtype, (0.0, 100.0));
            let b = rng.tensor(&below, dtype, (0.0, 100.0));
            assert_same(&a.add_widened(&b).unwrap(), &a.add(&b).unwrap(), "other types");
        }
        let [narrow, f32s, f64s] = [DType::BF16, DType::F32, DType::F64].map(|dtype| rng.tensor(&shape, dtype, (0.0, 1.0)));
        prop_assert!(narrow.clone().add_into(&f32s).is_err(), "a sum does not lose digits");
        prop_assert!(f64s.add_into(&narrow).is_err());
        prop_assert!(narrow.add_widened(&f32s).is_err());
    }
}

#[test]
fn large_operands_of_every_layout_have_the_same_bits_whatever_the_threads() {
    let mut rng = TestRng::new(5);
    let a = rng.tensor(&[400, 301], DType::F32, (0.5, 2.0));
    let others: [(&str, Vec<usize>); 6] = [
        ("whole", vec![400, 301]),
        ("row", vec![301]),
        ("column", vec![400, 1]),
        ("scalar", vec![]),
        ("short rows", vec![400, 301]),
        ("transposed", vec![400, 301]),
    ];
    for (name, shape) in others {
        let mut a = a.contiguous().unwrap();
        let mut b = rng.tensor(&shape, DType::F32, (0.5, 2.0));
        match name {
            "short rows" => {
                a = a.reshape([400 * 43, 7]).unwrap();
                b = rng.tensor(&[7], DType::F32, (0.5, 2.0));
            }
            "transposed" => a = rng.tensor(&[301, 400], DType::F32, (0.5, 2.0)).t().unwrap(),
            _ => {}
        }
        let alone = cpu::with_threads(1, || a.mul(&b).unwrap());
        let x = values(&a);
        let y = broadcast(&values(&b), b.dims(), a.dims());
        let expected: Vec<f64> = x.iter().zip(&y).map(|(x, y)| x * y).collect();
        assert_close(
            &alone,
            a.dims(),
            &expected,
            tolerance(DType::F32, 1.0),
            name,
        );
        for threads in [2, 3, 5] {
            assert_same(
                &cpu::with_threads(threads, || a.mul(&b).unwrap()),
                &alone,
                name,
            );
        }
    }
}

#[test]
fn nan_propagates_through_maximum_and_minimum() {
    let nan = f64::NAN;
    for dtype in FLOATS {
        let a = tensor_of(&[nan, 1.0, nan, 2.0], &[4], dtype);
        let b = tensor_of(&[1.0, nan, nan, 3.0], &[4], dtype);
        let (hi, lo) = (a.maximum(&b).unwrap(), a.minimum(&b).unwrap());
        assert_close(&hi, &[4], &[nan, nan, nan, 3.0], 0.0, "maximum");
        assert_close(&lo, &[4], &[nan, nan, nan, 2.0], 0.0, "minimum");
        assert_close(
            &a.clamp(0.0, 1.5).unwrap(),
            &[4],
            &[nan, 1.0, nan, 1.5],
            0.0,
            "clamp",
        );
    }
}

#[test]
fn errors_name_the_operation_and_both_sides() {
    let t = |shape: &[usize], dtype, device| Tensor::zeros(shape, dtype, device).unwrap();
    let a = t(&[2, 3], DType::F32, device());
    let message = a
        .add(&t(&[4], DType::F32, device()))
        .unwrap_err()
        .to_string();
    assert!(message.contains("add: shapes [2, 3] and [4]"), "{message}");
    let message = a
        .mul(&t(&[3], DType::F64, device()))
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("mul: element types f32 and f64"),
        "{message}"
    );
    let message = a
        .sub(&t(&[3], DType::F32, Device::cpu(1)))
        .unwrap_err()
        .to_string();
    assert!(
        message.contains(&format!("sub: operands are on {} and on cpu:1", device())),
        "{message}"
    );
    let message = t(&[3], DType::F32, device())
        .add_into(&a)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("add_into: shapes [3] and [2, 3]"),
        "{message}"
    );
    let labels = t(&[2], DType::I64, device());
    let message = labels.add_scalar(0.5).unwrap_err().to_string();
    assert!(message.contains("add_scalar: 0.5 is no i64"), "{message}");
    assert_eq!(
        labels.add_scalar(2.0).unwrap().to_vec::<i64>().unwrap(),
        [2, 2]
    );
}

#[test]
#[cfg_attr(phalanx_asan, ignore = "AddressSanitizer runs without the pool")]
fn steady_state_asks_the_system_for_nothing() {
    let device = alone(83);
    let a = Tensor::ones([64, 100], DType::F32, device).unwrap();
    let bias = Tensor::ones([100], DType::F32, device).unwrap();
    let step = || {
        a.add(&bias)
            .unwrap()
            .mul_scalar(0.5)
            .unwrap()
            .relu()
            .unwrap()
    };
    drop(step());
    let before = device.memory().unwrap().system_allocations;
    for _ in 0..10 {
        drop(step());
    }
    assert_eq!(device.memory().unwrap().system_allocations, before);
}
