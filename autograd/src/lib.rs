//! Reverse-mode differentiation, layers and optimizers over `phalanx-tensor`.
#![forbid(unsafe_code)]

mod checkpoint;
mod error;
mod grads;
mod param;
mod sweep;
mod tape;
mod var;
mod vjp;

pub mod nn;
pub mod ops;
pub mod optim;
mod state;

pub use checkpoint::checkpoint;
pub use error::{Error, Result};
pub use grads::Gradients;
pub use param::{Buffer, Param, ParamId};
pub use state::State;
pub use sweep::{Backward, OnReady, ReadyOrder, WeightSweep};
pub use tape::Tape;
pub use var::Var;
pub use vjp::{Grads, Vjp, tensor_bytes};
