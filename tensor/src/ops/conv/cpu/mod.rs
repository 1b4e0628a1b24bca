//! The CPU kernels of the convolution and the choice between them.

mod planar;

use super::geometry::Geometry;
use crate::ops::working::Real;

/// `out = x ⋆ w + bias`.
pub(super) fn forward<T: Real>(g: &Geometry, x: &[T], w: &[T], bias: Option<&[T]>, out: &mut [T]) {
    planar::forward(g, x, w, bias, out);
}

/// The gradient with respect to `x`.
pub(super) fn input_grad<T: Real>(g: &Geometry, dy: &[T], w: &[T], dx: &mut [T]) {
    planar::input_grad(g, dy, w, dx);
}

/// The gradient with respect to `w`.
pub(super) fn weight_grad<T: Real>(g: &Geometry, x: &[T], dy: &[T], dw: &mut [T]) {
    planar::weight_grad(g, x, dy, dw);
}
