//! Asking for memory before it is needed: for walks that the processor's own prefetcher loses
//! because they jump from plane to plane, and for data that the next step of a kernel will read.
#![allow(unsafe_code)]

use std::cell::Cell;

/// Asks for the cache line of an address, which need not be valid, into the cache of this `LEVEL`, the
/// first or the second. Does nothing where the architecture has no way to ask.
#[inline(always)]
pub(crate) fn prefetch_line<const LEVEL: u8, T>(p: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint, which is valid for any address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        match LEVEL {
            1 => _mm_prefetch::<_MM_HINT_T0>(p.cast()),
            _ => _mm_prefetch::<_MM_HINT_T1>(p.cast()),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// Asks for all cache lines of `data`, into the second-level cache.
#[inline(always)]
pub(crate) fn prefetch<T>(data: &[T]) {
    let start = data.as_ptr().cast::<u8>();
    for at in (0..std::mem::size_of_val(data)).step_by(64) {
        prefetch_line::<2, _>(start.wrapping_add(at));
    }
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
