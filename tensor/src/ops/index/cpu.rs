//! Kernels of reading and adding by index. What only copies works on raw bits: one kernel for all
//! element types of a size.

use crate::cpu::pieces::{Rows, parallel_pieces};
use crate::cpu::strided::Walk;
use crate::cpu::vectorize;
use crate::{Float, Layout, Result, Tensor};
use bytemuck::Pod;
use std::ops::Range;

/// Bytes or elements to a thread, at least.
const GRAIN: usize = 64 * 1024;

/// The first index that is neither in `range` nor `except`.
pub(crate) fn first_outside(
    indices: &Tensor,
    range: Range<i64>,
    except: Option<i64>,
) -> Result<Option<i64>> {
    let outside = |i: &i64| !range.contains(i) && Some(*i) != except;
    Ok(indices.as_slice()?.iter().copied().find(outside))
}

/// Copies rows of `row_bytes`: for each group of `extent` rows of `table`, those at `indices`.
pub(crate) fn select(
    table: &[u8],
    extent: usize,
    row_bytes: usize,
    indices: &[i64],
    out: &mut [u8],
) {
    if out.is_empty() {
        return;
    }
    let out = Rows {
        data: out,
        width: row_bytes,
    };
    let count = indices.len();
    parallel_pieces(out, (GRAIN / row_bytes).max(1), |first, out| {
        let (mut group, mut at) = (first / count, first % count);
        for out in out.data.chunks_exact_mut(row_bytes) {
            let row = group * extent + indices[at] as usize;
            out.copy_from_slice(&table[row * row_bytes..][..row_bytes]);
            at += 1;
            if at == count {
                (group, at) = (group + 1, 0);
            }
        }
    });
}

/// Adds rows of `width`: for each group of `extent` rows of `sum`, the next rows of `source` to
/// those at `indices`, in order. Threads share out the rows of `sum`; each reads all indices.
pub(crate) fn add<T: Float>(
    source: &[T],
    indices: &[i64],
    extent: usize,
    width: usize,
    sum: &mut [T::Compute],
) {
    if source.is_empty() {
        return;
    }
    let sum = Rows { data: sum, width };
    parallel_pieces(sum, (GRAIN / width).max(1), |first, sum| {
        let last = first + sum.data.len() / width;
        vectorize(
            #[inline(always)]
            || {
                let groups = source.chunks_exact(indices.len() * width).enumerate();
                for (group, source) in groups.take(last.div_ceil(extent)).skip(first / extent) {
                    for (&index, source) in indices.iter().zip(source.chunks_exact(width)) {
                        let row = group * extent + index as usize;
                        if (first..last).contains(&row) {
                            let sum = &mut sum.data[(row - first) * width..][..width];
                            sum.iter_mut()
                                .zip(source)
                                .for_each(|(s, v)| *s += v.widen());
                        }
                    }
                }
            },
        );
    });
}

/// `out[place] = from[line of place + index · stride]`; `index` is contiguous, with its layout.
pub(super) fn gather<U: Pod + Send + Sync>(
    from: &[U],
    lines: &Layout,
    stride: usize,
    (index, layout): (&[i64], &Layout),
    out: &mut [U],
) {
    let walk = Walk::new([&layout.at_origin(), lines]);
    let (width, [step, line_step]) = walk.row();
    debug_assert!(step == 1 || width == 1);
    let out = Rows { data: out, width };
    parallel_pieces(out, (GRAIN / width).max(1), |first, out| {
        let rows = out.data.len() / width;
        let mut out = out.data.chunks_exact_mut(width);
        walk.for_rows(first..first + rows, |_, [at, line]| {
            let Some(out) = out.next() else { return };
            for (j, (out, &i)) in out.iter_mut().zip(&index[at..at + width]).enumerate() {
                *out = from[line + j * line_step + i as usize * stride];
            }
        });
    });
}

/// `sum[line of place + index · stride] += source[place]`, in the order of the places, for each of
/// `outer` parts of all three arrays, each of which has the layouts `[indices, source, lines]`; a
/// part of `sum` is `part` elements long.
pub(super) fn scatter_add<T: Float>(
    index: &[i64],
    source: &[T],
    layouts: &[Layout; 3],
    stride: usize,
    (outer, part): (usize, usize),
    sum: &mut [T::Compute],
) {
    let walk = Walk::new(layouts.each_ref());
    let (width, [index_step, source_step, line_step]) = walk.row();
    let places = index.len() / outer;
    let sum = Rows {
        data: &mut sum[..outer * part],
        width: part,
    };
    parallel_pieces(sum, (GRAIN / places).max(1), |first, sum| {
        for (o, sum) in (first..).zip(sum.data.chunks_exact_mut(part)) {
            let (index, source) = (&index[o * places..], &source[o * places..]);
            walk.for_rows(0..walk.rows(), |_, [at, from, line]| {
                for j in 0..width {
                    let to = line + j * line_step + index[at + j * index_step] as usize * stride;
                    sum[to] += source[from + j * source_step].widen();
                }
            });
        }
    });
}
