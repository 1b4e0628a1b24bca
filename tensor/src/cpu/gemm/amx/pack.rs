//! Packing: strips of an operand split into `bf16` parts, in the order of the tiles.
//!
//! A step of a strip is 32 rows (or columns) by 32 terms: two tiles for each part, high, middle,
//! low. A tile of the left operand has a row for each of its rows, of 32 terms in pairs; one of the
//! right operand has a row for each pair of terms, of 16 columns. So one is the other with pairs
//! transposed, and which way a pair of terms comes out of memory decides who needs it.

use super::super::pack::Block;
use super::extent::Extent;
use super::tile::{EDGE, TILE};
use crate::cpu::vector::transpose_16x16;
use half::bf16;
use std::arch::x86_64::*;
use std::mem::transmute;

/// Which operand of the unit a strip is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Rows,
    Columns,
}

/// Packs up to [`EDGE`] rows or columns, each multiplied by the power of two if there is one; what
/// is missing, and terms up to a multiple of 32, become zero. Tells their magnitudes, before the
/// multiplication.
///
/// # Safety
/// The block is readable, one of its steps is one; `to` is writable for as many steps as the
/// block's terms need and aligned to 64 bytes; the processor has the unit and AVX-512.
pub(super) type Pack<T> = unsafe fn(Block<T>, Part, Option<f32>, *mut u8) -> Extent;

/// A pair of vectors becomes `PARTS` vectors of pairs of terms.
///
/// Which terms of a step make a pair is the type's choice, as long as both operands choose alike:
/// a sum of products does not care.
trait Source: Copy {
    const PARTS: usize;
    /// Between the terms of a pair.
    const APART: usize;
    /// Between the first terms of a pair and of the next.
    const NEXT: usize;
    type Pair: Copy;
    /// Sixteen numbers at `p` and sixteen at `q`.
    ///
    /// # Safety
    /// They are readable; the processor has AVX-512 with its byte and word instructions (as for
    /// all methods).
    unsafe fn load(p: *const Self, q: *const Self) -> Self::Pair;
    /// The same where only the numbers in `mask` are there; the others become zero.
    ///
    /// # Safety
    /// Masked numbers are readable; and as [`load`](Source::load).
    unsafe fn load_some(p: *const Self, q: *const Self, mask: [u16; 2]) -> Self::Pair;
    /// Splits a pair after scaling it. `along`: both vectors hold terms, 32 that follow each
    /// other. Otherwise they hold one term each, of sixteen rows or columns.
    ///
    /// # Safety
    /// As [`load`](Source::load).
    unsafe fn split(pair: Self::Pair, scale: Option<f32>, along: bool) -> [__m512i; 3];
    /// Widens the extent by a pair.
    ///
    /// # Safety
    /// As [`load`](Source::load).
    unsafe fn measure(pair: Self::Pair, range: &mut [__m512i; 2]);
}

impl Source for f32 {
    const PARTS: usize = 3;
    const APART: usize = 16;
    const NEXT: usize = 1;
    type Pair = [__m512; 2];
    #[inline(always)]
    unsafe fn load(p: *const f32, q: *const f32) -> [__m512; 2] {
        // SAFETY: forwarded.
        unsafe { [_mm512_loadu_ps(p), _mm512_loadu_ps(q)] }
    }
    #[inline(always)]
    unsafe fn load_some(p: *const f32, q: *const f32, mask: [u16; 2]) -> [__m512; 2] {
        // SAFETY: forwarded; masked-off lanes are not accessed.
        unsafe {
            [
                _mm512_maskz_loadu_ps(mask[0], p),
                _mm512_maskz_loadu_ps(mask[1], q),
            ]
        }
    }
    /// (The kernel for `f32` does the same by the way: `tile.rs`.)
    ///
    /// In whole numbers, because a pair is then two lanes of 16 bits where it stands: rounded to
    /// the upper half by an addition, exact differences, and what is left after two parts has
    /// eight bits. (The instruction for conversion takes three of the two vector ports' slots, and
    /// its result has to be taken apart again.)
    #[inline(always)]
    unsafe fn split(pair: [__m512; 2], scale: Option<f32>, _: bool) -> [__m512i; 3] {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let mut x = pair;
            if let Some(scale) = scale {
                for x in &mut x {
                    *x = _mm512_mul_ps(*x, _mm512_set1_ps(scale));
                }
            }
            let half = _mm512_set1_epi32(0x8000);
            let upper = _mm512_set1_epi32(!0xffff);
            let mut parts = [_mm512_setzero_si512(); 3];
            for part in &mut parts[..2] {
                let mut rounded = [_mm512_setzero_si512(); 2];
                for (x, rounded) in x.iter_mut().zip(&mut rounded) {
                    *rounded = _mm512_add_epi32(_mm512_castps_si512(*x), half);
                    let wide = _mm512_and_si512(*rounded, upper);
                    *x = _mm512_sub_ps(*x, _mm512_castsi512_ps(wide));
                }
                *part = paired(rounded);
            }
            parts[2] = paired([_mm512_castps_si512(x[0]), _mm512_castps_si512(x[1])]);
            parts
        }
    }
    #[inline(always)]
    unsafe fn measure(pair: [__m512; 2], range: &mut [__m512i; 2]) {
        for x in pair {
            // SAFETY: forwarded.
            unsafe { measure(_mm512_castps_si512(x), range) }
        }
    }
}

