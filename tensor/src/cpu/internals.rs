//! What this crate's benches and tests see of the CPU backend, and nobody else should: it may change
//! with any commit.

pub use super::gemm::{Bias, Epilogue, Kernels, MatMut, MatRef, Scalar, gemm, has_matrix_unit};
pub use super::simd::limit;
