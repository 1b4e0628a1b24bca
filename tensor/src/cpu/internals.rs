//! What this crate's benches and tests see of the CPU backend, and nobody else should: it may change
//! with any commit.

pub use super::gemm::{
    Bias, Epilogue, MatMut, MatRef, Scalar, gemm, gemm_at, gemm_on_unit, has_matrix_unit,
};
pub use super::simd::limit;
