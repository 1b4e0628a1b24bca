//! Working copies for the kernels that compute in `f32` or `f64` only: half types are widened
//! before and rounded once after.

use crate::{DType, Float, Result, Tensor, bf16, f16};
use std::ops::{Add, AddAssign, Mul, Sub};

/// The types that kernels compute in: `f32` and `f64`.
pub(crate) trait Real:
    Float<Compute = Self>
    + Default
    + AddAssign
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
{
    /// The slice itself where this type is `f32`: the way into kernels that exist for it alone.
    fn f32s(_: &[Self]) -> Option<&[f32]> {
        None
    }
    /// As [`f32s`](Real::f32s), for writing.
    fn f32s_mut(_: &mut [Self]) -> Option<&mut [f32]> {
        None
    }
}
impl Real for f32 {
    fn f32s(s: &[f32]) -> Option<&[f32]> {
        Some(s)
    }
    fn f32s_mut(s: &mut [f32]) -> Option<&mut [f32]> {
        Some(s)
    }
}
impl Real for f64 {}

/// Runs the body with the Rust type of a working tensor, which is `f32` or `f64`.
macro_rules! on_real {
    ($x:expr, $t:ident => $body:expr) => {
        if $x.dtype() == $crate::DType::F64 {
            type $t = f64;
            $body
        } else {
            type $t = f32;
            $body
        }
    };
}
pub(crate) use on_real;

/// The type that elements of `dtype` are computed in.
pub(crate) fn working_dtype(dtype: DType) -> DType {
    match dtype {
        DType::BF16 | DType::F16 => DType::F32,
        other => other,
    }
}

/// The tensor as the kernels want it: contiguous, half types widened to `f32`.
pub(crate) fn working(op: &'static str, t: &Tensor) -> Result<Tensor> {
    match t.dtype() {
        DType::BF16 => convert::<bf16, f32>(op, &t.contiguous()?),
        DType::F16 => convert::<f16, f32>(op, &t.contiguous()?),
        _ => t.contiguous(),
    }
}

/// A contiguous working tensor rounded to `dtype`, from which it was widened.
pub(crate) fn rounded(op: &'static str, t: Tensor, dtype: DType) -> Result<Tensor> {
    match dtype {
        _ if dtype == t.dtype() => Ok(t),
        DType::BF16 => convert::<f32, bf16>(op, &t),
        DType::F16 => convert::<f32, f16>(op, &t),
        _ => Ok(t),
    }
}

fn convert<A: Float, B: Float<Compute = A::Compute>>(
    op: &'static str,
    t: &Tensor,
) -> Result<Tensor> {
    let mut out = Tensor::allocate(op, t.shape().clone(), B::DTYPE, t.device())?;
    let (from, to) = (t.as_slice::<A>()?, out.make_mut::<B>()?);
    crate::cpu::vectorize(|| {
        to.iter_mut()
            .zip(from)
            .for_each(|(t, f)| *t = B::narrow(f.widen()));
    });
    Ok(out)
}
