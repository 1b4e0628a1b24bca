//! CPU kernels.

use crate::{Element, Number, Result, Tensor, dispatch_any};

pub(super) fn full(op: &'static str, value: Number, out: &mut Tensor) -> Result<()> {
    dispatch_any!(out.dtype(), T => out.make_mut::<T>()?.fill(value.element(op)?));
    Ok(())
}

pub(super) fn zeros(out: &mut Tensor) -> Result<()> {
    out.bytes_mut()?.fill(0); // all-zero bits are zero in every element type
    Ok(())
}

/// The numbers `0, 1, …`, which the element type holds.
pub(super) fn arange(out: &mut Tensor) -> Result<()> {
    dispatch_any!(out.dtype(), T => {
        let numbers = out.make_mut::<T>()?.iter_mut().enumerate();
        numbers.for_each(|(i, v)| *v = T::from_i64(i as i64));
    });
    Ok(())
}
