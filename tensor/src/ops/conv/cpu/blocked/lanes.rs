//! Vectors of `f32` that the blocked kernels are written over: AVX-512 and AVX2.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

/// One register of `f32`, a lane for each channel of a block.
///
/// # Safety
/// Every method may only be called where the processor has the features of the level, in code that
/// is inlined into [`run`](Lanes::run); pointers must be valid for what the method says.
pub(super) trait Lanes: Copy {
    /// Lanes of a register: the channels of a block.
    const LEN: usize;
    /// Accumulators that fit the register file beside the operands of a multiply-add.
    const ACCUMULATORS: usize;

    /// Runs `f` compiled for the level.
    ///
    /// # Safety
    /// The processor has the features of the level.
    unsafe fn run<R>(f: impl FnOnce() -> R) -> R;

    unsafe fn zero() -> Self;
    unsafe fn splat(value: f32) -> Self;
    /// Reads `LEN` elements at `from`.
    unsafe fn load(from: *const f32) -> Self;
    /// Writes `LEN` elements at `to`.
    unsafe fn store(self, to: *mut f32);
    /// `a · b + self`, rounded once.
    unsafe fn fma(self, a: Self, b: Self) -> Self;
    /// Copies `len` elements; the ranges do not overlap.
    unsafe fn copy(from: *const f32, to: *mut f32, len: usize);
    /// Transposes a `LEN × LEN` matrix: reads `rows_in` rows (zeros for the others), writes the
    /// first `rows_out` columns as rows. Rows are `LEN` elements at the given distances.
    unsafe fn transpose(from: (*const f32, usize, usize), to: (*mut f32, usize, usize));
}

/// Sixteen lanes, 32 registers.
pub(super) type Avx512 = __m512;
/// Eight lanes, 16 registers.
pub(super) type Avx2 = __m256;

#[target_feature(enable = "avx2,fma,bmi2,avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]
fn run_avx512<R>(f: impl FnOnce() -> R) -> R {
    f()
}

#[target_feature(enable = "avx2,fma,bmi2")]
fn run_avx2<R>(f: impl FnOnce() -> R) -> R {
    f()
}

impl Lanes for Avx512 {
    const LEN: usize = 16;
    const ACCUMULATORS: usize = 28;

    #[inline(always)]
    unsafe fn run<R>(f: impl FnOnce() -> R) -> R {
        // SAFETY: the caller's promise.
        unsafe { run_avx512(f) }
    }

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the trait's contract, here and below.
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm512_fmadd_ps(a, b, self) }
    }

    #[inline(always)]
    unsafe fn copy(from: *const f32, to: *mut f32, len: usize) {
        let whole = len & !15;
        // SAFETY: as above; the mask keeps the tail inside `len`.
        unsafe {
            for i in (0..whole).step_by(16) {
                _mm512_storeu_ps(to.add(i), _mm512_loadu_ps(from.add(i)));
            }
            let mask = ((1u32 << (len - whole)) - 1) as __mmask16;
            let tail = _mm512_maskz_loadu_ps(mask, from.wrapping_add(whole));
            _mm512_mask_storeu_ps(to.wrapping_add(whole), mask, tail);
        }
    }

    #[inline(always)]
    unsafe fn transpose(
        (from, from_row, rows_in): (*const f32, usize, usize),
        (to, to_row, rows_out): (*mut f32, usize, usize),
    ) {
        // SAFETY: as above.
        unsafe {
            let mut r = [_mm512_setzero_ps(); 16];
            if rows_in >= 16 {
                for (i, r) in r.iter_mut().enumerate() {
                    *r = _mm512_loadu_ps(from.add(i * from_row));
                }
            } else {
                for (i, r) in r.iter_mut().enumerate() {
                    if i < rows_in {
                        *r = _mm512_loadu_ps(from.add(i * from_row));
                    }
                }
            }
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
            if rows_out >= 16 {
                for (i, t) in t.iter().enumerate() {
                    _mm512_storeu_ps(to.add(i * to_row), *t);
                }
            } else {
                for (i, t) in t.iter().enumerate() {
                    if i < rows_out {
                        _mm512_storeu_ps(to.add(i * to_row), *t);
                    }
                }
            }
        }
    }
}

impl Lanes for Avx2 {
    const LEN: usize = 8;
    const ACCUMULATORS: usize = 12;

    #[inline(always)]
    unsafe fn run<R>(f: impl FnOnce() -> R) -> R {
        // SAFETY: the caller's promise.
        unsafe { run_avx2(f) }
    }

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the trait's contract, here and below.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_ps(to, self) }
    }

    #[inline(always)]
    unsafe fn fma(self, a: Self, b: Self) -> Self {
        // SAFETY: as above.
        unsafe { _mm256_fmadd_ps(a, b, self) }
    }

    #[inline(always)]
    unsafe fn copy(from: *const f32, to: *mut f32, len: usize) {
        // SAFETY: as above; the last step overlaps the one before.
        unsafe {
            if len < 8 {
                for i in 0..len {
                    *to.add(i) = *from.add(i);
                }
                return;
            }
            for i in (0..len - 7).step_by(8) {
                _mm256_storeu_ps(to.add(i), _mm256_loadu_ps(from.add(i)));
            }
            _mm256_storeu_ps(to.add(len - 8), _mm256_loadu_ps(from.add(len - 8)));
        }
    }

    #[inline(always)]
    unsafe fn transpose(
        (from, from_row, rows_in): (*const f32, usize, usize),
        (to, to_row, rows_out): (*mut f32, usize, usize),
    ) {
        // SAFETY: as above.
        unsafe {
            let mut r = [_mm256_setzero_ps(); 8];
            for (i, r) in r.iter_mut().enumerate() {
                if i < rows_in {
                    *r = _mm256_loadu_ps(from.add(i * from_row));
                }
            }
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
            for (i, t) in t.iter().enumerate() {
                if i < rows_out {
                    _mm256_storeu_ps(to.add(i * to_row), *t);
                }
            }
        }
    }
}
