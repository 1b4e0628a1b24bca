//! What kernels over rows share. A row is read from memory once and stays in cache for the passes
//! over it. It is taken in full vectors, the last one padded, so that a row of ten classes costs
//! one exponential of a vector and not ten of a scalar.

use super::math::Computed;
use super::math::Real;
use crate::Float;

/// Elements to a thread, at least.
const GRAIN: usize = 8 * 1024;
/// Elements of a vector: a full register of `f32` on AVX-512.
pub(crate) const LANES: usize = 16;

/// The type in which `T` computes.
pub(crate) type C<T> = <T as Float>::Compute;

/// Whether results can be stored and read back without a rounding.
pub(crate) const fn is_exact<T: Computed>() -> bool {
    size_of::<T>() == size_of::<C<T>>()
}

/// Rows to a thread, at least.
pub(crate) fn rows_per_grain(width: usize) -> usize {
    (GRAIN / width.max(1)).max(1)
}

/// The vector from `at` on; `pad` beyond the end of the row.
#[inline(always)]
pub(crate) fn load<T: Computed>(row: &[T], at: usize, pad: C<T>) -> [C<T>; LANES] {
    let mut v = [pad; LANES];
    let row = &row[at..];
    if let Some(full) = row.first_chunk::<LANES>() {
        for i in 0..LANES {
            v[i] = full[i].widen();
        }
    } else {
        v.iter_mut().zip(row).for_each(|(v, x)| *v = x.widen());
    }
    v
}

/// Writes the vector from `at` on, as far as the row goes.
#[inline(always)]
pub(crate) fn store<T: Computed>(row: &mut [T], at: usize, v: [C<T>; LANES]) {
    let row = &mut row[at..];
    if let Some(full) = row.first_chunk_mut::<LANES>() {
        for i in 0..LANES {
            full[i] = T::narrow(v[i]);
        }
    } else {
        row.iter_mut().zip(v).for_each(|(x, v)| *x = T::narrow(v));
    }
}

/// The sum of the lanes, pairwise: a chain as short as can be.
#[inline(always)]
pub(crate) fn total<R: Real>(mut lanes: [R; LANES]) -> R {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// The largest element; NaN is passed over (the sum of the exponentials will find it).
#[inline(always)]
pub(crate) fn max_of<T: Computed>(row: &[T]) -> C<T> {
    let low = -C::<T>::INFINITY;
    let mut lanes = [low; LANES];
    for at in (0..row.len()).step_by(LANES) {
        let v = load(row, at, low);
        for i in 0..LANES {
            lanes[i] = if v[i] > lanes[i] { v[i] } else { lanes[i] };
        }
    }
    lanes
        .into_iter()
        .fold(low, |a, b| if b > a { b } else { a })
}

/// `Σ f(x)`; `pad` stands for the elements beyond the end of the row.
#[inline(always)]
pub(crate) fn sum_of<T: Computed>(row: &[T], pad: C<T>, f: impl Fn(C<T>) -> C<T>) -> C<T> {
    let mut lanes = [C::<T>::ZERO; LANES];
    for at in (0..row.len()).step_by(LANES) {
        let v = load(row, at, pad);
        for i in 0..LANES {
            lanes[i] += f(v[i]);
        }
    }
    total(lanes)
}

/// `Σ exp(x − max)`.
#[inline(always)]
pub(crate) fn exp_sum<T: Computed>(row: &[T], max: C<T>) -> C<T> {
    sum_of(
        row,
        -C::<T>::INFINITY,
        #[inline(always)]
        |x| (x - max).exp(),
    )
}
