//! Conversions between all pairs of element types.

use crate::util::*;
use phalanx_tensor::{DType, Device, Tensor, bf16, f16};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_pair_rounds_once(seed: u64) {
        let mut rng = TestRng::new(seed);
        let mut shape = rng.shape(3, 8);
        if let Some(last) = shape.last_mut() && rng.below(3) == 0 {
            *last = 40 + rng.below(1200);
        }
        for from in DType::ALL {
            let x = rng.tensor(&shape, from, (-300.0, 300.0));
            for to in DType::ALL {
                // `from_f64` of the test's reference rounds once from the exact value.
                // Between integers it is the language's `as`: the low byte.
                let low_byte = |v: f64| if !from.is_float() && to == DType::U8 { v.rem_euclid(256.0) } else { v };
                let exact: Vec<f64> = values(&x).into_iter().map(low_byte).collect();
                let expected = values(&tensor_of(&exact, &shape, to));
                let y = x.cast(to).unwrap();
                prop_assert_eq!(y.dtype(), to);
                assert_close(&y, &shape, &expected, 0.0, &format!("{from} to {to}"));
            }
        }
    }
}

#[test]
fn every_half_value_widens_exactly_and_comes_back() {
    let bits: Vec<u16> = (0..=u16::MAX).collect();
    let halves: Vec<f16> = bits.iter().map(|&b| f16::from_bits(b)).collect();
    let brains: Vec<bf16> = bits.iter().map(|&b| bf16::from_bits(b)).collect();
    let f = Tensor::from_vec(halves, [1 << 16], device()).unwrap();
    let b = Tensor::from_vec(brains, [1 << 16], device()).unwrap();
    for t in [f, b] {
        for wide in [DType::F32, DType::F64] {
            let w = t.cast(wide).unwrap();
            assert_close(&w, &[1 << 16], &values(&t), 0.0, "widened");
            assert_close(
                &w.cast(t.dtype()).unwrap(),
                &[1 << 16],
                &values(&t),
                0.0,
                "and back",
            );
        }
    }
}

#[test]
fn ties_round_to_even_and_excess_overflows() {
    let x = [
        1.0 + 2f64.powi(-11),
        1.0 + 3.0 * 2f64.powi(-11),
        65519.9,
        65520.0,
        1e-9,
        -0.0,
    ];
    let inf = f64::INFINITY;
    let expected = [1.0, 1.0 + 2f64.powi(-9), 65504.0, inf, 0.0, 0.0];
    for from in [DType::F64, DType::F32] {
        let y = tensor_of(&x, &[6], from).cast(DType::F16).unwrap();
        // 65519.9 is 65519.898 in f32: below the tie in both.
        assert_close(&y, &[6], &expected, 0.0, "f16");
    }
    // Just above a tie of bf16, where rounding to f32 first would make it a tie, and even.
    let above = 1.0 + 2f64.powi(-8) + 2f64.powi(-40);
    let y = tensor_of(&[above], &[1], DType::F64)
        .cast(DType::BF16)
        .unwrap();
    assert_eq!(y.item::<f64>().unwrap(), 1.0 + 2f64.powi(-7));
}

#[test]
fn integers_truncate_and_saturate() {
    let x = [
        -1.9,
        1.9,
        255.9,
        256.0,
        -1e30,
        1e30,
        f64::NAN,
        f64::INFINITY,
    ];
    for from in [DType::F32, DType::F64] {
        let t = tensor_of(&x, &[8], from);
        assert_eq!(
            t.cast(DType::I64).unwrap().to_vec::<i64>().unwrap(),
            [-1, 1, 255, 256, i64::MIN, i64::MAX, 0, i64::MAX]
        );
        assert_eq!(
            t.cast(DType::U8).unwrap().to_vec::<u8>().unwrap(),
            [0, 1, 255, 255, 0, 255, 0, 255]
        );
        assert_eq!(
            t.cast(DType::I32).unwrap().to_vec::<i32>().unwrap(),
            [-1, 1, 255, 256, i32::MIN, i32::MAX, 0, i32::MAX]
        );
    }
    let wide = Tensor::from_vec(vec![-1i64, 300], [2], device()).unwrap();
    // Between integers it is the language's `as`: the low byte.
    assert_eq!(
        wide.cast(DType::U8).unwrap().to_vec::<u8>().unwrap(),
        [255, 44]
    );
    let wide = Tensor::from_vec(vec![-1i64, (1 << 32) + 7], [2], device()).unwrap();
    assert_eq!(
        wide.cast(DType::I32).unwrap().to_vec::<i32>().unwrap(),
        [-1, 7]
    );
    // Just above a tie of the half type, which f32 does not hold.
    let tie = Tensor::from_vec(vec![(1i32 << 30) + (1 << 22) + 1], [1], device()).unwrap();
    assert_eq!(
        tie.cast(DType::BF16).unwrap().item::<f64>().unwrap(),
        f64::from((1 << 30) + (1 << 23))
    );
}

