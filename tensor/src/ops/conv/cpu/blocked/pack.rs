//! Moving data into the forms that the blocked kernels read, and back: padded planes, packed
//! weights, channels innermost; and the scratch memory that holds them.
#![allow(unsafe_code)]

use super::lanes::Lanes;
use crate::cpu::scratch::Buffer;
use std::cell::RefCell;
use std::ops::Range;

/// Runs `f` with this thread's scratch buffers, which it keeps from call to call, so that a training
/// loop asks the system for none. A nested call gets fresh ones.
pub(super) fn with_scratch<const N: usize, R>(f: impl FnOnce(&mut [Buffer; N]) -> R) -> R {
    thread_local! {
        static KEPT: RefCell<Vec<Buffer>> = const { RefCell::new(Vec::new()) };
    }
    let mut mine = std::array::from_fn(|_| KEPT.with_borrow_mut(Vec::pop).unwrap_or_default());
    let result = f(&mut mine);
    // In reverse: the next call finds each buffer in its place, at its size.
    KEPT.with_borrow_mut(|kept| kept.extend(mine.into_iter().rev()));
    result
}

/// `start + Σ a·b` over the pairs, if it can be counted: for the guards before raw pointers, which
/// must not wrap where the accesses do.
#[inline(always)]
pub(super) fn end_of<const N: usize>(start: usize, pairs: [(usize, usize); N]) -> Option<usize> {
    (pairs.into_iter()).try_fold(start, |end, (a, b)| end.checked_add(a.checked_mul(b)?))
}

/// How an image's planes lie in padded scratch: zeros around, and the columns of each row sorted
/// by their remainder modulo `phases`, so that a strided walk reads neighbours.
#[derive(Clone, Copy, Debug)]
pub(super) struct Padded {
    /// Size of the plane that is copied.
    pub size: [usize; 2],
    /// Zeros before the first row and column.
    pub before: [usize; 2],
    /// Rows and columns read in all, padding included.
    pub rows: usize,
    pub cols: usize,
    /// Column classes; 1 keeps the order.
    pub phases: usize,
}

impl Padded {
    /// Columns of one class.
    fn phase_len(&self) -> usize {
        self.cols.div_ceil(self.phases)
    }

    /// Elements from row to row.
    pub(super) fn pitch(&self) -> usize {
        self.phase_len() * self.phases
    }

    /// Elements from plane to plane.
    pub(super) fn plane(&self) -> usize {
        self.pitch() * self.rows
    }

    /// Where the padded position `(row, col)` lies in a plane.
    pub(super) fn at(&self, row: usize, col: usize) -> usize {
        row * self.pitch() + col % self.phases * self.phase_len() + col / self.phases
    }

    /// Whether the scratch would be an exact copy.
    pub(super) fn is_identity(&self) -> bool {
        self.phases == 1 && self.before == [0, 0] && [self.rows, self.cols] == self.size
    }

    /// Copies `planes` planes from `from`; zeros around them must be there already, and stay.
    ///
    /// # Safety
    /// As [`Lanes`].
    #[inline(always)]
    pub(super) unsafe fn fill<V: Lanes>(&self, from: &[f32], planes: usize, to: &mut [f32]) {
        let [h, w] = self.size;
        let [top, left] = self.before;
        let rows = h.min(self.rows.saturating_sub(top));
        let cols = w.min(self.cols.saturating_sub(left));
        if rows == 0 || cols == 0 {
            return;
        }
        for p in 0..planes {
            let from = &from[p * h * w..][..h * w];
            let to = &mut to[p * self.plane()..][..self.plane()];
            for r in 0..rows {
                let from = &from[r * w..][..cols];
                let to = &mut to[(top + r) * self.pitch()..][..self.pitch()];
                match self.phases {
                    // SAFETY: both slices were checked to hold `cols` elements.
                    1 => unsafe {
                        V::copy(from.as_ptr(), to[left..][..cols].as_mut_ptr(), cols);
                    },
                    2 => {
                        let (even, odd) = to.split_at_mut(self.phase_len());
                        let classes = if left % 2 == 0 {
                            [even, odd]
                        } else {
                            [odd, even]
                        };
                        let [first, second] = classes;
                        let pairs = from.chunks_exact(2);
                        let last = pairs.remainder();
                        let (first, second) =
                            (&mut first[left / 2..], &mut second[left.div_ceil(2)..]);
                        for ((a, b), pair) in first.iter_mut().zip(&mut second[..]).zip(pairs) {
                            (*a, *b) = (pair[0], pair[1]);
                        }
                        if let [last] = last {
                            first[cols / 2] = *last;
                        }
                    }
                    s => {
                        for (c, v) in from.iter().enumerate() {
                            let c = c + left;
                            to[c % s * self.phase_len() + c / s] = *v;
                        }
                    }
                }
            }
        }
    }
}