/// The upper halves of the lanes of two vectors as pairs.
///
/// # Safety
/// Needs AVX-512 with its byte and word instructions.
#[inline(always)]
unsafe fn paired(x: [__m512i; 2]) -> __m512i {
    // SAFETY: the caller vouches for the instruction set.
    unsafe { _mm512_mask_mov_epi16(_mm512_srli_epi32::<16>(x[0]), 0xaaaa_aaaa, x[1]) }
}

/// Indices that weave the halves of a vector of 32 numbers of 16 bits.
const WEAVE: [u16; 32] = {
    let mut index = [0; 32];
    let mut i = 0;
    while i < 16 {
        index[2 * i] = i as u16;
        index[2 * i + 1] = 16 + i as u16;
        i += 1;
    }
    index
};

impl Source for bf16 {
    const PARTS: usize = 1;
    const APART: usize = 1;
    const NEXT: usize = 2;
    type Pair = [__m256i; 2];
    #[inline(always)]
    unsafe fn load(p: *const bf16, q: *const bf16) -> [__m256i; 2] {
        // SAFETY: forwarded.
        unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(q.cast())] }
    }
    #[inline(always)]
    unsafe fn load_some(p: *const bf16, q: *const bf16, mask: [u16; 2]) -> [__m256i; 2] {
        // SAFETY: forwarded; masked-off lanes are not accessed.
        unsafe {
            [
                _mm256_maskz_loadu_epi16(mask[0], p.cast()),
                _mm256_maskz_loadu_epi16(mask[1], q.cast()),
            ]
        }
    }
    #[inline(always)]
    unsafe fn split(pair: [__m256i; 2], _: Option<f32>, along: bool) -> [__m512i; 3] {
        // SAFETY: forwarded; the constant is 64 bytes.
        unsafe {
            let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(pair[0]), pair[1]);
            if along {
                return [both; 3];
            }
            let weave = _mm512_loadu_si512(WEAVE.as_ptr().cast());
            [_mm512_permutexvar_epi16(weave, both); 3]
        }
    }
    #[inline(always)]
    unsafe fn measure(pair: [__m256i; 2], range: &mut [__m512i; 2]) {
        for x in pair {
            // SAFETY: forwarded.
            unsafe { measure(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(x)), range) }
        }
    }
}

/// Widens a range by twice the magnitudes, so that the sign is gone; the least less one, so that
/// zero is the largest.
///
/// # Safety
/// Needs AVX-512.
#[inline(always)]
unsafe fn measure(bits: __m512i, range: &mut [__m512i; 2]) {
    // SAFETY: the caller vouches for AVX-512.
    unsafe {
        let twice = _mm512_add_epi32(bits, bits);
        range[0] = _mm512_min_epu32(range[0], _mm512_sub_epi32(twice, _mm512_set1_epi32(1)));
        range[1] = _mm512_max_epu32(range[1], twice);
    }
}

