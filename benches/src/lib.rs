//! Benchmarks: the workloads, how they are timed, and the peers that they are timed beside.
//!
//! `cargo xtask bench` prints tables and ratios; `cargo bench` follows single functions through Criterion.

#[cfg(feature = "cuda")]
pub mod card;
pub mod collectives;
pub mod ddp;
pub mod gemm;
pub mod mpi;
pub mod options;
pub mod overlap;
pub mod peer;
pub mod ranks;
pub mod sample;
pub mod startup;
pub mod table;
pub mod train;
pub mod work;