/// Planes to channels innermost: `to[p·width + c] = from[c·plane + p]` for `channels` channels, and
/// zeros up to a whole block.
///
/// # Safety
/// As [`Lanes`]; `from` has `channels` planes, `to` has `plane` rows of `width` elements and
/// `width` is `channels` rounded up to whole blocks.
#[inline(always)]
pub(super) unsafe fn channels_last<V: Lanes>(
    from: &[f32],
    (channels, plane): (usize, usize),
    to: &mut [f32],
    width: usize,
) {
    assert!(end_of(0, [(channels, plane)]).is_some_and(|end| end <= from.len()));
    assert!(end_of(0, [(plane, width)]).is_some_and(|end| end <= to.len()));
    assert!(channels <= width && width.is_multiple_of(V::LANES));
    for c in (0..channels).step_by(V::LANES) {
        let rows = (channels - c).min(V::LANES);
        if plane < V::LANES {
            for p in 0..plane {
                let row = &mut to[p * width + c..][..V::LANES];
                row.fill(0.0);
                (0..rows).for_each(|i| row[i] = from[(c + i) * plane + p]);
            }
            continue;
        }
        // The last step overlaps the one before where the plane is no whole number of blocks.
        for p in (0..plane).step_by(V::LANES) {
            let p = p.min(plane - V::LANES);
            // SAFETY: reads `LANES` pixels from `p` of each of `rows` channels, writes `LANES`
            // channels from `c` of `LANES` pixels from `p`: in bounds by the assertion.
            unsafe {
                let from = from.as_ptr().add(c * plane + p);
                let to = to.as_mut_ptr().add(p * width + c);
                V::turn((from, plane, rows), (to, width, V::LANES));
            }
        }
    }
}

/// The way back for some pixels: `to[c·plane + p] = from[p·width + c]`. Where there are fewer than
/// a block of them, some before them go again.
///
/// # Safety
/// As [`channels_last`], with `from` and `to` exchanged; `from` holds all pixels before these, too.
#[inline(always)]
pub(super) unsafe fn planes<V: Lanes>(
    from: &[f32],
    width: usize,
    to: &mut [f32],
    (channels, plane): (usize, usize),
    pixels: Range<usize>,
) {
    assert!(pixels.end <= plane && channels <= width && width.is_multiple_of(V::LANES));
    assert!(end_of(0, [(channels, plane)]).is_some_and(|end| end <= to.len()));
    assert!(end_of(0, [(plane, width)]).is_some_and(|end| end <= from.len()));
    for c in (0..channels).step_by(V::LANES) {
        let rows = (channels - c).min(V::LANES);
        if pixels.end < V::LANES {
            for p in pixels.clone() {
                (0..rows).for_each(|i| to[(c + i) * plane + p] = from[p * width + c + i]);
            }
            continue;
        }
        for p in pixels.clone().step_by(V::LANES) {
            let p = p.min(pixels.end - V::LANES);
            // SAFETY: as in `channels_last`, the other way round.
            unsafe {
                let from = from.as_ptr().add(p * width + c);
                let to = to.as_mut_ptr().add(c * plane + p);
                V::turn((from, width, V::LANES), (to, plane, rows));
            }
        }
    }
}
