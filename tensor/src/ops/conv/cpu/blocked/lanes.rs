//! What the blocked kernels need of a vector of `f32` beside its arithmetic: AVX-512 and AVX2.
#![allow(unsafe_code)]

use crate::cpu::simd::{run_avx2, run_avx512};
use crate::cpu::vector::{Avx2F32, Avx512F32, Simd, transpose_8x8, transpose_16x16};

/// One register of `f32`, a lane for each channel of a block.
///
/// # Safety
/// Every method may only be called where the processor has the features of the level, in code that
/// is inlined into [`run`](Lanes::run); pointers must be valid for what the method says.
pub(super) trait Lanes: Simd<T = f32> {
    /// Accumulators that fit the register file beside the operands of a multiply-add.
    const ACCUMULATORS: usize;

    /// Runs `f` compiled for the level.
    ///
    /// # Safety
    /// The processor has the features of the level.
    unsafe fn run<R>(f: impl FnOnce() -> R) -> R;

    /// Copies `len` elements; the ranges do not overlap.
    unsafe fn copy(from: *const f32, to: *mut f32, len: usize);
    /// Transposes a square matrix of [`LANES`](Simd::LANES): reads `rows_in` rows (zeros for the
    /// others), writes the first `rows_out` columns as rows. Rows are a vector at the given
    /// distances.
    unsafe fn turn(from: (*const f32, usize, usize), to: (*mut f32, usize, usize));
}

/// The tiles of channel blocks: first channel, number of blocks (2 or 1).
pub(super) fn tiles<V: Lanes>(channels: usize) -> impl Iterator<Item = (usize, usize)> {
    let blocks = move |c: usize| if c + V::LANES < channels { 2 } else { 1 };
    (0..channels)
        .step_by(2 * V::LANES)
        .map(move |c| (c, blocks(c)))
}

macro_rules! lanes {
    ($simd:ty, $lanes:literal, $accumulators:literal, $run:path, $transpose:path,
     |$from:ident, $to:ident, $len:ident| $copy:block) => {
        impl Lanes for $simd {
            const ACCUMULATORS: usize = $accumulators;

            #[inline(always)]
            unsafe fn run<R>(f: impl FnOnce() -> R) -> R {
                // SAFETY: the caller's promise.
                unsafe { $run(f) }
            }

            #[inline(always)]
            unsafe fn copy($from: *const f32, $to: *mut f32, $len: usize) {
                // SAFETY: the trait's contract; nothing beyond `len` is accessed.
                unsafe { $copy }
            }

            #[inline(always)]
            unsafe fn turn(
                (from, from_row, rows_in): (*const f32, usize, usize),
                (to, to_row, rows_out): (*mut f32, usize, usize),
            ) {
                // SAFETY: the trait's contract.
                unsafe {
                    let mut rows = [Self::splat(0.0); $lanes];
                    // All of them without a branch for each.
                    if rows_in >= $lanes {
                        for (i, row) in rows.iter_mut().enumerate() {
                            *row = Self::load(from.add(i * from_row));
                        }
                    } else {
                        for (i, row) in rows.iter_mut().enumerate() {
                            if i < rows_in {
                                *row = Self::load(from.add(i * from_row));
                            }
                        }
                    }
                    let columns = $transpose(rows);
                    if rows_out >= $lanes {
                        for (i, column) in columns.into_iter().enumerate() {
                            Self::store(to.add(i * to_row), column);
                        }
                    } else {
                        for (i, column) in columns.into_iter().enumerate() {
                            if i < rows_out {
                                Self::store(to.add(i * to_row), column);
                            }
                        }
                    }
                }
            }
        }
    };
}

// Sixteen lanes, 32 registers.
lanes!(
    Avx512F32,
    16,
    28,
    run_avx512,
    transpose_16x16,
    |from, to, len| {
        let whole = len & !15;
        for i in (0..whole).step_by(16) {
            Self::store(to.add(i), Self::load(from.add(i)));
        }
        let tail = Self::load_n(from.wrapping_add(whole), len - whole);
        Self::store_n(to.wrapping_add(whole), tail, len - whole);
    }
);

// Eight lanes, 16 registers. The last step of a copy overlaps the one before.
lanes!(Avx2F32, 8, 12, run_avx2, transpose_8x8, |from, to, len| {
    if len < 8 {
        for i in 0..len {
            *to.add(i) = *from.add(i);
        }
        return;
    }
    for i in (0..len - 7).step_by(8) {
        Self::store(to.add(i), Self::load(from.add(i)));
    }
    Self::store(to.add(len - 8), Self::load(from.add(len - 8)));
});
