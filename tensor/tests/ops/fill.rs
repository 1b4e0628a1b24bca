//! Numbers that a program gives: filled in exactly, or refused by every operation that takes one.

use crate::util::{FLOATS, bytes, device, values};
use phalanx_tensor::{DType, Element, Error, Number, Result, Rng, Tensor};

#[track_caller]
fn refused(op: &str, number: &str, dtype: DType, result: Result<Tensor>) {
    let e = result.unwrap_err();
    assert!(matches!(e, Error::InvalidArgument { .. }), "{e}");
    assert_eq!(e.to_string(), format!("{op}: {number} is no {dtype}"));
}

#[test]
fn integers_are_filled_exactly() {
    for value in [i64::MAX, i64::MIN, (1 << 53) + 1, -(1 << 53) - 1, 0] {
        let t = Tensor::full([2], value, DType::I64, device()).unwrap();
        assert_eq!(t.to_vec::<i64>().unwrap(), [value; 2]);
    }
    let t = Tensor::full([1], -9_223_372_036_854_775_808.0, DType::I64, device()).unwrap();
    assert_eq!(t.to_vec::<i64>().unwrap(), [i64::MIN]);
    for value in [0u8, 255] {
        let t = Tensor::full([1], value, DType::U8, device()).unwrap();
        assert_eq!(t.to_vec::<u8>().unwrap(), [value]);
    }
    for value in [false, true] {
        let t = Tensor::full([2], value, DType::Bool, device()).unwrap();
        assert_eq!(t.to_vec::<bool>().unwrap(), [value; 2]);
        let t = Tensor::full([2], f64::from(u8::from(value)), DType::Bool, device()).unwrap();
        assert_eq!(bytes(&t), [u8::from(value); 2]);
    }
    for dtype in FLOATS {
        let (int, float) = (Tensor::full([1], -3, dtype, device()), -3.0f32);
        let float = Tensor::full([1], float, dtype, device()).unwrap();
        assert_eq!(values(&int.unwrap()), values(&float));
    }
    // A float type rounds.
    let t = Tensor::full([1], (1 << 24) + 1, DType::F32, device()).unwrap();
    assert_eq!(values(&t), [16_777_216.0]);
}

#[test]
fn what_an_integer_type_does_not_hold_is_refused_everywhere() {
    let numbers = [
        (DType::U8, -1.0, "-1"),
        (DType::U8, 256.0, "256"),
        (DType::U8, 0.5, "0.5"),
        (DType::U8, f64::NAN, "NaN"),
        (DType::Bool, -1.0, "-1"),
        (DType::Bool, 2.0, "2"),
        (DType::Bool, 0.5, "0.5"),
        (DType::Bool, f64::NAN, "NaN"),
        (DType::I64, 0.5, "0.5"),
        (DType::I64, f64::INFINITY, "inf"),
        (DType::I64, f64::NAN, "NaN"),
        // 2⁶³: one more than the largest, and what that rounds to.
        (
            DType::I64,
            9_223_372_036_854_775_808.0,
            "9223372036854776000",
        ),
    ];
    for (dtype, number, shown) in numbers {
        refused(
            "full",
            shown,
            dtype,
            Tensor::full([2], number, dtype, device()),
        );
        let t = Tensor::ones([2], dtype, device()).unwrap();
        refused("pad", shown, dtype, t.pad(&[(1, 0)], number));
        if dtype == DType::Bool {
            continue; // it has no arithmetic
        }
        refused("add_scalar", shown, dtype, t.add_scalar(number));
        refused("sub_scalar", shown, dtype, t.sub_scalar(number));
        refused("mul_scalar", shown, dtype, t.mul_scalar(number));
        refused("clamp", shown, dtype, t.clamp(number, 1.0));
        refused("clamp", shown, dtype, t.clamp(1.0, number));
    }
    refused(
        "full",
        "-1",
        DType::U8,
        Tensor::full((), -1, DType::U8, device()),
    );
    let e = Tensor::full((), i64::MAX, DType::U8, device());
    refused("full", "9223372036854775807", DType::U8, e);
}

#[test]
fn a_range_is_exact_or_refused() {
    let t = Tensor::arange(256, DType::U8, device()).unwrap();
    assert_eq!(t.to_vec::<u8>().unwrap(), (0..=255).collect::<Vec<_>>());
    refused(
        "arange",
        "256",
        DType::U8,
        Tensor::arange(257, DType::U8, device()),
    );
    let t = Tensor::arange(2, DType::Bool, device()).unwrap();
    assert_eq!(t.to_vec::<bool>().unwrap(), [false, true]);
    let e = Tensor::arange(3, DType::Bool, device());
    refused("arange", "2", DType::Bool, e);
    let t = Tensor::arange(300, DType::I64, device()).unwrap();
    assert_eq!(t.to_vec::<i64>().unwrap(), (0..300).collect::<Vec<_>>());
}

