//! The operations, a folder for each family: `mod.rs` checks, allocates and dispatches, by one
//! `match` on the storage; `cpu.rs` holds the CPU kernel. They are methods of
//! [`Tensor`](crate::Tensor).

pub mod binary;
pub mod cast;
pub mod compare;
pub mod conv;
mod embedding;
mod fill;
mod index;
pub mod linear;
mod matmul;
pub mod norm;
pub mod optim;
pub mod pool;
pub mod random;
pub mod reduce;
mod scalar;
mod shape;
pub mod softmax;
pub mod unary;
mod window;
mod working;

pub use scalar::Scalar;

/// The kernels for cards, by family.
#[cfg(feature = "cuda")]
pub(crate) const KERNELS: &[&crate::cuda::Source] = &[
    &binary::cuda::KERNELS,
    &binary::cuda::SUMS,
    &cast::cuda::KERNELS,
    &cast::cuda::SCALED,
    &compare::cuda::KERNELS,
    &conv::cuda::KERNELS,
    &fill::cuda::KERNELS,
    &index::cuda::KERNELS,
    &index::cuda::ADDS,
    &index::sort::KERNELS,
    &unary::cuda::KERNELS,
    &linear::cuda::KERNELS,
    &norm::cuda::batch_norm::KERNELS,
    &norm::cuda::batch_norm::BACKWARD,
    &norm::cuda::layer_norm::KERNELS,
    &norm::cuda::track::KERNELS,
    &optim::cuda::KERNELS,
    &pool::cuda::KERNELS,
    &random::cuda::KERNELS,
    &random::cuda::INTEGERS,
    &reduce::cuda::KERNELS,
    &reduce::cuda::ARGS,
    &shape::cuda::KERNELS,
    &softmax::cuda::KERNELS,
    &softmax::cuda::CROSS_ENTROPY,
];
