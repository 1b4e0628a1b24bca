//! Copies from one view to another, on raw bits: one kernel for all element types of a size.

use crate::Layout;
use crate::cpu::strided::Walk;
use bytemuck::Pod;

/// Copies the elements of the view `layout` of `from` to the view `place` of `to`.
pub(super) fn copy<U: Pod>(from: &[U], layout: &Layout, to: &mut [U], place: &Layout) {
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
