//! CPU kernels.

use crate::{Number, Result, Tensor, dispatch_any};

pub(super) fn full(op: &'static str, value: Number, out: &mut Tensor) -> Result<()> {
    dispatch_any!(out.dtype(), T => out.make_mut::<T>()?.fill(value.element(op)?));
    Ok(())
}

pub(super) fn zeros(out: &mut Tensor) -> Result<()> {
    out.bytes_mut()?.fill(0); // all-zero bits are zero in every element type
    Ok(())
}

/// The numbers `0, 1, …`.
pub(super) fn arange(op: &'static str, out: &mut Tensor) -> Result<()> {
    dispatch_any!(out.dtype(), T => {
        for (i, v) in out.make_mut::<T>()?.iter_mut().enumerate() {
            *v = Number::Int(i as i64).element(op)?;
        }
    });
    Ok(())
}
