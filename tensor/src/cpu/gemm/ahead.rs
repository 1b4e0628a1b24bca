//! Memory that a kernel asks for while it multiplies, so that it is near when it is needed: the
//! elements of the result that it will write, and what is packed next.
//!
//! Both lie in short pieces far apart, where the processor's own prefetcher sees no pattern. They
//! are asked for a piece at a time, between the multiply-adds: all at once they would hold up the
//! loads of the operands.

use crate::cpu::prefetch::prefetch_line;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Pieces of memory at equal distances.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    p: *const u8,
    /// Bytes from piece to piece.
    step: usize,
    /// Bytes from the start of a piece to its last element.
    last: usize,
    left: usize,
}

impl Ahead {
    /// `count` pieces of `len` elements at `p`, `step` elements apart; at least one of each. Of a
    /// piece, the first two cache lines and the last one are asked for: all of it, if it is no
    /// longer than two lines, wherever it starts. The addresses need not be valid.
    pub fn new<T>(p: *const T, count: usize, step: usize, len: usize) -> Ahead {
        Ahead {
            p: p.cast(),
            step: step * size_of::<T>(),
            last: (len - 1) * size_of::<T>(),
            left: count,
        }
    }

    /// Nothing to ask for.
    pub const NONE: Ahead = Ahead {
        p: std::ptr::null(),
        step: 0,
        last: 0,
        left: 0,
    };

    /// Pieces that are left to ask for.
    #[inline(always)]
    pub fn left(&self) -> usize {
        self.left
    }

    /// Asks for the next piece, if there is one, for reading, in the second-level cache.
    #[inline(always)]
    pub fn read(&mut self) {
        self.ask(prefetch_line::<2, _>);
    }

    /// As [`read`](Self::read), for what will be written, in the first-level cache. To ask for its
    /// sole possession too (`prefetchw`) made no difference in products of 1,024 x 1,024 by 128 or
    /// 1,024 terms (2026-11-23).
    #[inline(always)]
    pub fn write(&mut self) {
        self.ask(prefetch_line::<1, _>);
    }

    #[inline(always)]
    fn ask(&mut self, hint: impl Fn(*const u8)) {
        if self.left == 0 {
            return;
        }
        hint(self.p);
        if self.last > LINE {
            hint(self.p.wrapping_add(LINE));
        }
        hint(self.p.wrapping_add(self.last));
        self.p = self.p.wrapping_add(self.step);
        self.left -= 1;
    }
}
