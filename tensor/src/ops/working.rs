//! Working copies for the kernels that compute in `f32` or `f64` only: half types are widened
//! before and rounded once after.

use crate::{DType, Result, Tensor};

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

/// The tensor as the kernels want it: contiguous, half types widened to `f32`.
pub(crate) fn working(op: &'static str, t: &Tensor) -> Result<Tensor> {
    match t.dtype() {
        DType::BF16 | DType::F16 => t.cast_for(op, DType::F32),
        _ => t.contiguous_for(op),
    }
}

/// A working tensor rounded to `dtype`, from which it was widened.
pub(crate) fn rounded(op: &'static str, t: Tensor, dtype: DType) -> Result<Tensor> {
    if t.dtype() == dtype {
        return Ok(t);
    }
    t.cast_for(op, dtype)
}
