//! Runs of elements, converted at full speed between a float type and its type of computation.

use super::simd::vectorize;
use crate::dtype::{DType, Float, f16};
use half::slice::HalfFloatSliceExt;

/// `dst = src`, widened to the type of computation: exact.
///
/// # Panics
/// If the lengths differ.
pub(crate) fn widen<T: Float>(src: &[T], dst: &mut [T::Compute]) {
    assert_eq!(src.len(), dst.len());
    if T::DTYPE == DType::F16 {
        // The crate's slice conversion asks once, not per element, whether F16C is there.
        bytemuck::cast_slice::<T, f16>(src).convert_to_f32_slice(bytemuck::cast_slice_mut(dst));
    } else {
        vectorize(
            #[inline(always)]
            || dst.iter_mut().zip(src).for_each(|(d, s)| *d = s.widen()),
        );
    }
}

/// `dst = src`, rounded to nearest even.
///
/// # Panics
/// If the lengths differ.
pub(crate) fn narrow<T: Float>(src: &[T::Compute], dst: &mut [T]) {
    assert_eq!(src.len(), dst.len());
    if T::DTYPE == DType::F16 {
        bytemuck::cast_slice_mut::<T, f16>(dst).convert_from_f32_slice(bytemuck::cast_slice(src));
    } else {
        vectorize(
            #[inline(always)]
            || {
                dst.iter_mut()
                    .zip(src)
                    .for_each(|(d, s)| *d = T::narrow(*s))
            },
        );
    }
}
