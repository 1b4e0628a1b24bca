//! N-dimensional tensors on virtual CPU devices, with the kernels that training needs.
//!
//! A [`Tensor`] is a value: cloning it is cheap, and nobody changes it behind a holder's back.
//! It has a [`Shape`], a [`DType`] and lives on a [`Device`]; views (transpose, slice, broadcast,
//! reshape) share its storage. Operations are methods that return `Result`, with an [`Error`] that
//! names the operation and the shapes.
//!
//! # Devices
//!
//! [`Device::cpu`]`(i)` exists for every `i`: these are *virtual* devices, each with a memory
//! account and a buffer pool of its own. An operation on tensors of two devices is an error and
//! [`Tensor::to_device`] really copies, so a program that spreads a model over devices is
//! exercised, and its mistakes are caught, on a machine without a GPU.
//!
//! # A first program
//!
//! ```
//! use phalanx_tensor::{DType, Device, Tensor};
//!
//! # fn main() -> phalanx_tensor::Result<()> {
//! let device = Device::cpu(0);
//! let a = Tensor::from_vec(vec![1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], [2, 3], device)?;
//! let b = a.transpose(0, 1)?; // a view: no copy
//! assert_eq!(b.dims(), &[3, 2]);
//! assert_eq!(b.to_vec::<f32>()?, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
//! assert_eq!(device.memory()?.live, 6 * DType::F32.size());
//! # Ok(())
//! # }
//! ```
//!
//! # In your project
//!
//! The profile of this workspace does not reach yours, so ask for optimised dependencies: without the
//! last two lines, a debug build is some 50 to 110 times slower, and a line on stderr says so.
//!
//! ```toml
//! [dependencies]
//! phalanx-tensor = { path = "../phalanx/tensor" }
//!
//! [profile.dev.package."*"]
//! opt-level = 3
//! ```
//!
//! # Operations
//!
//! Each family is a folder of `ops/`. Where a derivative is not one other operation there is a
//! `…_backward`, named as in PyTorch.
//!
//! | family | for example |
//! | --- | --- |
//! | views | [`reshape`](Tensor::reshape), [`transpose`](Tensor::transpose), [`narrow`](Tensor::narrow), [`broadcast_to`](Tensor::broadcast_to) |
//! | [unary](ops::unary) | [`relu`](Tensor::relu), [`exp`](Tensor::exp), [`gelu`](Tensor::gelu) |
//! | [binary](ops::binary), [compare](ops::compare) | [`add`](Tensor::add), [`mul_scalar`](Tensor::mul_scalar), [`lt`](Tensor::lt), [`where_cond`](Tensor::where_cond): with broadcasting |
//! | [reduce](ops::reduce) | [`sum`](Tensor::sum), [`mean`](Tensor::mean), [`argmax`](Tensor::argmax), [`sum_to_shape`](Tensor::sum_to_shape) |
//! | [conv](ops::conv), [pool](ops::pool) | [`conv2d`](Tensor::conv2d), [`max_pool2d`](Tensor::max_pool2d) |
//! | [norm](ops::norm) | [`batch_norm`](Tensor::batch_norm), [`layer_norm`](Tensor::layer_norm) |
//! | [softmax](ops::softmax) | [`softmax`](Tensor::softmax), [`cross_entropy`](Tensor::cross_entropy) |
//! | embedding, index | [`embedding`](Tensor::embedding), [`gather`](Tensor::gather), [`scatter_add`](Tensor::scatter_add), [`index_select`](Tensor::index_select) |
//! | shape | [`cat`](Tensor::cat), [`stack`](Tensor::stack), [`split`](Tensor::split), [`pad`](Tensor::pad) |
//! | [cast](ops::cast) | [`cast`](Tensor::cast) |
//! | [random](ops::random) | [`randn`](Tensor::randn), [`bernoulli`](Tensor::bernoulli), [`dropout`](Tensor::dropout), from an [`Rng`] |
//! | [optim](ops::optim) | [`sgd_step`](ops::optim::sgd_step), [`adam_step`](ops::optim::adam_step), [`global_norm`](ops::optim::global_norm): over lists, in place |
//!
//! # What holds
//!
//! - **The same bits, whatever the number of threads** ([`cpu::with_threads`]): kernels split
//!   their output, and sums run over blocks of a fixed size in a fixed order. Products and
//!   convolutions apart, the processor's instructions change no bit either.
//! - **Half types are storage**: what is summed is summed in `f32`, what is computed is rounded
//!   once.
//! - **Memory is accounted to the byte** ([`Device::memory`]), and a training loop at steady state
//!   asks the system for none.
//! - **A plain build is fast**: kernels are compiled for each SIMD level, and the processor is
//!   asked at run time.
#![deny(unsafe_code)]

// Code that unit and integration tests share names this crate as the latter do.
#[cfg(test)]
extern crate self as phalanx_tensor;

mod boolean;
mod copy;
pub mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
mod dtype;
mod error;
mod expect;
#[cfg(feature = "cuda")]
pub mod kernels;
mod layout;
#[cfg(test)]
#[path = "../tests/level/mod.rs"]
mod level;
mod memory;
mod moment;
#[cfg(not(feature = "cuda"))]
mod no_cuda;
mod number;
mod shape;
mod storage;
mod tensor;
mod views;

pub mod ops;

pub use boolean::{Bool, Value};
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub use cuda::collective;
pub use device::Device;
pub use dtype::{DType, Element, Float, bf16, f16};
pub use error::{Error, Result};
pub use layout::Layout;
pub use memory::MemoryStats;
pub use moment::{Moment, Queue};
pub use number::Number;
pub use ops::random::Rng;
pub use ops::unary::GeluKind;
pub use shape::{Shape, Strides};
pub use storage::WriteFault;
pub use tensor::Tensor;
