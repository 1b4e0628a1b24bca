//! Working copies for the kernels that compute in `f32` or `f64` only: half types are widened
//! before and rounded once after.

use crate::cpu::convert;
use crate::{DType, Float, Result, Tensor, bf16, f16};

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
        DType::BF16 => widened::<bf16>(op, &t.contiguous()?),
        DType::F16 => widened::<f16>(op, &t.contiguous()?),
        _ => t.contiguous(),
    }
}

/// A contiguous working tensor rounded to `dtype`, from which it was widened.
pub(crate) fn rounded(op: &'static str, t: Tensor, dtype: DType) -> Result<Tensor> {
    match dtype {
        _ if dtype == t.dtype() => Ok(t),
        DType::BF16 => narrowed::<bf16>(op, &t),
        DType::F16 => narrowed::<f16>(op, &t),
        _ => Ok(t),
    }
}

fn widened<T: Float<Compute = f32>>(op: &'static str, t: &Tensor) -> Result<Tensor> {
    let mut out = Tensor::allocate(op, t.shape().clone(), DType::F32, t.device())?;
    convert::widen(t.as_slice::<T>()?, out.make_mut()?);
    Ok(out)
}

fn narrowed<T: Float<Compute = f32>>(op: &'static str, t: &Tensor) -> Result<Tensor> {
    let mut out = Tensor::allocate(op, t.shape().clone(), T::DTYPE, t.device())?;
    convert::narrow(t.as_slice()?, out.make_mut::<T>()?);
    Ok(out)
}