#[test]
fn an_item_is_read_exactly_or_not_at_all() {
    fn read<T: Element>(t: &Tensor) -> Result<T> {
        t.item()
    }
    for value in [i64::MAX, i64::MIN, (1 << 53) + 1] {
        let t = Tensor::scalar(value, device()).unwrap();
        assert_eq!(read::<i64>(&t).unwrap(), value);
    }
    let t = Tensor::scalar((1i64 << 53) + 1, device()).unwrap();
    let e = read::<f64>(&t).unwrap_err();
    assert!(matches!(e, Error::InvalidArgument { op: "item", .. }));
    assert_eq!(e.to_string(), "item: 9007199254740993 is no f64");
    assert!(read::<f32>(&Tensor::scalar((1i64 << 24) + 1, device()).unwrap()).is_err());
    for dtype in FLOATS {
        let t = Tensor::full([1, 1], 0.3, dtype, device()).unwrap();
        assert_eq!(read::<f64>(&t).unwrap(), values(&t)[0], "{dtype}");
        assert_eq!(read::<f32>(&t).is_ok(), dtype != DType::F64);
        assert_eq!(read::<i64>(&t).unwrap_err().to_string(), {
            format!("item: {} is no i64", values(&t)[0])
        });
        let t = Tensor::full([], f64::NAN, dtype, device()).unwrap();
        assert!(read::<f32>(&t).unwrap().is_nan());
    }
    let t = Tensor::full((), 2.0, DType::F32, device()).unwrap();
    assert_eq!(read::<u8>(&t).unwrap(), 2);
    assert_eq!(
        t.item::<bool>().unwrap_err().to_string(),
        "item: 2 is no bool"
    );
    let t = Tensor::scalar(true, device()).unwrap();
    assert!(t.item::<bool>().unwrap());
    assert_eq!(read::<f32>(&t).unwrap(), 1.0);
    let two = Tensor::zeros([2], DType::F32, device()).unwrap();
    assert!(matches!(read::<f64>(&two), Err(Error::InvalidShape { .. })));
}

#[test]
fn a_type_holds_a_number_or_does_not() {
    assert_eq!(f64::exact(Number::Int(1 << 53)), Some(2f64.powi(53)));
    assert_eq!(f64::exact(Number::Int((1 << 53) + 1)), None);
    assert_eq!(f64::exact(Number::Int(i64::MAX)), None);
    assert_eq!(f64::exact(Number::Int(i64::MIN)), Some(-2f64.powi(63)));
    assert_eq!(f32::exact(Number::Float(0.5)), Some(0.5));
    assert_eq!(f32::exact(Number::Float(0.1)), None);
    assert_eq!(f32::exact(Number::Float(1e300)), None);
    assert!(f32::exact(Number::Float(f64::NAN)).unwrap().is_nan());
    assert_eq!(i64::exact(Number::Float(-2.0)), Some(-2));
    assert_eq!(i64::exact(Number::Float(2f64.powi(63))), None);
    assert_eq!(u8::exact(Number::Float(-0.0)), Some(0));
    assert_eq!(u8::exact(Number::Int(256)), None);
}

/// The integer of `bits` binary digits that is nearest to `v`, the even one of two: exact arithmetic.
fn nearest(v: i64, bits: u32) -> i128 {
    let size = i128::from(v).abs();
    let cut = (128 - size.leading_zeros()).saturating_sub(bits);
    let (kept, rest, half) = (size >> cut, size & ((1 << cut) - 1), (1 << cut) >> 1);
    let up = cut > 0 && (rest > half || rest == half && kept & 1 == 1);
    ((kept + i128::from(up)) << cut) * i128::from(v.signum())
}

#[test]
fn an_integer_is_rounded_once() {
    let types = [
        (DType::F32, 24),
        (DType::F64, 53),
        (DType::BF16, 8),
        (DType::F16, 11),
    ];
    // In f64 a tie of f32 and of bf16, and a tie of bf16 in f32.
    let mut integers = vec![
        (1 << 60) + (1 << 36) + 1,
        (1 << 60) + (1 << 52) + 1,
        -(1 << 60) - (1 << 52) - 1,
        (1 << 30) + (1 << 22) + 1,
        65_519,
        65_520,
        -65_520,
        0,
        i64::MAX,
        i64::MIN,
    ];
    let mut rng = Rng::new(31);
    for _ in 0..20_000 {
        let v = rng.next_u64() as i64 >> rng.below(64);
        // As it is, and close to a tie of one of the types.
        let bits = 64 - v.unsigned_abs().leading_zeros();
        let tie = |kept: u32| match bits.checked_sub(kept + 1) {
            Some(cut) => (v >> cut | 1) << cut,
            None => v,
        };
        let offset = rng.below(3) as i64 - 1;
        let tie = tie([8, 11, 24, 53][rng.below(4) as usize]);
        integers.extend([v, tie.saturating_add(offset)]);
    }
    let all = Tensor::from_slice(&integers, [integers.len()], device()).unwrap();
    for (dtype, bits) in types {
        let cast = values(&all.cast(dtype).unwrap());
        for (&v, cast) in integers.iter().zip(cast) {
            let mut want = nearest(v, bits) as f64; // exact
            if dtype == DType::F16 && want.abs() > 65_504.0 {
                want = f64::INFINITY.copysign(want);
            }
            let full = values(&Tensor::full([1], v, dtype, device()).unwrap())[0];
            assert_eq!(full, want, "full of {v} as {dtype}");
            assert_eq!(cast, want, "cast of {v} to {dtype}");
        }
    }
}