#[test]
fn what_is_not_0_is_true() {
    let truth = [false, false, true, true, true];
    for from in FLOATS {
        // Of f16, the smallest number above 0.
        let t = tensor_of(&[0.0, -0.0, 2f64.powi(-24), f64::NAN, -300.0], &[5], from);
        let y = t.cast(DType::Bool).unwrap();
        assert_eq!(y.to_vec::<bool>().unwrap(), truth, "{from}");
        assert_eq!(bytes(&y), truth.map(u8::from), "{from}");
    }
    let low_bytes_of_0 = Tensor::from_slice(&[0i64, 256, 1 << 32], [3], device()).unwrap();
    let y = low_bytes_of_0.cast(DType::Bool).unwrap();
    assert_eq!(y.to_vec::<bool>().unwrap(), [false, true, true]);
}

#[test]
fn a_scaled_write_is_a_conversion_a_product_and_a_conversion() {
    let mut rng = TestRng::new(3);
    for (from, to) in FLOATS.into_iter().flat_map(|a| FLOATS.map(|b| (a, b))) {
        let x = rng.tensor(&[9, 700], from, (-40.0, 40.0));
        let views = [
            x.clone(),
            x.t().unwrap(),
            x.slice(1, 3..690, 4).unwrap(),
            x.narrow(1, 5, 1).unwrap().broadcast_to([9, 60]).unwrap(),
            x.narrow(0, 4, 0).unwrap(),
        ];
        let wide = match from == DType::F64 || to == DType::F64 {
            true => DType::F64,
            false => DType::F32,
        };
        for (x, factor) in views.iter().flat_map(|x| [(x, 0.3), (x, -2.0)]) {
            let product = x.cast(wide).unwrap().mul_scalar(factor).unwrap();
            let expected = bytes(&product.cast(to).unwrap().contiguous().unwrap());
            let n = x.numel();
            let mut y = Tensor::full([n + 70], 7.0, to, device()).unwrap();
            let place = y.address();
            // One of the two factors is a number of the program, the other is on the device.
            let number = Tensor::scalar(factor, device()).unwrap();
            match factor < 0.0 {
                true => y.write_scaled_at(65, x, &number).unwrap(),
                false => y.write_scaled_at(65, x, factor).unwrap(),
            }
            assert_eq!(y.address(), place);
            let written = y.narrow(0, 65, n).unwrap().contiguous().unwrap();
            let same = bytes(&written) == expected;
            assert!(same, "{from} times {factor} to {to}");
            let rest = [y.narrow(0, 0, 65).unwrap(), y.narrow(0, 65 + n, 5).unwrap()];
            assert!(rest.iter().flat_map(values).all(|v| v == 7.0));
        }
    }
}

#[test]
fn a_scaled_write_leaves_what_others_hold_and_changes_nothing_where_it_fails() {
    let x = tensor_of(&[1.0, 2.0, 3.0], &[3], DType::F32);
    let mut y = x.clone();
    y.write_scaled_at(1, &x.narrow(0, 0, 2).unwrap(), 10.0)
        .unwrap();
    assert_eq!(
        (values(&x), values(&y)),
        (vec![1.0, 2.0, 3.0], vec![1.0, 10.0, 20.0])
    );
    let ints = tensor_of(&[1.0], &[1], DType::I64);
    let far = x.to_device(Device::cpu(1)).unwrap();
    for (start, other) in [(1, &x), (usize::MAX, &x), (0, &ints), (0, &far)] {
        assert!(y.write_scaled_at(start, other, 2.0).is_err());
    }
    assert!(y.write_scaled_at(0, &x, &x).is_err());
    assert_eq!(values(&y), [1.0, 10.0, 20.0]);
}
