//! What every CPU kernel stands on: buffers from a pool, threads under control, SIMD dispatch,
//! walks over strided views.

pub(crate) mod buffer;
pub(crate) mod convert;
pub(crate) mod elementwise;
pub mod gemm;
#[cfg_attr(phalanx_tsan, path = "helpers_tsan.rs")]
mod helpers;
pub(crate) mod home;
pub mod math;
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
pub(crate) mod working;

#[doc(hidden)]
pub use simd::limit;
pub use simd::{SimdLevel, simd_level, vectorize};
pub use threads::{parallel_chunks, parallel_for, threads, with_threads};
