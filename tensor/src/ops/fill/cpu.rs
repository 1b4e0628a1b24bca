//! CPU kernels.

use crate::{Element, Result, Tensor, dispatch_any};

pub(super) fn full(value: f64, out: &mut Tensor) -> Result<()> {
    dispatch_any!(out.dtype(), T => out.make_mut::<T>()?.fill(T::from_f64(value)));
    Ok(())
}

pub(super) fn zeros(out: &mut Tensor) -> Result<()> {
    out.bytes_mut()?.fill(0); // all-zero bits are zero in every element type
    Ok(())
}

/// The numbers `0, 1, …`.
pub(super) fn arange(out: &mut Tensor) -> Result<()> {
    dispatch_any!(out.dtype(), T => {
        let values = out.make_mut::<T>()?.iter_mut().enumerate();
        values.for_each(|(i, v)| *v = T::from_f64(i as f64));
    });
    Ok(())
}
