//! The one loop over elements: it brings operands of any layout to kernels that see only plain
//! slices, so that an operation is compiled once per type and not once per layout.
//!
//! Contiguous operands go to the kernel as they are. What is stretched, or comes in short rows, is
//! gathered block by block into a buffer that stays in the first-level cache, where the second
//! pass costs little beside the memory traffic. Half types are widened there in the same way, so
//! kernels exist for `f32` and `f64` only.

use super::convert;
use super::math::{Computed, Real};
use super::pieces::parallel_pieces;
use super::rows::{C, is_exact};
use super::strided::{Walk, copy_row, gather_range};
use crate::ops::Scalar;
use crate::{Element, Layout, Result, Shape, Tensor, dispatch_float};
use bytemuck::{Pod, cast_slice, cast_slice_mut};
use std::array::from_fn;
use std::ops::Range;

/// Elements per thread below which a second thread does not pay.
pub(crate) const GRAIN: usize = 32 * 1024;
/// Elements of a block: three buffers of the widest type fit the first-level cache.
pub(crate) const BLOCK: usize = 512;
/// Rows shorter than this are gathered, several to a block.
const SHORT_ROW: usize = 48;

/// `kernel(start, operands, out)` computes the elements `start..start + out.len()`.
pub(crate) type Kernel<'a, T, O, const N: usize> = &'a (dyn Fn(usize, [&[T]; N], &mut [O]) + Sync);

/// A kernel over the types of computation.
pub(crate) trait RealKernel<const N: usize>: Sync {
    /// Computes `out` from the operands' elements at the same positions.
    fn run<R: Real>(&self, operands: [&[R]; N], out: &mut [R]);
}

/// All elements of a tensor's storage, to be read through its layout.
///
/// # Panics
/// If `T` is not the tensor's element type: the dispatch above has chosen it.
pub(crate) fn raw<T: Element>(t: &Tensor) -> &[T] {
    t.storage().cpu().as_slice()
}

/// Runs the body with the unsigned integer of an element's size, for what only copies bits.
macro_rules! on_bits {
    ($dtype:expr, $u:ident => $body:expr) => {
        match $dtype.size() {
            1 => {
                type $u = u8;
                $body
            }
            2 => {
                type $u = u16;
                $body
            }
            4 => {
                type $u = u32;
                $body
            }
            _ => {
                type $u = u64;
                $body
            }
        }
    };
}
pub(crate) use on_bits;

/// Runs the body with the Rust type of elements that the processor computes with; then come the arms
/// of half types.
macro_rules! on_native {
    ($dtype:expr, $t:ident => $body:expr; $($half:tt)*) => {
        $crate::dispatch_types!(
            $dtype, $t => $body,
            [F32: f32, F64: f64, I64: i64, I32: i32, U8: u8, Bool: $crate::Bool];
            $($half)*
        )
    };
}
pub(crate) use on_native;

/// All elements of a tensor's storage as bits, to be read through its layout.
pub(crate) fn raw_bits<U: Pod>(t: &Tensor) -> &[U] {
    t.storage().cpu().as_raw()
}

/// The value of a number, which is an `f64` in the host's memory.
pub(crate) fn number(scalar: Scalar<'_>) -> f64 {
    match scalar {
        Scalar::Host(value) => value,
        Scalar::Device(t) => raw::<f64>(t)[t.layout().offset()],
    }
}

/// Brings an operand into a form that the loop reads well: rows of neighbouring (or equal)
/// elements. Other views are gathered, in tiles.
pub(crate) fn readable(op: &'static str, t: &Tensor) -> Result<Tensor> {
    let layout = t.layout();
    let innermost = layout
        .shape()
        .iter()
        .zip(layout.strides().iter())
        .rfind(|(d, _)| **d != 1);
    match innermost {
        Some((_, &stride)) if stride > 1 => t.contiguous_for(op),
        _ => Ok(t.clone()),
    }
}

/// The operand [`readable`], and then stretched to `shape`, to which it broadcasts.
pub(crate) fn stretched(op: &'static str, t: &Tensor, shape: &Shape) -> Result<Tensor> {
    let t = readable(op, t)?;
    if t.shape() == shape {
        Ok(t)
    } else {
        t.broadcast_to(shape)
    }
}

/// Both operands, [`stretched`] to `shape`.
pub(crate) fn stretched_pair(
    op: &'static str,
    [a, b]: [&Tensor; 2],
    shape: &Shape,
) -> Result<[Tensor; 2]> {
    Ok([stretched(op, a, shape)?, stretched(op, b, shape)?])
}

/// `out[i] = kernel(operands[i])` over operands of `out`'s shape.
///
/// The kernel also gets the old contents of `out`, so it can update in place.
pub(crate) fn map<T: Element, O: Element, const N: usize>(
    operands: [&Tensor; N],
    out: &mut [O],
    kernel: Kernel<'_, T, O, N>,
) {
    let layouts = operands.map(Tensor::layout);
    let data = operands.map(raw::<T>);
    if layouts.iter().all(|l| l.is_contiguous()) {
        return parallel_pieces(out, GRAIN, |start, out| {
            let at = |k: usize| &data[k][layouts[k].offset() + start..][..out.len()];
            kernel(start, from_fn(at), out);
        });
    }
    let walk = Walk::new(layouts);
    let bits = data.map(cast_slice::<T, T::Bits>);
    parallel_pieces(out, GRAIN, |start, out| {
        let range = start..start + out.len();
        let emit = &mut |part: Range<usize>, x: [&[T::Bits]; N]| {
            let out = &mut out[part.start - start..][..part.len()];
            kernel(part.start, x.map(cast_slice), out);
        };
        if walk.row().0 >= SHORT_ROW {
            long_rows(&walk, bits, range, emit);
        } else {
            short_rows(layouts, bits, range, emit);
        }
    });
}

