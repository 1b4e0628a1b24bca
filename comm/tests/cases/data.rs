//! Tensors of known values, and a loop that reduces them.

use phalanx_comm::{DType, Device, ProcessGroup, ReduceOp, Shape, Tensor};
use phalanx_tensor::{Element, dispatch_any};

/// A small number that differs by rank and position; exact in every element type.
pub fn value(dtype: DType, rank: usize, i: usize) -> f64 {
    let hash = (rank as u64 * 0x9E37_79B9 + i as u64 + 1).wrapping_mul(0xD134_2543_DE82_EF95) >> 40;
    match dtype {
        DType::U8 => (hash % 256) as f64,
        DType::Bool => (hash % 2) as f64,
        DType::I64 | DType::I32 => (hash % 2001) as f64 - 1000.0,
        _ => ((hash % 65) as f64 - 32.0) / 8.0,
    }
}

/// A tensor of `f(0), f(1), …`.
pub fn tensor(
    shape: impl Into<Shape>,
    dtype: DType,
    device: Device,
    f: impl Fn(usize) -> f64,
) -> Tensor {
    let shape = shape.into();
    let n = shape.numel();
    dispatch_any!(dtype, T => {
        let data: Vec<T> = (0..n).map(|i| T::from_f64(f(i))).collect();
        Tensor::from_vec(data, shape, device).unwrap()
    })
}

/// The tensor of `rank`.
pub fn of_rank(rank: usize, shape: impl Into<Shape>, dtype: DType, device: Device) -> Tensor {
    let of = |device| tensor(shape, dtype, device, |i| value(dtype, rank, i));
    if dtype != DType::Bool {
        return of(device);
    }
    // True is any byte but 0: of each rank another one.
    let mut t = of(Device::cpu(0));
    let bytes = t.bytes_mut().unwrap().iter_mut();
    bytes.enumerate().for_each(|(i, b)| *b <<= (i + rank) % 8);
    t.to_device(device).unwrap()
}

/// The elements, in row-major order.
pub fn values(t: &Tensor) -> Vec<f64> {
    dispatch_any!(t.dtype(), T => {
        t.to_vec::<T>().unwrap().into_iter().map(Element::to_f64).collect()
    })
}

/// Shape, type, device and elements, or a panic that says what differs.
#[track_caller]
pub fn expect(t: &Tensor, shape: &[usize], dtype: DType, device: Device, want: &[f64]) {
    assert_eq!((t.dims(), t.dtype(), t.device()), (shape, dtype, device));
    let got = values(t);
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(
            g == w || g.is_nan() && w.is_nan(),
            "element {i} of {dtype} {shape:?}: {g}, not {w}"
        );
    }
}

/// As [`expect`], of the result of a reduction: to the bit where the engine reduces in rank order; else within what
/// another order, and a rounding to a half type at each step, may make of it.
#[track_caller]
pub fn expect_reduced(
    g: &dyn ProcessGroup,
    op: ReduceOp,
    t: &Tensor,
    shape: &[usize],
    dtype: DType,
    want: &[f64],
) {
    let promises = g.promises(g.device()).expect("an engine");
    let may_round = dtype.is_float() && !matches!(op, ReduceOp::Min | ReduceOp::Max);
    if promises.rank_order || !may_round {
        return expect(t, shape, dtype, g.device(), want);
    }
    assert_eq!(
        (t.dims(), t.dtype(), t.device()),
        (shape, dtype, g.device())
    );
    let step = match dtype {
        DType::BF16 => 2f64.powi(-8),
        DType::F16 => 2f64.powi(-11),
        DType::F32 => 2f64.powi(-24),
        _ => 2f64.powi(-53),
    };
    // Operands of a sum are at most 4.
    let largest = |want: f64| match op {
        ReduceOp::Product => want.abs(),
        _ => 4.0 * g.size() as f64,
    };
    for (i, (got, want)) in values(t).iter().zip(want).enumerate() {
        let most = 2.0 * step * g.size() as f64 * largest(*want);
        assert!(
            (got - want).abs() <= most,
            "element {i} of {op} of {dtype} {shape:?}: {got}, not {want}"
        );
    }
}

/// The reduction of one element of each rank, in rank order, as the documentation says.
pub fn reduce(dtype: DType, op: ReduceOp, of_ranks: &[f64]) -> f64 {
    let n = of_ranks.len() as f64;
    match dtype {
        DType::F64 => {
            let sum = fold(of_ranks, op, |a, b| a + b, |a, b| a * b);
            if op == ReduceOp::Avg { sum / n } else { sum }
        }
        DType::I64 | DType::I32 | DType::U8 | DType::Bool => {
            let ints = of_ranks.iter().map(|v| *v as i64);
            let all = ints.reduce(|a, b| match op {
                ReduceOp::Sum => a.wrapping_add(b),
                ReduceOp::Product => a.wrapping_mul(b),
                ReduceOp::Min => a.min(b),
                ReduceOp::Max => a.max(b),
                ReduceOp::BitAnd => a & b,
                ReduceOp::BitOr => a | b,
                ReduceOp::BitXor => a ^ b,
                _ => panic!("{op} of {dtype}"),
            });
            let all = all.unwrap();
            // What wraps at 64 bits is right in the low 32 and 8, too.
            match dtype {
                DType::U8 => f64::from(all as u8),
                DType::I32 => f64::from(all as i32),
                // i64 to f64 rounds in the same way on both sides.
                _ => all as f64,
            }
        }
        // f32 arithmetic, rounded to a half type once.
        _ => {
            let sum = fold(
                of_ranks,
                op,
                |a, b| f64::from(a as f32 + b as f32),
                |a, b| f64::from(a as f32 * b as f32),
            );
            let all = if op == ReduceOp::Avg {
                f64::from(sum as f32 / n as f32)
            } else {
                sum
            };
            dispatch_any!(dtype, T => T::from_f64(all).to_f64())
        }
    }
}

fn fold(of_ranks: &[f64], op: ReduceOp, add: fn(f64, f64) -> f64, mul: fn(f64, f64) -> f64) -> f64 {
    let step = |a: f64, b: f64| match op {
        ReduceOp::Sum | ReduceOp::Avg => add(a, b),
        ReduceOp::Product => mul(a, b),
        _ if a.is_nan() || b.is_nan() => f64::NAN,
        ReduceOp::Min => a.min(b),
        ReduceOp::Max => a.max(b),
        _ => panic!("{op} of floats"),
    };
    of_ranks.iter().copied().reduce(step).unwrap()
}
