//! CPU kernels. A reduction goes along rows, where a reduced axis lies contiguously (the last axes
//! of a plain tensor), or over whole columns at once, where a kept one does (the first axes).
//! Anything else is copied first.

use super::Reduction;
use crate::cpu::elementwise::{GRAIN, raw};
use crate::cpu::pieces::parallel_pieces;
use crate::cpu::scratch::NoMemory;
use crate::cpu::vector::Aligned;
use crate::cpu::vectorize;
use crate::ops::cast::cpu::cast;
use crate::{DType, Element, Result, Tensor, dispatch_types};
use smallvec::SmallVec;

/// A way to combine elements of type `T`.
trait Fold<T: Element>: Sync {
    /// What leaves every element as it is.
    const INIT: T;
    fn combine(a: T, b: T) -> T;
}

struct Sum;
struct Max;
struct Min;

macro_rules! folds {
    ($($t:ty: $zero:expr, $low:expr, $high:expr, |$a:ident, $b:ident| $add:expr, $nan:expr;)*) => {$(
        impl Fold<$t> for Sum {
            const INIT: $t = $zero;
            #[inline(always)]
            fn combine($a: $t, $b: $t) -> $t {
                $add
            }
        }
        impl Fold<$t> for Max {
            const INIT: $t = $low;
            #[inline(always)]
            fn combine($a: $t, $b: $t) -> $t {
                if $a > $b || $nan { $a } else { $b }
            }
        }
        impl Fold<$t> for Min {
            const INIT: $t = $high;
            #[inline(always)]
            fn combine($a: $t, $b: $t) -> $t {
                if $a < $b || $nan { $a } else { $b }
            }
        }
    )*};
}
folds! {
    f32: 0.0, f32::NEG_INFINITY, f32::INFINITY, |a, b| a + b, a.is_nan();
    f64: 0.0, f64::NEG_INFINITY, f64::INFINITY, |a, b| a + b, a.is_nan();
    i64: 0, i64::MIN, i64::MAX, |a, b| a.wrapping_add(b), false;
}

/// Axes as pairs of extent and stride, merged where they can be; extents of 1 are left out.
#[derive(Default)]
struct Axes(SmallVec<[(usize, usize); 4]>);

impl Axes {
    fn push(&mut self, extent: usize, stride: usize) {
        match self.0.last_mut() {
            _ if extent == 1 => {}
            Some((outer, s)) if *s == stride * extent => {
                *outer *= extent;
                *s = stride;
            }
            _ => self.0.push((extent, stride)),
        }
    }

    fn count(&self) -> usize {
        self.0.iter().map(|a| a.0).product()
    }

    /// Takes away the innermost axis where it is contiguous; its extent.
    fn pop_contiguous(&mut self) -> Option<usize> {
        let &(extent, 1) = self.0.last()? else {
            return None;
        };
        self.0.pop();
        Some(extent)
    }

    /// The offset of the element `i`, in row-major order.
    #[inline(always)]
    fn offset(&self, mut i: usize) -> usize {
        if let [(_, stride)] = self.0[..] {
            return i * stride;
        }
        let mut at = 0;
        for &(extent, stride) in self.0.iter().rev() {
            at += i % extent * stride;
            i /= extent;
        }
        at
    }
}

/// The tensor in a type that has kernels.
fn wide(op: &'static str, x: &Tensor) -> Result<Tensor> {
    match x.dtype() {
        DType::I32 | DType::U8 | DType::Bool => x.cast_for(op, DType::I64),
        dtype => x.cast_for(op, dtype.compute()),
    }
}

/// `out = reduce(x)` over the axes in `mask`.
pub(super) fn reduce(
    op: &'static str,
    kind: Reduction,
    x: &Tensor,
    mask: &[bool],
    out: &mut Tensor,
) -> Result<()> {
    let x = &wide(op, x)?;
    if out.dtype() != x.dtype() {
        let mut result = Tensor::allocate(op, out.shape().clone(), x.dtype(), x.device())?;
        reduce(op, kind, x, mask, &mut result)?;
        return cast(op, &result, out);
    }
    dispatch_types!(
        x.dtype(), T => match kind {
            Reduction::Sum => run::<T, Sum>(op, x, mask, out.make_mut()?),
            Reduction::Max => run::<T, Max>(op, x, mask, out.make_mut()?),
            Reduction::Min => run::<T, Min>(op, x, mask, out.make_mut()?),
        },
        [F32: f32, F64: f64, I64: i64];
        _ => unreachable!("`wide` gives one of the three"),
    )
}