/// Takes the operands' elements of a part of a range.
type Emit<'a, U, const N: usize> = &'a mut dyn FnMut(Range<usize>, [&[U]; N]);

/// Row by row: neighbouring elements are passed as they lie, others go through a buffer.
fn long_rows<U: Pod, const N: usize>(
    walk: &Walk<N>,
    data: [&[U]; N],
    range: Range<usize>,
    emit: Emit<'_, U, N>,
) {
    let (_, strides) = walk.row();
    let mut buffers = [[U::zeroed(); BLOCK]; N];
    let longest = if strides == [1; N] { usize::MAX } else { BLOCK };
    walk.for_runs(range, |first, len, at| {
        for (k, buffer) in buffers
            .iter_mut()
            .enumerate()
            .filter(|(k, _)| strides[*k] == 0)
        {
            buffer[..len.min(BLOCK)].fill(data[k][at[k]]);
        }
        let mut done = 0;
        while done < len {
            let n = longest.min(len - done);
            for (k, &stride) in strides.iter().enumerate().filter(|(_, s)| **s > 1) {
                let from = &data[k][at[k] + done * stride..];
                copy_row(from, stride, &mut buffers[k][..n]);
            }
            let operand = |k: usize| match strides[k] {
                1 => &data[k][at[k] + done..][..n],
                _ => &buffers[k][..n],
            };
            let first = first + done;
            emit(first..first + n, from_fn(operand));
            done += n;
        }
    });
}

/// Block by block: each operand that is not contiguous is gathered into a buffer.
fn short_rows<U: Pod, const N: usize>(
    layouts: [&Layout; N],
    data: [&[U]; N],
    range: Range<usize>,
    emit: Emit<'_, U, N>,
) {
    let walks = layouts.map(|l| (!l.is_contiguous()).then(|| Walk::new([l])));
    let mut buffers = [[U::zeroed(); BLOCK]; N];
    for first in range.clone().step_by(BLOCK) {
        let part = first..range.end.min(first + BLOCK);
        let n = part.len();
        for (k, walk) in walks.iter().enumerate() {
            if let Some(walk) = walk {
                gather_range(data[k], walk, part.clone(), &mut buffers[k][..n]);
            }
        }
        let operand = |k: usize| match walks[k] {
            None => &data[k][layouts[k].offset() + first..][..n],
            Some(_) => &buffers[k][..n],
        };
        emit(part, from_fn(operand));
    }
}

/// [`map`] with a kernel over the types of computation, from and to tensors of one float type.
///
/// # Errors
/// [`UnsupportedDType`](crate::Error::UnsupportedDType) for an integer type.
pub(crate) fn map_real<const N: usize>(
    op: &'static str,
    operands: [&Tensor; N],
    out: &mut Tensor,
    kernel: &impl RealKernel<N>,
) -> Result<()> {
    dispatch_float!(op, out.dtype(), T => {
        map_computed::<T, N>(operands, out.make_mut()?, &|_, x, y| kernel.run(x, y));
    });
    Ok(())
}

/// [`map`] with a kernel over the type in which `T` computes. Half types are widened block by
/// block, and each result is rounded once.
pub(crate) fn map_computed<T: Computed, const N: usize>(
    operands: [&Tensor; N],
    out: &mut [T],
    kernel: Kernel<'_, C<T>, C<T>, N>,
) {
    if is_exact::<T>() {
        return map(operands, cast_slice_mut(out), kernel);
    }
    map(operands, out, &|start, x: [&[T]; N], y: &mut [T]| {
        let mut result = [C::<T>::ZERO; BLOCK];
        for_widened(x, |range, x| {
            let result = &mut result[..range.len()];
            kernel(start + range.start, x, result);
            convert::narrow(result, &mut y[range]);
        });
    });
}

/// Calls `f` with blocks of the operands, widened; with all of them where there is nothing to widen.
pub(crate) fn for_widened<T: Computed, const N: usize>(
    operands: [&[T]; N],
    mut f: impl FnMut(Range<usize>, [&[C<T>]; N]),
) {
    let len = operands[0].len();
    if is_exact::<T>() {
        return f(0..len, operands.map(cast_slice));
    }
    let mut buffers = [[C::<T>::ZERO; BLOCK]; N];
    for first in (0..len).step_by(BLOCK) {
        let n = BLOCK.min(len - first);
        for (buffer, x) in buffers.iter_mut().zip(operands) {
            convert::widen(&x[first..][..n], &mut buffer[..n]);
        }
        f(first..first + n, from_fn(|k| &buffers[k][..n]));
    }
}
