//! CUDA devices: cards, their three lanes, memory in stream order, kernels that are compiled at run
//! time. Everything is loaded when it is first used: a program with this feature starts on a machine
//! without CUDA, and using a card there is a typed error that says what is missing.

mod blas;
mod cache;
pub mod collective;
mod compile;
mod driver;
mod gpu;
mod index;
mod issue;
mod lanes;
mod memory;
mod modules;
mod moment;
mod peers;
mod rows;
mod staging;
mod tables;
mod transfer;
mod view;

pub(crate) use blas::{EPILOGUE_ALIGNMENT, Epilogue, Function, Gemm, Matrix};
pub(crate) use cache::Cache;
pub(crate) use compile::{Image, Target, compile, compile_aloud, key as kernel_key, nvrtc};
pub(crate) use gpu::gpu;
pub(crate) use issue::{Arg, BLOCK, Grid, Issue};
pub(crate) use lanes::Lane;
pub(crate) use memory::CudaStorage;
pub(crate) use modules::{FLOATS, NUMBERS, SIZES, Source, TYPES, Variant};
pub(crate) use moment::Moment;
pub(crate) use rows::{Rows, Walk, is_wide, rows_cu};
pub(crate) use transfer::{copy, download, upload, word};
pub(crate) use view::View;