fn run<T: Element, F: Fold<T>>(
    op: &'static str,
    x: &Tensor,
    mask: &[bool],
    out: &mut [T],
) -> Result<()> {
    if x.numel() == 0 {
        out.fill(F::INIT);
        return Ok(());
    }
    let (mut kept, mut reduced) = (Axes::default(), Axes::default());
    let strides = x.layout().strides().iter();
    for ((&extent, &stride), &is_reduced) in x.dims().iter().zip(strides).zip(mask) {
        let axes = if is_reduced { &mut reduced } else { &mut kept };
        axes.push(extent, stride);
    }
    let data = &raw::<T>(x)[x.layout().offset()..];
    if let Some(len) = reduced.pop_contiguous() {
        rows::<T, F>(data, &kept, &reduced, len, out).map_err(|e| e.on(op, x.device()))?;
    } else if let Some(len) = kept.pop_contiguous() {
        columns::<T, F>(data, &kept, &reduced, len, out);
    } else if x.numel() == 1 {
        out[0] = data[0];
    } else {
        return run::<T, F>(op, &x.copy_to(op, x.device())?, mask, out);
    }
    Ok(())
}

// ---- along rows --------------------------------------------------------------------------------

/// Elements that are folded in lanes, with few roundings, before the pairwise tree begins.
const RUN: usize = 1024;
/// Elements of a piece of a single long row: whole subtrees, so that pieces give the same bits.
const PIECE: usize = 64 * RUN;

/// Folds values as the leaves of a balanced tree, one after the other.
struct Pairwise<T, F> {
    /// `levels[k]` holds a subtree of 2ᵏ leaves where bit `k` of `leaves` is set.
    levels: [T; 48],
    leaves: u64,
    fold: std::marker::PhantomData<F>,
}

impl<T: Element, F: Fold<T>> Pairwise<T, F> {
    #[inline(always)]
    fn new() -> Self {
        let (levels, fold) = ([F::INIT; 48], std::marker::PhantomData);
        Pairwise {
            levels,
            leaves: 0,
            fold,
        }
    }

    #[inline(always)]
    fn push(&mut self, mut value: T) {
        let mut level = 0;
        while self.leaves >> level & 1 == 1 {
            value = F::combine(self.levels[level], value);
            level += 1;
        }
        self.levels[level] = value;
        self.leaves += 1;
    }

    /// The runs of a row.
    #[inline(always)]
    fn push_row(&mut self, row: &[T]) {
        for run in row.chunks(RUN) {
            self.push(fold_run::<T, F>(run));
        }
    }

    #[inline(always)]
    fn finish(self) -> T {
        let full = (0..48).filter(|k| self.leaves >> k & 1 == 1);
        let mut values = full.map(|k| self.levels[k]);
        let first = values.next().unwrap_or(F::INIT);
        values.fold(first, |low, high| F::combine(high, low))
    }
}

/// At most [`RUN`] elements, in lanes.
#[inline(always)]
fn fold_run<T: Element, F: Fold<T>>(x: &[T]) -> T {
    const LANES: usize = 64;
    if x.len() < 16 {
        return x.iter().fold(F::INIT, |a, b| F::combine(a, *b));
    }
    let Aligned(lanes) = &mut Aligned([F::INIT; LANES]);
    let chunks = x.chunks_exact(LANES);
    let tail = chunks.remainder();
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane = F::combine(*lane, *v);
        }
    }
    for (lane, v) in lanes.iter_mut().zip(tail) {
        *lane = F::combine(*lane, *v);
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        let (low, high) = lanes.split_at_mut(width);
        for (a, b) in low.iter_mut().zip(high) {
            *a = F::combine(*a, *b);
        }
    }
    lanes[0]
}

/// Each output is the fold of `reduced.count()` rows of `len` neighbouring elements.
fn rows<T: Element, F: Fold<T>>(
    x: &[T],
    kept: &Axes,
    reduced: &Axes,
    len: usize,
    out: &mut [T],
) -> Result<(), NoMemory> {
    let count = reduced.count();
    let fold = |at: usize| {
        vectorize(
            #[inline(always)]
            || {
                if count == 1 && len <= RUN {
                    return fold_run::<T, F>(&x[at..at + len]);
                }
                let mut tree = Pairwise::<T, F>::new();
                for r in 0..count {
                    tree.push_row(&x[at + reduced.offset(r)..][..len]);
                }
                tree.finish()
            },
        )
    };
    if let ([out], 1) = (&mut *out, count)
        && len > PIECE
    {
        let (mut partial, pieces) = (SmallVec::<[T; 64]>::new(), len.div_ceil(PIECE));
        partial
            .try_reserve_exact(pieces)
            .map_err(|_| NoMemory::of::<T>(pieces))?;
        partial.resize(pieces, F::INIT);
        parallel_pieces(&mut partial[..], 1, |first, partial| {
            for (i, p) in partial.iter_mut().enumerate() {
                let row = &x[(first + i) * PIECE..len.min((first + i + 1) * PIECE)];
                let mut tree = Pairwise::<T, F>::new();
                vectorize(
                    #[inline(always)]
                    || tree.push_row(row),
                );
                *p = tree.finish();
            }
        });
        let mut tree = Pairwise::<T, F>::new();
        partial.into_iter().for_each(|p| tree.push(p));
        *out = tree.finish();
        return Ok(());
    }
    parallel_pieces(out, (GRAIN / (count * len)).max(1), |first, out| {
        out.iter_mut()
            .enumerate()
            .for_each(|(i, o)| *o = fold(kept.offset(first + i)));
    });
    Ok(())
}

