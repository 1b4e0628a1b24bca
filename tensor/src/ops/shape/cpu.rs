//! Copies from one view to another, on raw bits: one kernel for all element types of a size.

use crate::cpu::elementwise::{on_bits, raw_bits};
use crate::cpu::strided::Walk;
use crate::{Layout, Result, Tensor};
use bytemuck::{Pod, cast_slice_mut};

/// Copies all elements of `from` to the places `place` of `to`.
pub(super) fn copy_into(
    op: &'static str,
    from: &Tensor,
    to: &mut Tensor,
    place: &Layout,
) -> Result<()> {
    let to = to.host_bytes_mut(op)?;
    on_bits!(from.dtype(), U => {
        copy::<U>(raw_bits(from), from.layout(), cast_slice_mut(to), place);
    });
    Ok(())
}

fn copy<U: Pod>(from: &[U], layout: &Layout, to: &mut [U], place: &Layout) {
    if layout.shape().contains(&0) {
        return;
    }
    let walk = Walk::new([layout, place]);
    let (width, [step, to_step]) = walk.row();
    walk.for_rows(0..walk.rows(), |_, [at, to_at]| {
        if step == 1 && to_step == 1 {
            to[to_at..to_at + width].copy_from_slice(&from[at..at + width]);
        } else {
            for j in 0..width {
                to[to_at + j * to_step] = from[at + j * step];
            }
        }
    });
}
