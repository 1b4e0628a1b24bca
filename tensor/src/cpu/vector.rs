//! The few vector operations that products and convolutions need, once per instruction set.
//!
//! Everything here is `inline(always)`, so that the code takes the instruction set of the
//! `#[target_feature]` function at the root of the call.
#![allow(unsafe_code)]

use crate::cpu::math::Real;
use std::mem::MaybeUninit;

/// A value at the start of a cache line. Sums that a loop keeps in memory belong into one: where they
/// straddle two lines, which the depth of the stack decides, a sum took 2.1 times as long and the
/// gradient of layer normalisation 1.5 times (AVX-512, 2026-11-27).
#[repr(align(64))]
pub(crate) struct Aligned<T>(pub(crate) T);

/// The larger one; `x` if it is not a number.
#[inline(always)]
pub(crate) fn at_least<T: PartialOrd>(x: T, floor: T) -> T {
    if floor > x { floor } else { x }
}

/// One vector of an instruction set.
///
/// # Safety
/// Every method needs the instruction set that the type is named after; `load` and `store` need
/// `LANES` (their `_n` forms: `n <= LANES`) elements at the pointer, of any alignment.
pub(crate) trait Simd: Copy {
    type T: Real;
    type V: Copy;
    const LANES: usize;
    unsafe fn splat(x: Self::T) -> Self::V;
    unsafe fn load(p: *const Self::T) -> Self::V;
    unsafe fn store(p: *mut Self::T, v: Self::V);
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// `fma` of single numbers, with the same bits.
    fn fma1(a: Self::T, b: Self::T, c: Self::T) -> Self::T;
    /// Lane by lane as the function.
    unsafe fn at_least(v: Self::V, floor: Self::V) -> Self::V;
    /// The first `n` elements; the other lanes are zero.
    #[inline(always)]
    unsafe fn load_n(p: *const Self::T, n: usize) -> Self::V {
        let mut lanes = [Self::T::ZERO; 16];
        // SAFETY: the caller promises `n <= LANES <= 16` elements at `p`.
        unsafe {
            std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n);
            Self::load(lanes.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store_n(p: *mut Self::T, v: Self::V, n: usize) {
        let mut lanes = [const { MaybeUninit::<Self::T>::uninit() }; 16];
        // SAFETY: the caller promises room for `n <= LANES <= 16` elements at `p`.
        unsafe {
            Self::store(lanes.as_mut_ptr().cast(), v);
            std::ptr::copy_nonoverlapping(lanes.as_ptr().cast(), p, n);
        }
    }
    /// `dst[c * ds + r] = src[rows[r] + c]` for `r, c < LANES`, in the order of `c`.
    ///
    /// # Safety
    /// Both blocks are valid for their accesses and do not overlap.
    #[inline(always)]
    unsafe fn transpose(src: *const Self::T, rows: &[usize; 16], dst: *mut Self::T, ds: usize) {
        for c in 0..Self::LANES {
            for (r, row) in rows.iter().enumerate().take(Self::LANES) {
                // SAFETY: forwarded from the caller.
                unsafe { *dst.add(c * ds + r) = *src.add(row + c) };
            }
        }
    }
}

/// Four lanes of `T` in plain Rust, for processors without the instruction sets below.
#[derive(Clone, Copy)]
pub(crate) struct Portable<T>(std::marker::PhantomData<T>);

impl<T: Real> Simd for Portable<T> {
    type T = T;
    type V = [T; 4];
    const LANES: usize = 4;
    #[inline(always)]
    unsafe fn splat(x: T) -> [T; 4] {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn load(p: *const T) -> [T; 4] {
        // SAFETY: forwarded from the caller.
        unsafe { p.cast::<[T; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut T, v: [T; 4]) {
        // SAFETY: forwarded from the caller.
        unsafe { p.cast::<[T; 4]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn fma(a: [T; 4], b: [T; 4], c: [T; 4]) -> [T; 4] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn fma1(a: T, b: T, c: T) -> T {
        a * b + c
    }
    #[inline(always)]
    unsafe fn mul(a: [T; 4], b: [T; 4]) -> [T; 4] {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn add(a: [T; 4], b: [T; 4]) -> [T; 4] {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn at_least(v: [T; 4], floor: [T; 4]) -> [T; 4] {
        std::array::from_fn(|i| at_least(v[i], floor[i]))
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2F32, Avx2F64, Avx512F32, Avx512F64, transpose_8x8, transpose_16x16};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Simd;
    use std::arch::x86_64::*;

    /// The operations that have the same form in all four instantiations.
    macro_rules! common {
        ($t:ty, $v:ty, $lanes:literal, $splat:ident, $load:ident, $store:ident, $fma:ident,
         $mul:ident, $add:ident, $max:ident) => {
            type T = $t;
            type V = $v;
            const LANES: usize = $lanes;
            #[inline(always)]
            unsafe fn splat(x: $t) -> $v {
                // SAFETY: the caller vouches for the instruction set (as in all that follow).
                unsafe { $splat(x) }
            }
            #[inline(always)]
            unsafe fn load(p: *const $t) -> $v {
                // SAFETY: forwarded from the caller.
                unsafe { $load(p) }
            }
            #[inline(always)]
            unsafe fn store(p: *mut $t, v: $v) {
                // SAFETY: forwarded from the caller.
                unsafe { $store(p, v) }
            }
            #[inline(always)]
            unsafe fn fma(a: $v, b: $v, c: $v) -> $v {
                // SAFETY: see `splat`.
                unsafe { $fma(a, b, c) }
            }
            #[inline(always)]
            fn fma1(a: $t, b: $t, c: $t) -> $t {
                a.mul_add(b, c)
            }
            #[inline(always)]
            unsafe fn mul(a: $v, b: $v) -> $v {
                // SAFETY: see `splat`.
                unsafe { $mul(a, b) }
            }
            #[inline(always)]
            unsafe fn add(a: $v, b: $v) -> $v {
                // SAFETY: see `splat`.
                unsafe { $add(a, b) }
            }
            #[inline(always)]
            unsafe fn at_least(v: $v, floor: $v) -> $v {
                // `max` returns its second operand when either is not a number.
                // SAFETY: see `splat`.
                unsafe { $max(floor, v) }
            }
        };
    }

    /// Sixteen `f32` in AVX-512.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512F32;
    impl Simd for Avx512F32 {
        common!(
            f32,
            __m512,
            16,
            _mm512_set1_ps,
            _mm512_loadu_ps,
            _mm512_storeu_ps,
            _mm512_fmadd_ps,
            _mm512_mul_ps,
            _mm512_add_ps,
            _mm512_max_ps
        );
        #[inline(always)]
        unsafe fn load_n(p: *const f32, n: usize) -> __m512 {
            // SAFETY: masked-off lanes are not accessed.
            unsafe { _mm512_maskz_loadu_ps(((1u32 << n) - 1) as u16, p) }
        }
        #[inline(always)]
        unsafe fn store_n(p: *mut f32, v: __m512, n: usize) {
            // SAFETY: masked-off lanes are not accessed.
            unsafe { _mm512_mask_storeu_ps(p, ((1u32 << n) - 1) as u16, v) }
        }
        /// Inserts from memory gather 4 x 4 blocks in the 128-bit lanes, shuffles transpose inside
        /// the lanes. A row is read once, in order: rows that are a power of two apart compete
        /// for the same lines of the cache.
        #[inline(always)]
        unsafe fn transpose(src: *const f32, rows: &[usize; 16], dst: *mut f32, ds: usize) {
            // SAFETY: forwarded from the caller.
            unsafe {
                // `quads[i][q]`: columns 4q to 4q + 3 of rows i, i + 4, i + 8, i + 12. (Loops, not
                // closures: a closure that is not inlined loses the instruction set.)
                let mut quads = [[_mm512_setzero_ps(); 4]; 4];
                for (i, quad) in quads.iter_mut().enumerate() {
                    for (q, v) in quad.iter_mut().enumerate() {
                        *v = _mm512_castps128_ps512(_mm_loadu_ps(src.add(rows[i] + 4 * q)));
                    }
                    for (q, v) in quad.iter_mut().enumerate() {
                        let four = _mm_loadu_ps(src.add(rows[i + 4] + 4 * q));
                        *v = _mm512_insertf32x4::<1>(*v, four);
                    }
                    for (q, v) in quad.iter_mut().enumerate() {
                        let four = _mm_loadu_ps(src.add(rows[i + 8] + 4 * q));
                        *v = _mm512_insertf32x4::<2>(*v, four);
                    }
                    for (q, v) in quad.iter_mut().enumerate() {
                        let four = _mm_loadu_ps(src.add(rows[i + 12] + 4 * q));
                        *v = _mm512_insertf32x4::<3>(*v, four);
                    }
                }
                let [qa, qb, qc, qd] = quads;
                for (q, (((a, b), c), d)) in qa.into_iter().zip(qb).zip(qc).zip(qd).enumerate() {
                    let ab_lo = _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
                    let ab_hi = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
                    let cd_lo = _mm512_castps_pd(_mm512_unpacklo_ps(c, d));
                    let cd_hi = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
                    let columns = [
                        _mm512_unpacklo_pd(ab_lo, cd_lo),
                        _mm512_unpackhi_pd(ab_lo, cd_lo),
                        _mm512_unpacklo_pd(ab_hi, cd_hi),
                        _mm512_unpackhi_pd(ab_hi, cd_hi),
                    ];
                    for (i, column) in columns.into_iter().enumerate() {
                        _mm512_storeu_ps(dst.add((4 * q + i) * ds), _mm512_castpd_ps(column));
                    }
                }
            }
        }
    }

    /// Eight `f64` in AVX-512.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512F64;
    impl Simd for Avx512F64 {
        common!(
            f64,
            __m512d,
            8,
            _mm512_set1_pd,
            _mm512_loadu_pd,
            _mm512_storeu_pd,
            _mm512_fmadd_pd,
            _mm512_mul_pd,
            _mm512_add_pd,
            _mm512_max_pd
        );
        #[inline(always)]
        unsafe fn load_n(p: *const f64, n: usize) -> __m512d {
            // SAFETY: masked-off lanes are not accessed.
            unsafe { _mm512_maskz_loadu_pd(((1u32 << n) - 1) as u8, p) }
        }
        #[inline(always)]
        unsafe fn store_n(p: *mut f64, v: __m512d, n: usize) {
            // SAFETY: masked-off lanes are not accessed.
            unsafe { _mm512_mask_storeu_pd(p, ((1u32 << n) - 1) as u8, v) }
        }
    }

    /// Eight `f32` in AVX2 with FMA.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2F32;
    impl Simd for Avx2F32 {
        common!(
            f32,
            __m256,
            8,
            _mm256_set1_ps,
            _mm256_loadu_ps,
            _mm256_storeu_ps,
            _mm256_fmadd_ps,
            _mm256_mul_ps,
            _mm256_add_ps,
            _mm256_max_ps
        );
        #[inline(always)]
        unsafe fn load_n(p: *const f32, n: usize) -> __m256 {
            // SAFETY: masked-off lanes are not accessed.
            unsafe { _mm256_maskload_ps(p, first_lanes(n)) }
        }
        #[inline(always)]
        unsafe fn store_n(p: *mut f32, v: __m256, n: usize) {
            // SAFETY: masked-off lanes are not accessed.
            unsafe { _mm256_maskstore_ps(p, first_lanes(n), v) }
        }
        #[inline(always)]
        unsafe fn transpose(src: *const f32, rows: &[usize; 16], dst: *mut f32, ds: usize) {
            // SAFETY: forwarded from the caller.
            unsafe {
                let mut block = [_mm256_setzero_ps(); 8];
                for (v, row) in block.iter_mut().zip(rows) {
                    *v = Self::load(src.add(*row));
                }
                let columns = transpose_8x8(block);
                for (c, column) in columns.into_iter().enumerate() {
                    Self::store(dst.add(c * ds), column);
                }
            }
        }
    }

    /// A mask of the first `n` of eight lanes.
    #[inline(always)]
    unsafe fn first_lanes(n: usize) -> __m256i {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), lane)
        }
    }

    /// Four `f64` in AVX2 with FMA.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2F64;
    impl Simd for Avx2F64 {
        common!(
            f64,
            __m256d,
            4,
            _mm256_set1_pd,
            _mm256_loadu_pd,
            _mm256_storeu_pd,
            _mm256_fmadd_pd,
            _mm256_mul_pd,
            _mm256_add_pd,
            _mm256_max_pd
        );
    }

    /// The transpose of eight rows of eight.
    ///
    /// # Safety
    /// Needs AVX.
    #[inline(always)]
    pub(crate) unsafe fn transpose_8x8(mut r: [__m256; 8]) -> [__m256; 8] {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            // 2 × 2 blocks, 4 × 4 blocks, then the halves.
            let mut t = r;
            for i in 0..4 {
                t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            for i in 0..2 {
                let [a, b, c, d] = [t[4 * i], t[4 * i + 1], t[4 * i + 2], t[4 * i + 3]];
                r[4 * i] = _mm256_shuffle_ps::<0x44>(a, c);
                r[4 * i + 1] = _mm256_shuffle_ps::<0xee>(a, c);
                r[4 * i + 2] = _mm256_shuffle_ps::<0x44>(b, d);
                r[4 * i + 3] = _mm256_shuffle_ps::<0xee>(b, d);
            }
            for i in 0..4 {
                t[i] = _mm256_permute2f128_ps::<0x20>(r[i], r[4 + i]);
                t[4 + i] = _mm256_permute2f128_ps::<0x31>(r[i], r[4 + i]);
            }
            t
        }
    }

    /// The transpose of sixteen rows of sixteen.
    ///
    /// # Safety
    /// Needs AVX-512.
    #[inline(always)]
    pub(crate) unsafe fn transpose_16x16(mut r: [__m512; 16]) -> [__m512; 16] {
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            // 2 × 2 blocks, 4 × 4 blocks, then the 128-bit quarters.
            let mut t = r;
            for i in 0..8 {
                t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            for i in 0..4 {
                let [a, b, c, d] = [t[4 * i], t[4 * i + 1], t[4 * i + 2], t[4 * i + 3]];
                r[4 * i] = _mm512_shuffle_ps::<0x44>(a, c);
                r[4 * i + 1] = _mm512_shuffle_ps::<0xee>(a, c);
                r[4 * i + 2] = _mm512_shuffle_ps::<0x44>(b, d);
                r[4 * i + 3] = _mm512_shuffle_ps::<0xee>(b, d);
            }
            for i in 0..4 {
                // r[4k + i] holds columns i, 4 + i, 8 + i, 12 + i of rows 4k..4k + 4.
                let [a, b, c, d] = [r[i], r[4 + i], r[8 + i], r[12 + i]];
                let ab_even = _mm512_shuffle_f32x4::<0x88>(a, b);
                let ab_odd = _mm512_shuffle_f32x4::<0xdd>(a, b);
                let cd_even = _mm512_shuffle_f32x4::<0x88>(c, d);
                let cd_odd = _mm512_shuffle_f32x4::<0xdd>(c, d);
                t[i] = _mm512_shuffle_f32x4::<0x88>(ab_even, cd_even);
                t[8 + i] = _mm512_shuffle_f32x4::<0xdd>(ab_even, cd_even);
                t[4 + i] = _mm512_shuffle_f32x4::<0x88>(ab_odd, cd_odd);
                t[12 + i] = _mm512_shuffle_f32x4::<0xdd>(ab_odd, cd_odd);
            }
            t
        }
    }
}
