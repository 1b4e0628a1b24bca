//! What the operation tests share: random views with known contents, comparison by element type,
//! and central differences.
#![allow(dead_code)] // each test binary that includes this file uses its part

use phalanx_tensor::{Bool, DType, Device, Element, Error, Result, Shape, Tensor, bf16, f16};
use std::sync::LazyLock;

/// Where the tests compute: on a CPU, or where `PHALANX_TEST_DEVICE` says.
pub fn device() -> Device {
    static DEVICE: LazyLock<Device> = LazyLock::new(|| {
        let named = std::env::var("PHALANX_TEST_DEVICE");
        named.map_or(Device::cpu(0), |name| name.parse().unwrap())
    });
    *DEVICE
}

/// The device of the tests, for one that reads its memory figures: on a CPU it is a virtual device of
/// its own, `index`. The tests on a card come one after the other.
pub fn alone(index: usize) -> Device {
    match device() {
        Device::Cpu(_) => Device::cpu(index),
        card => card,
    }
}

/// The four float types.
pub const FLOATS: [DType; 4] = [DType::F64, DType::F32, DType::BF16, DType::F16];

/// SplitMix64: small, seedable, and none of the code under test.
pub struct TestRng(u64);

impl TestRng {
    pub fn new(seed: u64) -> TestRng {
        TestRng(seed)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next_u64() % n as u64) as usize
    }

    /// Uniform in `lo..hi`.
    pub fn uniform(&mut self, lo: f64, hi: f64) -> f64 {
        lo + (hi - lo) * (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A shape of rank `0..=max_rank` with extents in `1..=max_extent`; now and then one is 0.
    pub fn shape(&mut self, max_rank: usize, max_extent: usize) -> Vec<usize> {
        let rank = self.below(max_rank + 1);
        let mut shape: Vec<usize> = (0..rank).map(|_| 1 + self.below(max_extent)).collect();
        if rank > 0 && self.below(16) == 0 {
            shape[self.below(rank)] = 0;
        }
        shape
    }

    /// A shape that broadcasts to `shape`: some axes become 1, some leading axes are missing.
    pub fn shape_below(&mut self, shape: &[usize]) -> Vec<usize> {
        let lead = if self.below(3) == 0 {
            self.below(shape.len() + 1)
        } else {
            0
        };
        let mut out = shape[lead..].to_vec();
        for d in &mut out {
            if self.below(3) == 0 {
                *d = 1;
            }
        }
        out
    }

    /// A tensor of `shape` whose elements are uniform in `lo..hi` (rounded to the type; of `bool`
    /// both values), as a random view: contiguous, permuted, a window of a larger tensor, every
    /// second element, or stretched from extent 1.
    pub fn tensor(&mut self, shape: &[usize], dtype: DType, (lo, hi): (f64, f64)) -> Tensor {
        let rank = shape.len();
        let mut order: Vec<usize> = (0..rank).collect();
        if self.below(2) == 0 {
            for i in (1..rank).rev() {
                order.swap(i, self.below(i + 1));
            }
        }
        let plain = self.below(3) == 0;
        // How axis `i` lies in the base tensor: (extent, start, step).
        let axes: Vec<(usize, usize, usize)> = shape
            .iter()
            .map(|&d| match self.below(if plain { 1 } else { 6 }) {
                1 => (d + 2, 1, 1),
                2 => (2 * d + 1, 1, 2),
                _ => (d, 0, 1),
            })
            .collect();
        let base: Vec<usize> = order.iter().map(|&i| axes[i].0).collect();
        let n = base.iter().product();
        let values: Vec<f64> = (0..n)
            .map(|_| match dtype {
                DType::Bool => self.below(2) as f64,
                _ => self.uniform(lo, hi),
            })
            .collect();
        let mut t = tensor_of(&values, &base, dtype);
        let mut back = vec![0isize; rank];
        for (at, &i) in order.iter().enumerate() {
            back[i] = at as isize;
        }
        t = t.permute(&back).unwrap();
        for (i, &(_, start, step)) in axes.iter().enumerate() {
            let end = start + (shape[i] * step).saturating_sub(step - 1);
            t = t.slice(i as isize, start..end, step).unwrap();
        }
        if !plain && rank > 0 && self.below(6) == 0 {
            let axis = self.below(rank);
            if shape[axis] > 0 {
                t = t
                    .narrow(axis as isize, 0, 1)
                    .unwrap()
                    .broadcast_to(shape)
                    .unwrap();
            }
        }
        assert_eq!(t.dims(), shape);
        t
    }
}

/// A contiguous tensor on the device with the given elements, rounded to `dtype`.
pub fn tensor_of(values: &[f64], shape: &[usize], dtype: DType) -> Tensor {
    fn of<T: Element>(values: &[f64], shape: &[usize]) -> Tensor {
        let values: Vec<T> = values.iter().map(|&v| T::from_f64(v)).collect();
        Tensor::from_vec(values, shape, device()).unwrap()
    }
    match dtype {
        DType::F32 => of::<f32>(values, shape),
        DType::F64 => of::<f64>(values, shape),
        DType::BF16 => of::<bf16>(values, shape),
        DType::F16 => of::<f16>(values, shape),
        DType::I64 => of::<i64>(values, shape),
        DType::I32 => of::<i32>(values, shape),
        DType::U8 => of::<u8>(values, shape),
        DType::Bool => {
            let values: Vec<Bool> = values.iter().map(|&v| Bool::from_f64(v)).collect();
            let mut t = Tensor::from_vec(values, shape, Device::cpu(0)).unwrap();
            // True is any byte but 0, so operations have to do with all of them.
            let bytes = t.bytes_mut().unwrap().iter_mut();
            bytes.enumerate().for_each(|(i, b)| *b <<= i % 8);
            t.to_device(device()).unwrap()
        }
    }
}

/// The elements as `f64`, in row-major order.
pub fn values(t: &Tensor) -> Vec<f64> {
    fn of<T: Element>(t: &Tensor) -> Vec<f64> {
        t.to_vec::<T>()
            .unwrap()
            .into_iter()
            .map(T::to_f64)
            .collect()
    }
    match t.dtype() {
        DType::F32 => of::<f32>(t),
        DType::F64 => of::<f64>(t),
        DType::BF16 => of::<bf16>(t),
        DType::F16 => of::<f16>(t),
        DType::I64 => of::<i64>(t),
        DType::I32 => of::<i32>(t),
        DType::U8 => of::<u8>(t),
        DType::Bool => of::<Bool>(t),
    }
}

/// The type in which an element type is summed.
pub fn computed(dtype: DType) -> DType {
    match dtype {
        DType::F64 => DType::F64,
        _ => DType::F32,
    }
}

/// Half the distance between 1 and the next number of the type: the relative error of one
/// rounding.
pub fn rounding(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 2f64.powi(-53),
        DType::F32 => 2f64.powi(-24),
        DType::F16 => 2f64.powi(-11),
        DType::BF16 => 2f64.powi(-8),
        DType::I64 | DType::I32 | DType::U8 | DType::Bool => 0.0,
    }
}

