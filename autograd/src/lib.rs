//! Reverse-mode differentiation, layers and optimizers over `phalanx-tensor`.
//!
//! A [`Tape`] records what is computed with [`Var`]s, and runs it backward. [`Param`]s are the
//! tensors that a model learns; [`nn`] makes models of them, [`optim`] changes them by their
//! [`Gradients`].
//!
//! # Training in ten lines
//!
//! ```
//! use phalanx_autograd::nn::{Activation, Factory, Linear, Module, Sequential, cross_entropy};
//! use phalanx_autograd::optim::{Optimizer, Sgd, SgdConfig};
//! use phalanx_autograd::Tape;
//! use phalanx_tensor::{Device, DType, Rng, Tensor};
//!
//! # fn main() -> phalanx_autograd::Result<()> {
//! let device = Device::cpu(0);
//! let images = Tensor::randn([32, 20], DType::F32, device, &mut Rng::new(1))?;
//! let labels = Tensor::randint(0, 5, [32], device, &mut Rng::new(2))?;
//!
//! let mut f = Factory::new(device, 42);
//! let model = Sequential::new()
//!     .with(Linear::new(20, 64, &mut f)?.with_activation(Activation::Relu))
//!     .with(Linear::new(64, 5, &mut f)?);
//! let config = SgdConfig { lr: 0.1, momentum: 0.9, ..SgdConfig::default() };
//! let mut sgd = Sgd::new(model.parameters(), config)?;
//! let tape = Tape::new();
//! for _ in 0..100 {
//!     let logits = model.forward(&tape, &tape.constant(images.clone()))?;
//!     let loss = cross_entropy(&logits, &labels)?;
//!     sgd.step(&tape.backward(&loss)?)?;
//! }
//!
//! let tape = Tape::inference(); // the same model, and nothing is kept for a backward pass
//! let logits = model.forward(&tape, &tape.constant(images))?;
//! assert!(cross_entropy(&logits, &labels)?.item::<f64>()? < 0.05);
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
//! phalanx-autograd = { path = "../phalanx/autograd" }
//!
//! [profile.dev.package."*"]
//! opt-level = 3
//! ```
//!
//! # What holds
//!
//! - **Append order is topological order.** Backward is one loop from the end of the tape: no
//!   sort, no recursion, no counters. What the loss does not depend on costs a check a node.
//! - **A parameter's gradient is final exactly when the sweep passes its node**, and
//!   [`Backward::on_ready`] is called then. [`Tape::plan`] knows before the sweep which parameters
//!   these will be, and in which order.
//! - **Values are values.** The tape keeps the tensors that the forward pass saw; setting a
//!   parameter between forward and backward changes nothing. A swept tape keeps none, so the
//!   optimizer writes parameters in place.
//! - **Addresses stay.** Parameters, buffers and the optimizer's state are written in place: by a step,
//!   by [`Param::set`], by loading a [`State`]. [`Param::value`] and [`State::of`] copy, and only tapes
//!   share. A write to what a living tape shares copies first, and
//!   [`MemoryStats::copies`](phalanx_tensor::MemoryStats::copies) counts it.
//! - **What is not reached has no gradient**: `None`, not zeros.
//! - **Sums of gradients are not rounded to a half type.** Where something of a half type is used
//!   several times, its gradients are added in `f32`. The gradient of a parameter stays `f32`, up to
//!   the optimizer; that of anything else is rounded once, when it is complete.
//! - A sweep can start at several roots, stop at chosen inputs ([`Backward`]), and be split into
//!   the inputs' gradients and, later, the parameters' ([`Tape::sweep_inputs`]), with the same
//!   bits. [`checkpoint`] trades memory for a second forward pass.
//!
//! Other crates add operations of their own with [`Var::from_vjp`], and with
//! [`Var::from_multi_vjp`] where one has several outputs.
#![forbid(unsafe_code)]

mod checkpoint;
mod claim;
mod contribute;
mod draws;
mod error;
mod grads;
mod multi;
mod param;
mod slot;
mod split;
mod sweep;
mod tape;
mod var;
mod vjp;
mod whole_file;

pub mod nn;
pub mod ops;
pub mod optim;
mod state;

pub use checkpoint::{checkpoint, checkpoint_all};
pub use claim::{Claim, Claims, Holder};
pub use error::{Error, Result};
pub use grads::Gradients;
pub use multi::{MultiVjp, OutputGrads};
pub use param::{Buffer, Param, ParamId};
pub use split::WeightSweep;
pub use state::State;
pub use sweep::{Backward, OnReady, ReadyOrder};
pub use tape::Tape;
pub use var::Var;
pub use vjp::{Grads, Vjp, tensor_bytes};
