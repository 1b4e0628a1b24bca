//! The CPU backend: buffers from a pool, threads under control, SIMD dispatch, walks over strided
//! views, products. What is public here is how many threads a program's operations use, and which
//! instructions; all else is for the kernels.

pub(crate) mod buffer;
pub(crate) mod convert;
pub(crate) mod elementwise;
pub(crate) mod gemm;
#[cfg_attr(phalanx_tsan, path = "helpers_tsan.rs")]
mod helpers;
pub(crate) mod home;
pub(crate) mod lock;
pub(crate) mod math;
pub(crate) mod pieces;
pub(crate) mod pool;
pub(crate) mod prefetch;
pub(crate) mod rows;
pub(crate) mod scratch;
pub(crate) mod share;
pub(crate) mod simd;
mod slow_build;
pub(crate) mod strided;
mod threads;
pub(crate) mod vector;
pub(crate) mod working;

#[doc(hidden)]
pub mod internals;

pub(crate) use simd::vectorize;
pub use simd::{SimdLevel, simd_level};
pub use threads::{threads, with_threads};