/// A tolerance of `n` roundings of the type, relative to a value (or to 1 where that is larger):
/// the half types compute in `f32` and round once, so one or two serve there.
pub fn tolerance(dtype: DType, n: f64) -> f64 {
    match dtype {
        DType::F64 | DType::F32 => n * rounding(dtype),
        _ => 1.01 * rounding(dtype) + n * rounding(DType::F32),
    }
}

/// Asserts shape, and each element within `tol · max(1, |expected|)`; NaN equals NaN, and
/// infinities must match.
#[track_caller]
pub fn assert_close(actual: &Tensor, shape: &[usize], expected: &[f64], tol: f64, what: &str) {
    assert_eq!(actual.dims(), shape, "{what}: shape");
    let actual = values(actual);
    assert_eq!(actual.len(), expected.len(), "{what}: number of elements");
    for (i, (&a, &e)) in actual.iter().zip(expected).enumerate() {
        let same = a == e || (a.is_nan() && e.is_nan());
        assert!(
            same || (a - e).abs() <= tol * e.abs().max(1.0),
            "{what}: element {i} is {a:e}, expected {e:e} within {tol:e}"
        );
    }
}

/// Asserts that two tensors have the same shape, type and bits.
#[track_caller]
pub fn assert_same(a: &Tensor, b: &Tensor, what: &str) {
    assert_eq!((a.dims(), a.dtype()), (b.dims(), b.dtype()), "{what}");
    let (a, b) = (a.contiguous().unwrap(), b.contiguous().unwrap());
    assert!(bytes(&a) == bytes(&b), "{what}: the bits differ");
}

