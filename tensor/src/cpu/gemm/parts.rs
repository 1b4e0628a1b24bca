//! The small parts of the driver: where a tile goes, where its columns are, pieces of ranges.

use std::ops::Range;

/// Where the sums of a block go, and what is done to them: for its first stripe and column.
#[derive(Clone, Copy)]
pub(super) struct Target<A> {
    pub c: *mut A,
    pub ld: usize,
    pub bias_s: *const A,
    pub bias_v: *const A,
}

impl<A> Target<A> {
    /// The target of the tile that starts `ds` stripes and `dv` columns further on.
    pub fn at(self, ds: usize, dv: usize, swapped: bool) -> Target<A> {
        let by = if swapped {
            dv * self.ld + ds
        } else {
            ds * self.ld + dv
        };
        let bias = |p: *const A, by| if p.is_null() { p } else { p.wrapping_add(by) };
        Target {
            c: self.c.wrapping_add(by),
            ld: self.ld,
            bias_s: bias(self.bias_s, ds),
            bias_v: bias(self.bias_v, dv),
        }
    }
}

/// Columns as the kernel reads them.
#[derive(Clone, Copy)]
pub(super) struct Panel<A> {
    pub p: *const A,
    pub k_step: usize,
    pub width: usize,
    /// Vectors that hold them.
    pub vectors: usize,
}

/// Pieces of `range` of at most `size`.
pub(super) fn blocks(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range
        .step_by(size)
        .map(move |start| start..end.min(start.saturating_add(size)))
}

/// Pointer to an element of a slice, or null for an empty slice.
pub(super) fn at<T>(slice: &[T], index: usize) -> *const T {
    slice
        .get(index)
        .map_or(std::ptr::null(), std::ptr::from_ref)
}
