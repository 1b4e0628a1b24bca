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
#![deny(unsafe_code)]

pub mod cpu;
mod device;
mod dtype;
mod error;
mod layout;
mod memory;
mod shape;
mod storage;
mod tensor;
mod views;

pub mod ops;

pub use device::Device;
pub use dtype::{DType, Element, Float, bf16, f16};
pub use error::{Error, Result};
pub use layout::Layout;
pub use memory::MemoryStats;
pub use ops::random::Rng;
pub use ops::unary::GeluKind;
pub use shape::{Shape, Strides};
pub use tensor::Tensor;
