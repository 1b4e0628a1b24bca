//! Run-time SIMD dispatch: one loop, compiled for each level, the best one chosen on the machine
//! where it runs. So a plain `cargo build --release` is as fast as `target-cpu=native`.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};

/// What the processor's vector unit offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
#[repr(u8)]
pub enum SimdLevel {
    /// What every processor of the target architecture has.
    Baseline,
    /// AVX2 and FMA (x86-64-v3).
    Avx2,
    /// AVX-512 F, BW, CD, DQ, VL (x86-64-v4).
    Avx512,
}

/// Stands in [`LEVEL`] until the processor has been asked.
const UNASKED: u8 = u8::MAX;
/// The level that kernels use, as a number: what the processor has, or less ([`limit`]). It says
/// nothing of other memory, so relaxed reads and writes serve.
static LEVEL: AtomicU8 = AtomicU8::new(UNASKED);
/// Whether products may go to the matrix unit, if there is one.
static MATRIX_UNIT: AtomicBool = AtomicBool::new(true);

/// The level that kernels use: at most what the processor has, which is asked once.
#[inline]
pub fn simd_level() -> SimdLevel {
    const BASELINE: u8 = SimdLevel::Baseline as u8;
    const AVX2: u8 = SimdLevel::Avx2 as u8;
    const AVX512: u8 = SimdLevel::Avx512 as u8;
    match LEVEL.load(Relaxed) {
        BASELINE => SimdLevel::Baseline,
        AVX2 => SimdLevel::Avx2,
        AVX512 => SimdLevel::Avx512,
        _ => ask(),
    }
}

/// Asks the processor, unless somebody has set a limit meanwhile.
#[cold]
fn ask() -> SimdLevel {
    let found = of_processor();
    match LEVEL.compare_exchange(UNASKED, found as u8, Relaxed, Relaxed) {
        Ok(_) => found,
        Err(_) => simd_level(), // somebody was faster
    }
}

/// What the processor has, whatever the limit.
pub(in crate::cpu) fn of_processor() -> SimdLevel {
    #[cfg(target_arch = "x86_64")]
    {
        let v3 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
            && is_x86_feature_detected!("bmi2");
        let v4 = v3
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512cd")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        if v4 {
            return SimdLevel::Avx512;
        }
        if v3 {
            return SimdLevel::Avx2;
        }
    }
    SimdLevel::Baseline
}

/// Lets the kernels of this process use `level` at most, and the matrix unit only if `matrix_unit`
/// says so: for tests of the code that another machine runs. A limit above what the processor has
/// changes nothing; a later limit replaces an earlier one.
///
/// # Safety
/// No operation runs meanwhile on any thread: a kernel that asks twice counts on one answer, for
/// instance for the layout of what it has packed.
#[doc(hidden)]
pub unsafe fn limit(level: SimdLevel, matrix_unit: bool) {
    LEVEL.store(of_processor().min(level) as u8, Relaxed);
    MATRIX_UNIT.store(matrix_unit, Relaxed);
}

/// Whether the [`limit`] leaves the matrix unit to products.
pub(in crate::cpu) fn matrix_unit_allowed() -> bool {
    simd_level() == SimdLevel::Avx512 && MATRIX_UNIT.load(Relaxed)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,bmi2")]
pub(crate) fn run_avx2<R>(f: impl FnOnce() -> R) -> R {
    f()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512cd,avx512dq,avx512vl")]
pub(crate) fn run_avx512<R>(f: impl FnOnce() -> R) -> R {
    f()
}

/// Runs `f` compiled for the best SIMD level of this machine.
///
/// The loops inside `f` vectorise for that level as far as they are inlined into it: keep the hot
/// loop in the closure itself, and mark the functions that it calls `#[inline(always)]`. Mark the
/// closure too, since a large one is otherwise compiled on its own, for the plainest processor,
/// where `mul_add` is a call into the C library: GELU's derivative took 61 ns an element instead
/// of 0.9 (2026-11-23).
#[inline(always)]
pub(crate) fn vectorize<R>(f: impl FnOnce() -> R) -> R {
    match simd_level() {
        // SAFETY: the level says that the processor has the features.
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Avx512 => unsafe { run_avx512(f) },
        // SAFETY: the level says that the processor has the features.
        #[cfg(target_arch = "x86_64")]
        SimdLevel::Avx2 => unsafe { run_avx2(f) },
        _ => f(),
    }
}

/// Defines a function whose body is compiled for each SIMD level; a call runs the best version.
///
/// Where [`vectorize`] depends on the optimiser to inline a closure into the version for a level,
/// here the body stands in each of them, so closures inside it are compiled for the level too: for
/// kernels too large for the optimiser to inline. Generic parameters stand in square brackets.
macro_rules! multiversion {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident [$($generics:tt)*] ($($arg:ident: $ty:ty),* $(,)?) $body:block
    ) => {
        $(#[$meta])*
        #[allow(unsafe_code)]
        $vis fn $name<$($generics)*>($($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(
                enable = "avx2,fma,f16c,bmi2,avx512f,avx512bw,avx512cd,avx512dq,avx512vl"
            )]
            fn avx512<$($generics)*>($($arg: $ty),*) $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,bmi2")]
            fn avx2<$($generics)*>($($arg: $ty),*) $body
            fn baseline<$($generics)*>($($arg: $ty),*) $body
            match $crate::cpu::simd_level() {
                // SAFETY: the level says that the processor has the features.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::SimdLevel::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: the level says that the processor has the features.
                #[cfg(target_arch = "x86_64")]
                $crate::cpu::SimdLevel::Avx2 => unsafe { avx2($($arg),*) },
                _ => baseline($($arg),*),
            }
        }
    };
}
pub(crate) use multiversion;
