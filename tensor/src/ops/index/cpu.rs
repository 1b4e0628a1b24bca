//! Kernels of reading and adding by index. What only copies works on raw bits: one kernel for all
//! element types of a size.

use super::lines;
use crate::cpu::elementwise::{on_bits, raw_bits};
use crate::cpu::math::Computed;
use crate::cpu::pieces::{Rows, parallel_pieces};
use crate::cpu::strided::Walk;
use crate::cpu::vectorize;
use crate::{DType, Error, Layout, Result, Tensor, dispatch_float};
use bytemuck::{Pod, cast_slice_mut};

/// Bytes or elements to a thread, at least.
const GRAIN: usize = 64 * 1024;

/// The indices, which are contiguous, are all in `0..extent` or `except`.
pub(crate) fn expect_within(
    op: &'static str,
    indices: &Tensor,
    extent: usize,
    except: Option<i64>,
) -> Result<()> {
    let outside = |i: &i64| !(0..extent as i64).contains(i) && Some(*i) != except;
    match indices.as_slice()?.iter().copied().find(outside) {
        None => Ok(()),
        Some(index) => Err(Error::IndexOutOfRange {
            op,
            index,
            extent,
            late: false,
        }),
    }
}

/// The indices as `i64`, contiguous and all in `0..extent`.
fn checked(op: &'static str, indices: &Tensor, extent: usize) -> Result<Tensor> {
    let indices = match indices.dtype() {
        DType::I32 => indices.cast_for(op, DType::I64)?,
        _ => indices.contiguous_for(op)?,
    };
    expect_within(op, &indices, extent, None)?;
    Ok(indices)
}

/// Elements of a slice of the axis, for each place on the axes before it.
fn slice_len(x: &Tensor, axis: usize) -> usize {
    x.dims()[axis + 1..].iter().product()
}

/// `out` = the slices of `axis` of `x` at `indices`: for each group of `extent` rows, those at
/// `indices`.
pub(super) fn select(
    op: &'static str,
    x: &Tensor,
    axis: usize,
    indices: &Tensor,
    out: &mut Tensor,
) -> Result<()> {
    let extent = x.dims()[axis];
    let indices = checked(op, indices, extent)?;
    let indices = indices.as_slice::<i64>()?;
    if out.numel() == 0 {
        return Ok(());
    }
    let row_bytes = slice_len(x, axis) * x.dtype().size();
    let x = x.contiguous_for(op)?;
    let table = x.as_bytes()?;
    let out = Rows {
        data: out.host_bytes_mut(op)?,
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
    Ok(())
}

/// Adds the slices of `source` to the slices of `axis` of `sum` at `indices`, in order.
pub(super) fn add(
    op: &'static str,
    source: &Tensor,
    axis: usize,
    indices: &Tensor,
    sum: &mut Tensor,
) -> Result<()> {
    let (extent, width) = (sum.dims()[axis], slice_len(sum, axis));
    let indices = checked(op, indices, extent)?;
    let indices = indices.as_slice()?;
    let source = source.contiguous_for(op)?;
    dispatch_float!(op, source.dtype(), T => {
        add_rows::<T>(source.as_slice()?, indices, extent, width, sum.make_mut()?);
    });
    Ok(())
}

/// Adds rows of `width`: for each group of `extent` rows of `sum`, the next rows of `source` to
/// those at `indices`, in order. Threads share out the rows of `sum`; each reads all indices.
fn add_rows<T: Computed>(
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

/// `out[place] = x[line of place + index · stride]`.
pub(super) fn gather(
    op: &'static str,
    x: &Tensor,
    axis: usize,
    indices: &Tensor,
    out: &mut Tensor,
) -> Result<()> {
    let indices = checked(op, indices, x.dims()[axis])?;
    if indices.numel() == 0 {
        return Ok(());
    }
    let lines = lines(op, x.layout(), axis, indices.shape())?;
    let stride = x.layout().strides()[axis];
    let index = (indices.as_slice()?, indices.layout());
    let out = out.host_bytes_mut(op)?;
    on_bits!(x.dtype(), U => {
        gather_bits::<U>(raw_bits(x), &lines, stride, index, cast_slice_mut(out));
    });
    Ok(())
}

/// Of `index`, which is contiguous, and its layout.
fn gather_bits<U: Pod + Send + Sync>(
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

/// `sum[line of place + index · stride] += source[place]`, in the order of the places.
pub(super) fn scatter_add(
    op: &'static str,
    source: &Tensor,
    axis: usize,
    indices: &Tensor,
    sum: &mut Tensor,
) -> Result<()> {
    let indices = checked(op, indices, sum.dims()[axis])?;
    if indices.numel() == 0 {
        return Ok(());
    }
    let source = source.contiguous_for(op)?;
    let lines = lines(op, sum.layout(), axis, indices.shape())?;
    let mut layouts = [indices.layout(), source.layout(), &lines].map(Layout::at_origin);
    let (mut parts, stride) = ((1, sum.numel()), sum.layout().strides()[axis]);
    if axis > 0 {
        // Each index of the first axis adds into a part of its own.
        parts = (indices.dims()[0], sum.layout().strides()[0]);
        for layout in &mut layouts {
            *layout = layout.narrow(0, 0, 1)?;
        }
    }
    dispatch_float!(op, source.dtype(), T => {
        let (index, source) = (indices.as_slice()?, source.as_slice()?);
        scatter_add_parts::<T>(index, source, &layouts, stride, parts, sum.make_mut()?);
    });
    Ok(())
}

/// `sum[line of place + index · stride] += source[place]`, in the order of the places, for each of
/// `outer` parts of all three arrays, each of which has the layouts `[indices, source, lines]`; a
/// part of `sum` is `part` elements long.
fn scatter_add_parts<T: Computed>(
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