/// Packs the step of `from` that begins at term `k`. `ALONG`: terms follow each other in memory,
/// otherwise rows or columns do; `ACROSS`: the other way round than in the tiles.
///
/// # Safety
/// The block is readable, `to` writable for a step and aligned to 64 bytes; the processor has
/// AVX-512 with its byte and word instructions.
#[inline(always)]
unsafe fn step<T: Source, const ALONG: bool, const ACROSS: bool>(
    from: Block<T>,
    k: usize,
    scale: Option<f32>,
    to: *mut u8,
    range: &mut [__m512i; 2],
) {
    let lanes = |n: usize| ((1u32 << n.min(16)) - 1) as u16;
    let terms = from.kc - k;
    let whole = terms >= 32 && from.len == EDGE;
    // SAFETY: only rows below `len` and terms below `kc` are loaded; all of `2 * PARTS` tiles of
    // 1024 bytes is written.
    unsafe {
        for half in 0..2 {
            let first = half * 16;
            let len = from.len.saturating_sub(first);
            let tile = |part: usize| to.add((2 * part + half) * TILE).cast::<__m512i>();
            let mut lines = [[_mm512_setzero_si512(); 16]; 3];
            let base = from.p.wrapping_add(first * from.along + k * from.k_step);
            // `l` is a line of memory as much as an index of `lines`.
            #[allow(clippy::needless_range_loop)]
            for l in 0..16 {
                let (p, apart) = if ALONG {
                    (base.wrapping_add(l * from.along), 16)
                } else {
                    let p = base.wrapping_add(T::NEXT * l * from.k_step);
                    (p, T::APART * from.k_step)
                };
                let q = p.wrapping_add(apart);
                let pair = if whole {
                    T::load(p, q)
                } else {
                    let mask = if ALONG {
                        let there = |terms: usize| if l < len { lanes(terms) } else { 0 };
                        [there(terms), there(terms.saturating_sub(16))]
                    } else {
                        let there = |k: usize| if k < terms { lanes(len) } else { 0 };
                        [there(T::NEXT * l), there(T::NEXT * l + T::APART)]
                    };
                    T::load_some(p, q, mask)
                };
                T::measure(pair, range);
                let parts = T::split(pair, scale, ALONG);
                for part in 0..T::PARTS {
                    if ACROSS {
                        lines[part][l] = parts[part];
                    } else {
                        _mm512_store_si512(tile(part).add(l), parts[part]);
                    }
                }
            }
            if ACROSS {
                for (part, lines) in lines.into_iter().enumerate().take(T::PARTS) {
                    // Bits of any kind move alike.
                    let lines = transmute::<[__m512i; 16], [__m512; 16]>(lines);
                    let columns = transmute::<[__m512; 16], [__m512i; 16]>(transpose_16x16(lines));
                    for (l, column) in columns.into_iter().enumerate() {
                        _mm512_store_si512(tile(part).add(l), column);
                    }
                }
            }
        }
    }
}

/// Packs all steps of `from`: see [`step`].
///
/// # Safety
/// As [`Pack`].
#[inline(always)]
unsafe fn steps<T: Source, const ALONG: bool, const ACROSS: bool>(
    from: Block<T>,
    scale: Option<f32>,
    to: *mut u8,
) -> Extent {
    debug_assert!(from.len <= EDGE);
    // SAFETY: step `i` starts at term `32 i` and fills `2 * PARTS` tiles.
    unsafe {
        let mut range = [_mm512_set1_epi32(-1), _mm512_setzero_si512()];
        for (i, k) in (0..from.kc).step_by(32).enumerate() {
            let to = to.add(i * 2 * T::PARTS * TILE);
            step::<T, ALONG, ACROSS>(from, k, scale, to, &mut range);
        }
        let (min, max) = (
            _mm512_reduce_min_epu32(range[0]),
            _mm512_reduce_max_epu32(range[1]),
        );
        Extent::of(min, max)
    }
}

macro_rules! pack {
    ($name:ident, $t:ty) => {
        /// # Safety
        /// As [`Pack`].
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
        pub(super) unsafe fn $name(
            from: Block<$t>,
            part: Part,
            scale: Option<f32>,
            to: *mut u8,
        ) -> Extent {
            // SAFETY: forwarded.
            unsafe {
                match (from.k_step == 1, part) {
                    (true, Part::Rows) => steps::<$t, true, false>(from, scale, to),
                    (true, Part::Columns) => steps::<$t, true, true>(from, scale, to),
                    (false, Part::Rows) => steps::<$t, false, true>(from, scale, to),
                    (false, Part::Columns) => steps::<$t, false, false>(from, scale, to),
                }
            }
        }
    };
}
pack!(from_f32, f32);
pack!(from_bf16, bf16);
