//! Work over several slices of one length, cut into pieces for the threads: each piece borrows its
//! own part of every slice, so a kernel that writes three arrays at once needs no `unsafe`.

use super::threads;
use std::ops::Range;
use std::sync::Mutex;

/// Something of a length that can be cut in two.
pub(crate) trait Cut: Send + Sized {
    /// How many items there are.
    fn items(&self) -> usize;
    /// The first `at` items, and the rest.
    fn cut(self, at: usize) -> (Self, Self);
}

impl<T: Sync> Cut for &[T] {
    fn items(&self) -> usize {
        self.len()
    }
    fn cut(self, at: usize) -> (Self, Self) {
        self.split_at(at)
    }
}

impl<T: Send> Cut for &mut [T] {
    fn items(&self) -> usize {
        self.len()
    }
    fn cut(self, at: usize) -> (Self, Self) {
        self.split_at_mut(at)
    }
}

/// Indices, for work that no slice stands for.
impl Cut for Range<usize> {
    fn items(&self) -> usize {
        self.len()
    }
    fn cut(self, at: usize) -> (Self, Self) {
        let middle = self.start + at;
        (self.start..middle, middle..self.end)
    }
}

/// A row-major matrix, cut between rows; the last row may be shorter.
#[derive(Debug)]
pub(crate) struct Rows<S> {
    /// All elements.
    pub(crate) data: S,
    /// Elements of a row, at least 1.
    pub(crate) width: usize,
}

impl<S: Cut> Cut for Rows<S> {
    fn items(&self) -> usize {
        self.data.items().div_ceil(self.width)
    }
    fn cut(self, at: usize) -> (Self, Self) {
        let width = self.width;
        let at = (at * width).min(self.data.items());
        let (head, tail) = self.data.cut(at);
        (Rows { data: head, width }, Rows { data: tail, width })
    }
}

/// Several of the same number of items, cut alike.
macro_rules! cut_tuple {
    ($($name:ident . $i:tt),+) => {
        impl<$($name: Cut),+> Cut for ($($name,)+) {
            fn items(&self) -> usize {
                let items = self.0.items();
                $(debug_assert_eq!(self.$i.items(), items);)+
                items
            }
            fn cut(self, at: usize) -> (Self, Self) {
                let parts = ($(self.$i.cut(at),)+);
                (($(parts.$i.0,)+), ($(parts.$i.1,)+))
            }
        }
    };
}
cut_tuple!(A.0, B.1);
cut_tuple!(A.0, B.1, C.2);
cut_tuple!(A.0, B.1, C.2, D.3);

/// Cuts `work` into one piece per thread, in multiples of `grain` items, and runs
/// `f(first, piece)` on all of them, on the calling thread and its helpers, where `first` is the
/// index of the piece's first item. With one thread, or no more than `grain` items, `f(0, work)`
/// runs on the caller.
///
/// The cut depends on the number of threads, so `f` must compute each item independently of the
/// piece that it comes in.
pub(crate) fn parallel_pieces<W: Cut>(work: W, grain: usize, f: impl Fn(usize, W) + Sync) {
    let len = work.items();
    let Some((helpers, step)) = threads::split(len, grain) else {
        return f(0, work);
    };
    // There are hundreds of kernels, so little is compiled for each: the rest knows the type of the work alone, or none.
    let pieces = Pieces::cut(work, len, step);
    helpers.run(pieces.0.len(), &|i| {
        if let Some(piece) = pieces.take(i) {
            f(i * step, piece);
        }
    });
}

/// Pieces of work, each of which one thread takes.
struct Pieces<W>(Vec<Mutex<Option<W>>>);

impl<W: Cut> Pieces<W> {
    /// Those of `step` items; the last one may be shorter.
    fn cut(mut work: W, len: usize, step: usize) -> Pieces<W> {
        let mut pieces = Vec::with_capacity(len.div_ceil(step));
        let mut left = len;
        while left > step {
            let (piece, rest) = work.cut(step);
            pieces.push(Mutex::new(Some(piece)));
            (work, left) = (rest, left - step);
        }
        pieces.push(Mutex::new(Some(work)));
        Pieces(pieces)
    }

    fn take(&self, i: usize) -> Option<W> {
        // Nobody panics while it is locked.
        self.0[i].lock().ok()?.take()
    }
}

/// Runs `f(i, plane)` for the planes of `plane` elements of `out`, in parallel, at least `grain`
/// planes to a thread.
pub(crate) fn parallel_planes<T: Send>(
    out: &mut [T],
    plane: usize,
    grain: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) {
    let width = plane.max(1);
    parallel_pieces(Rows { data: out, width }, grain, |first, planes| {
        let planes = planes.data.chunks_mut(width).enumerate();
        planes.for_each(|(i, plane)| f(first + i, plane));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_once_with_its_index() {
        for threads in [1, 2, 5] {
            let (mut a, mut b) = (vec![0usize; 100 * 3], vec![0usize; 100]);
            let c: Vec<usize> = (0..100).collect();
            let rows = Rows {
                data: &mut a[..],
                width: 3,
            };
            threads::with_threads(threads, || {
                parallel_pieces((rows, &mut b[..], &c[..]), 7, |first, (a, b, c)| {
                    for (i, row) in a.data.chunks_exact_mut(3).enumerate() {
                        row.fill(first + i);
                        b[i] += c[i];
                    }
                });
            });
            assert_eq!(b, c);
            assert!(a.iter().enumerate().all(|(i, &v)| v == i / 3));
        }
    }
}
