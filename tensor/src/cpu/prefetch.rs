//! Asking for memory before it is needed: for walks that the processor's own prefetcher loses
//! because they jump from plane to plane, and for data that the next step of a kernel will read.
#![allow(unsafe_code)]

use std::cell::Cell;

/// Asks for all cache lines of `data`, into the second-level cache. Does nothing where the
/// architecture has no way to ask.
#[inline(always)]
pub(crate) fn prefetch<T>(data: &[T]) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        let bytes = std::mem::size_of_val(data);
        let start = data.as_ptr().cast::<i8>();
        for at in (0..bytes).step_by(64) {
            // SAFETY: a prefetch is a hint, which is valid for any address.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(at)) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = data;
}

/// Data that will be read later, asked for a bit at a time behind other work.
pub(crate) struct Ahead<'a, T> {
    rest: Cell<&'a [T]>,
    piece: usize,
}

impl<'a, T> Ahead<'a, T> {
    /// Asks for `data` in `steps` equal steps.
    pub(crate) fn new(data: &'a [T], steps: usize) -> Self {
        let line = (64 / size_of::<T>()).max(1);
        Self {
            rest: Cell::new(data),
            piece: data.len().div_ceil(steps.max(1)).next_multiple_of(line),
        }
    }

    /// Asks for the next piece.
    #[inline(always)]
    pub(crate) fn step(&self) {
        let rest = self.rest.get();
        if !rest.is_empty() {
            let (piece, rest) = rest.split_at(self.piece.min(rest.len()));
            prefetch(piece);
            self.rest.set(rest);
        }
    }
}
