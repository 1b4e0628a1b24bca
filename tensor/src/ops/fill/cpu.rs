//! CPU kernels.

use crate::cpu::elementwise::on_bits;
use crate::{Element, Result, Tensor, dispatch_any};

/// All elements are the one whose bytes `element` starts with.
pub(super) fn full(op: &'static str, element: [u8; 8], out: &mut Tensor) -> Result<()> {
    let dtype = out.dtype();
    let out = out.host_bytes_mut(op)?;
    if element == [0; 8] {
        out.fill(0); // faster than any other value
        return Ok(());
    }
    on_bits!(dtype, U => {
        let element = bytemuck::pod_read_unaligned::<U>(&element[..size_of::<U>()]);
        bytemuck::cast_slice_mut(out).fill(element);
    });
    Ok(())
}

/// The numbers `0, 1, …`, which the element type holds.
pub(super) fn arange(op: &'static str, out: &mut Tensor) -> Result<()> {
    dispatch_any!(out.dtype(), T => {
        let numbers = bytemuck::cast_slice_mut::<_, T>(out.host_bytes_mut(op)?).iter_mut();
        numbers.enumerate().for_each(|(i, v)| *v = T::from_i64(i as i64));
    });
    Ok(())
}
