//! Results in the type that their operands had before they were widened.

pub(crate) use crate::cpu::working::working;
use crate::{DType, Result, Tensor};

/// A working tensor rounded to `dtype`, from which it was widened.
pub(crate) fn rounded(op: &'static str, t: Tensor, dtype: DType) -> Result<Tensor> {
    if t.dtype() == dtype {
        return Ok(t);
    }
    t.cast_for(op, dtype)
}
