//! Walks over strided views: collapse what is contiguous, then visit the rest row by row.

use crate::layout::Layout;
use bytemuck::Pod;
use smallvec::SmallVec;
use std::ops::Range;

/// The views of `N` operands of one shape, with axes merged wherever all operands allow it and
/// axes of extent 1 dropped. The innermost axis is the last.
#[derive(Debug, Clone)]
pub(crate) struct Walk<const N: usize> {
    /// Extents and, for each operand, the stride; outermost first. At least one axis.
    pub(crate) axes: SmallVec<[(usize, [usize; N]); 4]>,
    offsets: [usize; N],
}

impl<const N: usize> Walk<N> {
    /// # Panics
    /// If the layouts differ in shape: the caller has broadcast them.
    pub(crate) fn new(layouts: [&Layout; N]) -> Walk<N> {
        let shape = layouts[0].shape();
        assert!(layouts.iter().all(|l| l.shape() == shape));
        let mut axes: SmallVec<[(usize, [usize; N]); 4]> = SmallVec::new();
        for (i, &extent) in shape.iter().enumerate() {
            if extent == 1 {
                continue;
            }
            let strides = layouts.map(|l| l.strides()[i]);
            match axes.last_mut() {
                Some((outer, s)) if (0..N).all(|k| s[k] == strides[k] * extent) => {
                    *outer *= extent;
                    *s = strides;
                }
                _ => axes.push((extent, strides)),
            }
        }
        if axes.is_empty() {
            axes.push((1, [1; N]));
        }
        Walk {
            axes,
            offsets: layouts.map(Layout::offset),
        }
    }

    /// Number of rows: the product of all extents but the innermost.
    pub(crate) fn rows(&self) -> usize {
        self.axes[..self.axes.len() - 1]
            .iter()
            .map(|a| a.0)
            .product()
    }

    /// Length and strides of a row.
    pub(crate) fn row(&self) -> (usize, [usize; N]) {
        self.axes[self.axes.len() - 1]
    }

    /// Calls `f(row, first)` for the rows in `rows`, with each operand's index of the row's first
    /// element.
    #[inline(always)]
    pub(crate) fn for_rows(&self, rows: Range<usize>, mut f: impl FnMut(usize, [usize; N])) {
        let outer = &self.axes[..self.axes.len() - 1];
        let mut at = self.offsets;
        let mut counter: SmallVec<[usize; 4]> = smallvec::smallvec![0; outer.len()];
        let mut rest = rows.start;
        for (i, (extent, strides)) in outer.iter().enumerate().rev() {
            counter[i] = rest % extent.max(&1);
            rest /= extent.max(&1);
            (0..N).for_each(|k| at[k] += counter[i] * strides[k]);
        }
        for row in rows {
            f(row, at);
            for (i, (extent, strides)) in outer.iter().enumerate().rev() {
                counter[i] += 1;
                (0..N).for_each(|k| at[k] += strides[k]);
                if counter[i] < *extent {
                    break;
                }
                (0..N).for_each(|k| at[k] -= counter[i] * strides[k]);
                counter[i] = 0;
            }
        }
    }

    /// Calls `f(first, len, at)` for the pieces of rows that make up the elements `range` (in
    /// row-major order): `len` elements from the `first` on, with each operand's index of it.
    #[inline(always)]
    pub(crate) fn for_runs(
        &self,
        range: Range<usize>,
        mut f: impl FnMut(usize, usize, [usize; N]),
    ) {
        let (len, strides) = self.row();
        if range.is_empty() {
            return;
        }
        self.for_rows(range.start / len..range.end.div_ceil(len), |row, mut at| {
            let first = range.start.max(row * len);
            let end = range.end.min((row + 1) * len);
            (0..N).for_each(|k| at[k] += (first - row * len) * strides[k]);
            f(first, end - first, at);
        });
    }
}

/// Copies the elements of a view into `dst`, in row-major order.
pub(crate) fn gather<T: Pod>(src: &[T], layout: &Layout, dst: &mut [T]) {
    debug_assert_eq!(dst.len(), layout.shape().numel());
    if dst.is_empty() {
        return;
    }
    let walk = Walk::new([layout]);
    if let [.., (rows, [1]), (cols, [col_stride])] = walk.axes[..]
        && col_stride > 1
    {
        return gather_transposed(src, &walk, (rows, cols, col_stride), dst);
    }
    let (len, [stride]) = walk.row();
    walk.for_rows(0..walk.rows(), |row, [at]| {
        copy_row(&src[at..], stride, &mut dst[row * len..][..len]);
    });
}

/// Copies the elements `range` (in row-major order) of a view.
pub(crate) fn gather_range<T: Copy>(src: &[T], walk: &Walk<1>, range: Range<usize>, dst: &mut [T]) {
    let (_, [stride]) = walk.row();
    let start = range.start;
    walk.for_runs(range, |first, len, [at]| {
        let dst = &mut dst[first - start..][..len];
        copy_row(&src[at..], stride, dst);
    });
}

/// `dst[i] = src[i · stride]`.
#[inline(always)]
pub(crate) fn copy_row<T: Copy>(src: &[T], stride: usize, dst: &mut [T]) {
    match stride {
        1 => dst.copy_from_slice(&src[..dst.len()]),
        0 => dst.fill(src[0]),
        _ => {
            let places = dst.iter_mut().zip(src.iter().step_by(stride));
            places.for_each(|(d, s)| *d = *s);
        }
    }
}

/// The case where the last axis but one is the contiguous one: in tiles, so that both sides touch
/// whole cache lines.
fn gather_transposed<T: Pod>(
    src: &[T],
    walk: &Walk<1>,
    (rows, cols, col_stride): (usize, usize, usize),
    dst: &mut [T],
) {
    const TILE: usize = 16;
    let mut matrix = 0;
    walk.for_rows(0..walk.rows(), |row, [at]| {
        if row % rows != 0 {
            return; // one visit per matrix
        }
        let dst = &mut dst[matrix * rows * cols..(matrix + 1) * rows * cols];
        matrix += 1;
        for r0 in (0..rows).step_by(TILE) {
            for c0 in (0..cols).step_by(TILE) {
                for r in r0..(r0 + TILE).min(rows) {
                    let line = &mut dst[r * cols..(r + 1) * cols];
                    for c in c0..(c0 + TILE).min(cols) {
                        line[c] = src[at + r + c * col_stride];
                    }
                }
            }
        }
    });
}
