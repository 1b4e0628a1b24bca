//! Packing: strips of an operand split into `bf16` parts, in the order of the tiles.
//!
//! A step of a strip is 32 rows (or columns) by 32 terms: two tiles for each part, high, middle,
//! low. A tile of the left operand has a row for each of its rows, of 32 terms; one of the right
//! operand has a row for each *pair* of terms, of 16 columns. So one is the other with pairs
//! transposed, and which way a pair of terms comes out of memory decides who needs it.

use super::super::pack::Block;
use super::extent::Extent;
use super::tile::{EDGE, TILE};
use half::bf16;
use std::arch::x86_64::*;

/// Which operand of the unit a strip is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Rows,
    Columns,
}

/// Packs up to [`EDGE`] rows or columns, each multiplied by a power of two; what is missing, and
/// terms up to a multiple of 32, become zero. Tells their magnitudes, before the multiplication.
///
/// # Safety
/// The block is readable, one of its steps is one; `to` is writable for as many steps as the
/// block's terms need; the processor has the unit and AVX-512.
pub(super) type Pack<T> = unsafe fn(Block<T>, Part, f32, *mut u8) -> Extent;

/// A pair of vectors becomes `P` vectors of pairs.
trait Source: Copy {
    const PARTS: usize;
    type Pair: Copy;
    /// Sixteen numbers at `p`, of which `mask` are there, and sixteen at `q`.
    ///
    /// # Safety
    /// Masked numbers are readable, the processor has AVX-512 and its bf16 conversions.
    unsafe fn load(p: *const Self, q: *const Self, mask: [u16; 2]) -> Self::Pair;
    /// Splits a pair after scaling it. `woven`: element `i` of the first vector and element `i` of
    /// the second are a pair of terms, rather than elements `2i` and `2i + 1` of one vector.
    ///
    /// # Safety
    /// As `load`.
    unsafe fn split(pair: Self::Pair, scale: f32, woven: bool) -> [__m512i; 3];
    /// Widens the extent by a pair.
    ///
    /// # Safety
    /// As `load`.
    unsafe fn measure(pair: Self::Pair, range: &mut [__m512i; 2]);
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

#[inline(always)]
unsafe fn woven16(v: __m512i, woven: bool) -> __m512i {
    // SAFETY: the caller vouches for AVX-512; the constant is 64 bytes.
    unsafe {
        if woven {
            _mm512_permutexvar_epi16(_mm512_loadu_si512(WEAVE.as_ptr().cast()), v)
        } else {
            v
        }
    }
}

impl Source for f32 {
    const PARTS: usize = 3;
    type Pair = [__m512; 2];
    #[inline(always)]
    unsafe fn load(p: *const f32, q: *const f32, mask: [u16; 2]) -> [__m512; 2] {
        // SAFETY: forwarded; masked-off lanes are not accessed.
        unsafe {
            [
                _mm512_maskz_loadu_ps(mask[0], p),
                _mm512_maskz_loadu_ps(mask[1], q),
            ]
        }
    }
    #[inline(always)]
    unsafe fn split(pair: [__m512; 2], scale: f32, woven: bool) -> [__m512i; 3] {
        // SAFETY: the caller vouches for the instruction set; vectors of one size convert.
        unsafe {
            let scale = _mm512_set1_ps(scale);
            let mut x = [_mm512_mul_ps(pair[0], scale), _mm512_mul_ps(pair[1], scale)];
            let mut parts = [_mm512_setzero_si512(); 3];
            for (i, part) in parts.iter_mut().enumerate() {
                let rounded: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(x[1], x[0]));
                *part = woven16(rounded, woven);
                if i < 2 {
                    let wide = if woven {
                        [
                            _mm512_slli_epi32::<16>(*part),
                            _mm512_and_si512(*part, _mm512_set1_epi32(!0xffff)),
                        ]
                    } else {
                        let low = _mm512_castsi512_si256(rounded);
                        let high = _mm512_extracti64x4_epi64::<1>(rounded);
                        [
                            _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(low)),
                            _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(high)),
                        ]
                    };
                    x = [
                        _mm512_sub_ps(x[0], _mm512_castsi512_ps(wide[0])),
                        _mm512_sub_ps(x[1], _mm512_castsi512_ps(wide[1])),
                    ];
                }
            }
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

impl Source for bf16 {
    const PARTS: usize = 1;
    type Pair = [__m256i; 2];
    #[inline(always)]
    unsafe fn load(p: *const bf16, q: *const bf16, mask: [u16; 2]) -> [__m256i; 2] {
        // SAFETY: forwarded; masked-off lanes are not accessed.
        unsafe {
            [
                _mm256_maskz_loadu_epi16(mask[0], p.cast()),
                _mm256_maskz_loadu_epi16(mask[1], q.cast()),
            ]
        }
    }
    #[inline(always)]
    unsafe fn split(pair: [__m256i; 2], _: f32, woven: bool) -> [__m512i; 3] {
        // SAFETY: forwarded.
        unsafe {
            let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(pair[0]), pair[1]);
            [woven16(both, woven); 3]
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

/// Twice the magnitude, so that the sign is gone; less one, so that zero is the largest.
#[inline(always)]
unsafe fn measure(bits: __m512i, range: &mut [__m512i; 2]) {
    // SAFETY: the caller vouches for AVX-512.
    unsafe {
        let twice = _mm512_add_epi32(bits, bits);
        range[0] = _mm512_min_epu32(range[0], _mm512_sub_epi32(twice, _mm512_set1_epi32(1)));
        range[1] = _mm512_max_epu32(range[1], twice);
    }
}

/// Packs the first step of `from`, which begins at term `k`.
#[inline(always)]
unsafe fn step<T: Source, const WOVEN: bool, const ACROSS: bool>(
    from: Block<T>,
    k: usize,
    scale: f32,
    to: *mut u8,
    range: &mut [__m512i; 2],
) {
    let lanes = |n: usize| ((1u32 << n.min(16)) - 1) as u16;
    // SAFETY: only rows below `len` and terms below `kc` are loaded; all of `2 * PARTS` tiles of
    // 1024 bytes is written.
    unsafe {
        for half in 0..2 {
            let first = half * 16;
            let len = from.len.saturating_sub(first);
            let tile = |part: usize| to.add((2 * part + half) * TILE).cast::<__m512i>();
            let mut lines = [[_mm512_setzero_si512(); 16]; 3];
            let base = from.p.wrapping_add(first * from.along + k * from.k_step);
            let terms = from.kc - k;
            // `l` is a line of memory as much as an index of `lines`.
            #[allow(clippy::needless_range_loop)]
            for l in 0..16 {
                let (p, q, mask) = if WOVEN {
                    let there = |k: usize| if k < terms { lanes(len) } else { 0 };
                    let p = base.wrapping_add(2 * l * from.k_step);
                    (
                        p,
                        p.wrapping_add(from.k_step),
                        [there(2 * l), there(2 * l + 1)],
                    )
                } else {
                    let p = base.wrapping_add(l * from.along);
                    let there = |terms: usize| if l < len { lanes(terms) } else { 0 };
                    (
                        p,
                        p.wrapping_add(16),
                        [there(terms), there(terms.saturating_sub(16))],
                    )
                };
                let pair = T::load(p, q, mask);
                T::measure(pair, range);
                let parts = T::split(pair, scale, WOVEN);
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
                    let columns = transpose(lines);
                    for (l, column) in columns.into_iter().enumerate() {
                        _mm512_store_si512(tile(part).add(l), column);
                    }
                }
            }
        }
    }
}

/// Transposes 16 x 16 numbers of 32 bits.
#[inline(always)]
unsafe fn transpose(x: [__m512i; 16]) -> [__m512i; 16] {
    // SAFETY: the caller vouches for AVX-512.
    unsafe {
        let (mut a, mut b) = (x, x);
        for i in 0..8 {
            a[2 * i] = _mm512_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
            a[2 * i + 1] = _mm512_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
        }
        for i in 0..4 {
            for j in 0..2 {
                b[4 * i + 2 * j] = _mm512_unpacklo_epi64(a[4 * i + j], a[4 * i + j + 2]);
                b[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(a[4 * i + j], a[4 * i + j + 2]);
            }
        }
        // Quarter `q` of `b[4 i + c]` holds column `4 q + c` of the rows `4 i` to `4 i + 3`.
        for c in 0..4 {
            let low = [
                _mm512_shuffle_i32x4::<0x88>(b[c], b[4 + c]),
                _mm512_shuffle_i32x4::<0xdd>(b[c], b[4 + c]),
            ];
            let high = [
                _mm512_shuffle_i32x4::<0x88>(b[8 + c], b[12 + c]),
                _mm512_shuffle_i32x4::<0xdd>(b[8 + c], b[12 + c]),
            ];
            for odd in 0..2 {
                a[4 * odd + c] = _mm512_shuffle_i32x4::<0x88>(low[odd], high[odd]);
                a[8 + 4 * odd + c] = _mm512_shuffle_i32x4::<0xdd>(low[odd], high[odd]);
            }
        }
        a
    }
}

#[inline(always)]
unsafe fn steps<T: Source, const WOVEN: bool, const ACROSS: bool>(
    from: Block<T>,
    scale: f32,
    to: *mut u8,
) -> Extent {
    debug_assert!(from.len <= EDGE);
    // SAFETY: step `i` starts at term `32 i` and fills `2 * PARTS` tiles.
    unsafe {
        let mut range = [_mm512_set1_epi32(-1), _mm512_setzero_si512()];
        for (i, k) in (0..from.kc).step_by(32).enumerate() {
            let to = to.add(i * 2 * T::PARTS * TILE);
            step::<T, WOVEN, ACROSS>(from, k, scale, to, &mut range);
        }
        let (min, max) = (
            _mm512_reduce_min_epu32(range[0]),
            _mm512_reduce_max_epu32(range[1]),
        );
        // All zero: the least of what is less by one than zero is the greatest.
        Extent {
            min: if max == 0 {
                u32::MAX
            } else {
                min.wrapping_add(1) >> 1
            },
            max: max >> 1,
        }
    }
}

macro_rules! pack {
    ($name:ident, $t:ty) => {
        /// # Safety
        /// As [`Pack`].
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
        pub(super) unsafe fn $name(from: Block<$t>, part: Part, scale: f32, to: *mut u8) -> Extent {
            // SAFETY: forwarded.
            unsafe {
                match (from.k_step == 1, part) {
                    (true, Part::Rows) => steps::<$t, false, false>(from, scale, to),
                    (true, Part::Columns) => steps::<$t, false, true>(from, scale, to),
                    (false, Part::Rows) => steps::<$t, true, true>(from, scale, to),
                    (false, Part::Columns) => steps::<$t, true, false>(from, scale, to),
                }
            }
        }
    };
}
pack!(from_f32, f32);
pack!(from_bf16, bf16);