/// The bytes of a contiguous tensor, wherever it is.
pub fn bytes(t: &Tensor) -> Vec<u8> {
    let here = t.to_device(Device::cpu(0)).unwrap();
    here.as_bytes().unwrap().to_vec()
}

/// The error of an index out of range. A card sees it late: the next copy to the host has it.
pub fn out_of_range(result: Result<Tensor>) -> Error {
    match (device(), result) {
        (Device::Cpu(_), result) => result.unwrap_err(),
        (device, result) => {
            let error = result.unwrap().to_device(Device::cpu(0)).unwrap_err();
            device.clear_index_error().unwrap();
            error
        }
    }
}

/// The coordinates of the element `flat` of a row-major tensor.
pub fn coordinates(mut flat: usize, shape: &[usize]) -> Vec<usize> {
    let mut at = vec![0; shape.len()];
    for i in (0..shape.len()).rev() {
        at[i] = flat % shape[i];
        flat /= shape[i];
    }
    at
}

/// The row-major index of the element at `at`, where axes of extent 1 (and missing leading axes)
/// of `shape` are stretched.
pub fn flat_index(at: &[usize], shape: &[usize]) -> usize {
    let at = &at[at.len() - shape.len()..];
    at.iter()
        .zip(shape)
        .fold(0, |flat, (&i, &d)| flat * d + if d == 1 { 0 } else { i })
}

/// `values` of `shape`, stretched to `to`.
pub fn broadcast(values: &[f64], shape: &[usize], to: &[usize]) -> Vec<f64> {
    let n: usize = to.iter().product();
    (0..n)
        .map(|flat| values[flat_index(&coordinates(flat, to), shape)])
        .collect()
}

/// The gradient of `Σ f(inputs) · grad` with respect to `inputs[which]`, by central differences
/// in `f64`.
pub fn central_differences(
    f: impl Fn(&[Tensor]) -> Tensor,
    inputs: &[Tensor],
    which: usize,
    grad: &Tensor,
) -> Vec<f64> {
    let grad = values(grad);
    let x = values(&inputs[which]);
    let shape = inputs[which].shape().clone();
    let eval = |at: usize, step: f64| -> f64 {
        let mut moved = x.clone();
        moved[at] += step;
        let mut inputs = inputs.to_vec();
        inputs[which] = tensor_of(&moved, &shape, DType::F64);
        values(&f(&inputs))
            .iter()
            .zip(&grad)
            .map(|(y, g)| y * g)
            .sum()
    };
    (0..x.len())
        .map(|i| {
            let h = 1e-5 * x[i].abs().max(1.0);
            (eval(i, h) - eval(i, -h)) / (2.0 * h)
        })
        .collect()
}

/// Asserts that `analytic` is the gradient of `Σ f(inputs) · grad` with respect to
/// `inputs[which]`. All tensors are `f64`, away from kinks.
#[track_caller]
pub fn assert_gradient(
    f: impl Fn(&[Tensor]) -> Tensor,
    inputs: &[Tensor],
    which: usize,
    grad: &Tensor,
    analytic: &Tensor,
    what: &str,
) {
    let numeric = central_differences(f, inputs, which, grad);
    assert_close(analytic, inputs[which].dims(), &numeric, 1e-6, what);
}

/// Shapes print in messages as the library prints them.
pub fn show(shape: &[usize]) -> String {
    Shape::from(shape).to_string()
}
