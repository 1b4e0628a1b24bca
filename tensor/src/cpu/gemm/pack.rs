//! Packing: operands copied into the order in which the kernels read them.

use crate::cpu::vector::Simd;

/// A block of an operand: element `(i, k)` is at `p[i * along + k * k_step]`, with `i` the row of
/// a stripe or the column of a vector.
#[derive(Clone, Copy)]
pub(super) struct Block<T> {
    pub p: *const T,
    /// Elements along `i`.
    pub len: usize,
    pub along: usize,
    pub kc: usize,
    pub k_step: usize,
}

impl<T> Block<T> {
    /// The same block of elements that are of type `U`.
    pub fn cast<U>(self) -> Block<U> {
        Block {
            p: self.p.cast(),
            len: self.len,
            along: self.along,
            kc: self.kc,
            k_step: self.k_step,
        }
    }
}

/// Packs panels of `width` columns: see [`vectors`].
pub(super) type PackVectors<T> = unsafe fn(Block<T>, usize, *mut T);
/// Packs tiles of `rows` stripes: see [`stripes`].
pub(super) type PackStripes<T> = unsafe fn(Block<T>, usize, *mut T);

/// Elements that [`vectors`] writes for `len` columns.
pub(super) fn packed_len(len: usize, kc: usize, lanes: usize) -> usize {
    len.next_multiple_of(lanes) * kc
}

/// Packs into panels of `width` columns, each `[k][column]`; the last panel has only as many
/// vectors as it needs, and arbitrary numbers where there is no column.
///
/// # Safety
/// `from` is readable, `to` has room for [`packed_len`] elements, the processor has `S`.
#[inline(always)]
pub(super) unsafe fn vectors<S: Simd>(from: Block<S::T>, width: usize, to: *mut S::T) {
    let Block {
        p,
        len,
        along,
        kc,
        k_step,
    } = from;
    // SAFETY: columns stay below `len` and rows below `kc` in `from`; a panel that starts at
    // column `c` starts at `c * kc` in `to`, and is as wide as `packed_len` counts it.
    unsafe {
        if along == 1 {
            let full = len / width;
            for k in 0..kc {
                let row = p.add(k * k_step);
                let mut c = 0;
                for panel in 0..full {
                    let dst = to.add(panel * width * kc + k * width);
                    while c < (panel + 1) * width {
                        S::store(dst.add(c - panel * width), S::load(row.add(c)));
                        c += S::LANES;
                    }
                }
                let (first, rest) = (full * width, len - full * width);
                let dst = to.add(first * kc + k * rest.next_multiple_of(S::LANES));
                while c < len {
                    S::store(
                        dst.add(c - first),
                        S::load_n(row.add(c), (len - c).min(S::LANES)),
                    );
                    c += S::LANES;
                }
            }
            return;
        }
        for first in (0..len).step_by(width) {
            let columns = width.min(len - first);
            let padded = columns.next_multiple_of(S::LANES);
            for c in (0..columns).step_by(S::LANES) {
                let part = Block {
                    p: p.wrapping_add((first + c) * along),
                    len: columns - c,
                    ..from
                };
                transposed::<S>(part, to.add(first * kc + c), padded);
            }
        }
    }
}

/// Writes up to a vector of rows of `from` as columns: `to[k * ds + i]`. Where there are fewer
/// rows than lanes, the other lanes of `to` get the last row again.
///
/// # Safety
/// `from` is readable, `to` writable for whole vectors at every `k * ds`, the processor has `S`.
#[inline(always)]
unsafe fn transposed<S: Simd>(from: Block<S::T>, to: *mut S::T, ds: usize) {
    let Block {
        p,
        len,
        along,
        kc,
        k_step,
    } = from;
    let rows: [usize; 16] = std::array::from_fn(|i| i.min(len - 1) * along);
    let whole = if k_step == 1 {
        kc / S::LANES * S::LANES
    } else {
        0
    };
    // SAFETY: `rows` stays below `len` and `k` below `kc`.
    unsafe {
        for k in (0..whole).step_by(S::LANES) {
            S::transpose(p.add(k), &rows, to.add(k * ds), ds);
        }
        for k in whole..kc {
            for (i, row) in rows.iter().enumerate().take(S::LANES) {
                *to.add(k * ds + i) = *p.add(row + k * k_step);
            }
        }
    }
}

/// Elements that [`stripes`] may write beyond the packed ones.
pub(super) const OVERRUN: usize = 16;

/// Packs into tiles of `rows` stripes (the last one of what is left), each `[k][row]`.
///
/// # Safety
/// `from` is readable, `to` has room for `len * kc + OVERRUN` elements, the processor has `S`.
#[inline(always)]
pub(super) unsafe fn stripes<S: Simd>(from: Block<S::T>, rows: usize, to: *mut S::T) {
    let Block {
        p,
        len,
        along,
        kc,
        k_step,
    } = from;
    // SAFETY: a tile that starts at row `first` starts at `first * kc`, and is `n` wide; rows stay
    // below `len`.
    unsafe {
        if along != 1 {
            for first in (0..len).step_by(rows) {
                let n = rows.min(len - first);
                // Whole vectors are written, and what runs over the end of a row is overwritten
                // after it: by the next row, by the vector before, or by the next tile.
                for i in (0..n).step_by(S::LANES).rev() {
                    let part = Block {
                        p: p.wrapping_add((first + i) * along),
                        len: n - i,
                        ..from
                    };
                    transposed::<S>(part, to.add(first * kc + i), n);
                }
            }
            return;
        }
        for k in 0..kc {
            for first in (0..len).step_by(rows) {
                let n = rows.min(len - first);
                let (src, dst) = (p.add(first + k * k_step), to.add(first * kc + k * n));
                for i in (0..n).step_by(S::LANES) {
                    let lanes = (n - i).min(S::LANES);
                    S::store_n(dst.add(i), S::load_n(src.add(i), lanes), lanes);
                }
            }
        }
    }
}