// ---- over columns ------------------------------------------------------------------------------

/// Columns that are folded together: they stay in the first-level cache.
const TILE: usize = 512;
/// Rows that are folded one after the other (four at a time) before the pairwise tree begins.
const DEPTH: usize = 64;

/// Outputs come in rows of `len` neighbours, each the fold of `reduced.count()` such rows.
fn columns<T: Element, F: Fold<T>>(
    x: &[T],
    kept: &Axes,
    reduced: &Axes,
    len: usize,
    out: &mut [T],
) {
    let count = reduced.count();
    let grain = (GRAIN / count).clamp(16, GRAIN);
    parallel_pieces(out, grain, |first, out| {
        let mut done = 0;
        while done < out.len() {
            let (row, column) = ((first + done) / len, (first + done) % len);
            let width = TILE.min(len - column).min(out.len() - done);
            let x = &x[kept.offset(row) + column..];
            fold_columns::<T, F>(x, reduced, 0, count, &mut out[done..done + width]);
            done += width;
        }
    });
}

/// `out` = the fold of the rows `first..first + count`.
fn fold_columns<T: Element, F: Fold<T>>(
    x: &[T],
    reduced: &Axes,
    first: usize,
    count: usize,
    out: &mut [T],
) {
    if count > DEPTH {
        // The left subtree is full, so that the shape of the tree depends on `count` alone.
        let left = (count / 2).next_multiple_of(DEPTH).next_power_of_two();
        let left = if left < count { left } else { left / 2 };
        fold_columns::<T, F>(x, reduced, first, left, out);
        let mut right = [F::INIT; TILE];
        let right = &mut right[..out.len()];
        fold_columns::<T, F>(x, reduced, first + left, count - left, right);
        vectorize(
            #[inline(always)]
            || {
                out.iter_mut()
                    .zip(right)
                    .for_each(|(a, b)| *a = F::combine(*a, *b));
            },
        );
        return;
    }
    vectorize(
        #[inline(always)]
        || {
            let width = out.len();
            let row = |r: usize| &x[reduced.offset(first + r)..][..width];
            out.fill(F::INIT);
            for r in (0..count / 4).map(|r| 4 * r) {
                let (a, b, c, d) = (row(r), row(r + 1), row(r + 2), row(r + 3));
                for (i, o) in out.iter_mut().enumerate() {
                    let four = F::combine(F::combine(a[i], b[i]), F::combine(c[i], d[i]));
                    *o = F::combine(*o, four);
                }
            }
            for r in count / 4 * 4..count {
                out.iter_mut()
                    .zip(row(r))
                    .for_each(|(o, v)| *o = F::combine(*o, *v));
            }
        },
    );
}

// ---- index of the extremum ---------------------------------------------------------------------

/// Where along `axis` the extremum is.
pub(super) fn arg_reduce(
    op: &'static str,
    kind: Reduction,
    x: &Tensor,
    axis: usize,
    out: &mut Tensor,
) -> Result<()> {
    let others = (0..x.rank()).filter(|&i| i != axis);
    let order: SmallVec<[isize; 6]> = others.chain([axis]).map(|i| i as isize).collect();
    let (len, out) = (x.dims()[axis], out.make_mut::<i64>()?);
    let x = wide(op, x)?.permute(&order)?.contiguous_for(op)?;
    dispatch_types!(
        x.dtype(), T => match kind {
            Reduction::Min => arg_rows::<T, Min>(x.as_slice()?, len, out),
            _ => arg_rows::<T, Max>(x.as_slice()?, len, out),
        },
        [F32: f32, F64: f64, I64: i64];
        _ => unreachable!("`wide` gives one of the three"),
    );
    Ok(())
}

fn arg_rows<T: Element, F: Fold<T>>(x: &[T], len: usize, out: &mut [i64]) {
    parallel_pieces(out, (GRAIN / len.max(1)).max(1), |first, out| {
        for (i, o) in out.iter_mut().enumerate() {
            let row = &x[(first + i) * len..][..len];
            let best = vectorize(
                #[inline(always)]
                || {
                    let mut best = F::INIT;
                    for run in row.chunks(RUN) {
                        best = F::combine(best, fold_run::<T, F>(run));
                    }
                    best
                },
            );
            *o = position(row, best) as i64;
        }
    });
}

/// Where `best`, which is in the row, is first; where it is NaN, the first NaN.
fn position<T: Element>(row: &[T], best: T) -> usize {
    const STEP: usize = 64;
    // Only NaN differs from itself.
    #[expect(clippy::eq_op)]
    let is_best = |v: &T| *v == best || *v != *v;
    // A step at a time without a branch, so that it vectorises.
    let mut start = 0;
    vectorize(
        #[inline(always)]
        || {
            for step in row.chunks_exact(STEP) {
                if step.iter().fold(false, |found, v| found | is_best(v)) {
                    break;
                }
                start += STEP;
            }
        },
    );
    start + row[start..].iter().position(is_best).unwrap_or(0)
}
