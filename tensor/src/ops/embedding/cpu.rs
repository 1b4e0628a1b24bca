//! Rows in and out by index. Copies are of bytes: one kernel for all element types.

use crate::Float;
use crate::cpu::pieces::{Rows, parallel_pieces};
use crate::cpu::{parallel_chunks, vectorize};

/// Bytes or elements to a thread, at least.
const GRAIN: usize = 64 * 1024;

/// Copies the row `ids[i]` of the table to the row `i` of `out`.
pub(super) fn select(table: &[u8], ids: &[i64], row_bytes: usize, out: &mut [u8]) {
    if row_bytes == 0 {
        return;
    }
    let out = Rows {
        data: out,
        width: row_bytes,
    };
    parallel_pieces((ids, out), (GRAIN / row_bytes).max(1), |_, (ids, out)| {
        for (&id, out) in ids.iter().zip(out.data.chunks_exact_mut(row_bytes)) {
            out.copy_from_slice(&table[id as usize * row_bytes..][..row_bytes]);
        }
    });
}

/// Sums the rows of `grad` into the rows `ids` of `sum`, in order. Threads share out the rows of
/// `sum`; each reads all ids.
pub(super) fn sum_by_id<T: Float>(grad: &[T], ids: &[i64], width: usize, sum: &mut [T::Compute]) {
    if width == 0 {
        return;
    }
    let sum = Rows { data: sum, width };
    parallel_pieces(sum, (GRAIN / width).max(1), |first, sum| {
        sum.data.fill(T::Compute::default());
        vectorize(|| {
            for (&id, grad) in ids.iter().zip(grad.chunks_exact(width)) {
                let row = (id as usize).wrapping_sub(first).saturating_mul(width);
                if let Some(sum) = sum.data.get_mut(row..).and_then(|s| s.get_mut(..width)) {
                    sum.iter_mut().zip(grad).for_each(|(s, g)| *s += g.widen());
                }
            }
        });
    });
}

/// Rounds sums to the type of the gradient.
pub(super) fn narrow<T: Float>(sum: &[T::Compute], out: &mut [T]) {
    parallel_chunks(out, GRAIN, |start, out| {
        vectorize(|| {
            out.iter_mut()
                .zip(&sum[start..])
                .for_each(|(out, s)| *out = T::narrow(*s));
        });
    });
}
