//! What kernels over rows share: maps and sums of a row, and the walk over all rows.
//!
//! A row is read from memory once and stays in cache for the passes over it. It is taken in full
//! vectors, the last one padded, so that a row of ten classes costs one exponential of a vector
//! and not ten of a scalar.

use super::math::Real;
use super::pieces::{Rows, parallel_pieces};
use super::vectorize;
use crate::Float;

/// Elements to a thread, at least.
pub(crate) const GRAIN: usize = 8 * 1024;
/// Elements taken at a time: a full register of `f32` on AVX-512.
pub(crate) const LANES: usize = 16;

/// The type in which `T` computes.
pub(crate) type C<T> = <T as Float>::Compute;

/// Whether results can be stored and read back without a rounding.
pub(crate) const fn is_exact<T: Float>() -> bool {
    size_of::<T>() == size_of::<C<T>>()
}

/// Rows to a thread, at least.
pub(crate) fn rows_per_grain(width: usize) -> usize {
    (GRAIN / width.max(1)).max(1)
}

/// Calls `f` with the row in vectors of [`LANES`], the last padded with `pad`.
#[inline(always)]
pub(crate) fn for_vectors<T: Float>(row: &[T], pad: C<T>, mut f: impl FnMut([C<T>; LANES])) {
    let (vectors, rest) = row.as_chunks::<LANES>();
    for v in vectors {
        f(v.map(T::widen));
    }
    if !rest.is_empty() {
        f(padded(rest, pad));
    }
}

/// The last elements of a row, widened and filled up with `pad`.
#[inline(always)]
pub(crate) fn padded<T: Float>(rest: &[T], pad: C<T>) -> [C<T>; LANES] {
    let mut v = [pad; LANES];
    v.iter_mut().zip(rest).for_each(|(v, x)| *v = x.widen());
    v
}

/// Writes `f` of each element, in vectors; `f` sees zeros beyond the end of the row.
#[inline(always)]
pub(crate) fn map_row<T: Float>(x: &[T], out: &mut [T], mut f: impl FnMut(C<T>) -> C<T>) {
    map_row2(x, x, out, |x, _| f(x));
}

/// Writes `f` of each pair of elements, as [`map_row`].
#[inline(always)]
pub(crate) fn map_row2<A: Float, T: Float<Compute = A::Compute>>(
    a: &[A],
    b: &[T],
    out: &mut [T],
    mut f: impl FnMut(C<T>, C<T>) -> C<T>,
) {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let (out, out_rest) = out.as_chunks_mut::<LANES>();
    for ((a, b), out) in a.iter().zip(b).zip(out) {
        for i in 0..LANES {
            out[i] = T::narrow(f(a[i].widen(), b[i].widen()));
        }
    }
    if !out_rest.is_empty() {
        let zero = C::<T>::default();
        let (a, b) = (padded(a_rest, zero), padded(b_rest, zero));
        let mut v = [zero; LANES];
        for i in 0..LANES {
            v[i] = f(a[i], b[i]);
        }
        out_rest
            .iter_mut()
            .zip(v)
            .for_each(|(out, v)| *out = T::narrow(v));
    }
}

/// The sum of the lanes, pairwise.
#[inline(always)]
pub(crate) fn fold<V: Copy>(mut lanes: [V; LANES], f: impl Fn(V, V) -> V) -> V {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = f(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// The largest element; NaN is passed over (the sum of the exponentials will find it).
#[inline(always)]
pub(crate) fn max_of<T: Float>(row: &[T]) -> C<T> {
    let low = -C::<T>::INFINITY;
    let larger = |a: C<T>, b: C<T>| if b > a { b } else { a };
    let mut lanes = [low; LANES];
    for_vectors(row, low, |v| {
        for i in 0..LANES {
            lanes[i] = larger(lanes[i], v[i]);
        }
    });
    fold(lanes, larger)
}

/// `Σ exp(x − max)`.
#[inline(always)]
pub(crate) fn exp_sum<T: Float>(row: &[T], max: C<T>) -> C<T> {
    let mut lanes = [C::<T>::default(); LANES];
    for_vectors(row, -C::<T>::INFINITY, |v| {
        for i in 0..LANES {
            lanes[i] += (v[i] - max).exp();
        }
    });
    fold(lanes, |a, b| a + b)
}

/// The sum of `f` of each pair of elements, where `f(0, 0) = 0`.
#[inline(always)]
pub(crate) fn sum_row2<T: Float>(a: &[T], b: &[T], f: impl Fn(C<T>, C<T>) -> C<T>) -> C<T> {
    let zero = C::<T>::default();
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let mut lanes = [zero; LANES];
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            lanes[i] += f(a[i].widen(), b[i].widen());
        }
    }
    let (a, b) = (padded(a_rest, zero), padded(b_rest, zero));
    for i in 0..LANES {
        lanes[i] += f(a[i], b[i]);
    }
    fold(lanes, |a, b| a + b)
}

/// Runs `f(input row, output row)` for all rows.
#[inline(always)]
pub(crate) fn each_row<T: Float>(
    x: &[T],
    out: &mut [T],
    width: usize,
    f: impl Fn(&[T], &mut [T]) + Sync,
) {
    let (x, out) = (Rows { data: x, width }, Rows { data: out, width });
    parallel_pieces((x, out), rows_per_grain(width), |_, (x, out)| {
        vectorize(|| {
            let rows = x.data.chunks_exact(width);
            for (x, out) in rows.zip(out.data.chunks_exact_mut(width)) {
                f(x, out);
            }
        });
    });
}

/// As [`each_row`], with two inputs.
#[inline(always)]
pub(crate) fn each_row2<T: Float>(
    a: &[T],
    b: &[T],
    out: &mut [T],
    width: usize,
    f: impl Fn(&[T], &[T], &mut [T]) + Sync,
) {
    let rows = |data| Rows { data, width };
    let out = Rows { data: out, width };
    parallel_pieces(
        (rows(a), rows(b), out),
        rows_per_grain(width),
        |_, (a, b, out)| {
            vectorize(|| {
                let rows = a.data.chunks_exact(width).zip(b.data.chunks_exact(width));
                for ((a, b), out) in rows.zip(out.data.chunks_exact_mut(width)) {
                    f(a, b, out);
                }
            });
        },
    );
}
