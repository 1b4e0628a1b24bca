//! Optimizers, gradient clipping and learning-rate schedules, with PyTorch's names and formulas.
//!
//! A step is one fused pass over each parameter, its gradient and its state. After a backward pass
//! nobody but the parameter holds its tensor, so it is changed in place. Where a tape or one of its
//! variables still does, the step copies first, and
//! [`MemoryStats::copies`](phalanx_tensor::MemoryStats::copies) counts it.

mod adam;
mod check;
mod clip;
mod groups;
mod schedule;
mod sgd;

pub use adam::{Adam, AdamConfig, DecayMode};
pub use clip::{clip_grad_norm, grad_norm};
pub use groups::Group;
pub use schedule::Schedule;
pub use sgd::{Sgd, SgdConfig};

use crate::error::Result;
use crate::grads::Gradients;
use crate::state::State;
use phalanx_tensor::ops::Scalar;

/// Changes parameters by their gradients.
pub trait Optimizer {
    /// One step. A parameter without a gradient stays as it is, and so does its state.
    ///
    /// The step of a parameter of a half type is computed in `f32`, from its gradient and its state
    /// in `f32`, and the parameter is rounded once.
    ///
    /// # Errors
    /// As the tensor operation. Nothing is changed then, no parameter, no state and no count of
    /// steps: the step can be repeated.
    fn step(&mut self, gradients: &Gradients) -> Result<()> {
        self.step_with_lr(gradients, self.lr().into())
    }

    /// One step with this learning rate instead of the optimizer's, which stays as it is. A rate that is
    /// a tensor on the device costs no wait: the host issues the step and never learns the rate
    /// (PyTorch: `lr` as a tensor, with `capturable=True`).
    ///
    /// ```
    /// use phalanx_autograd::optim::{Optimizer, Sgd, SgdConfig};
    /// use phalanx_autograd::{Param, Tape};
    /// use phalanx_tensor::{Device, Tensor};
    ///
    /// let w = Param::new(Tensor::scalar(5.0f64, Device::cpu(0))?);
    /// let mut sgd = Sgd::new(vec![w.clone()], SgdConfig::default())?;
    /// let tape = Tape::new();
    /// let loss = tape.leaf(&w).square()?;
    /// let lr = Tensor::scalar(0.25f32, Device::cpu(0))?;
    /// sgd.step_with_lr(&tape.backward(&loss)?, (&lr).into())?;
    /// assert_eq!(w.value()?.item::<f64>()?, 2.5);
    /// # Ok::<(), phalanx_autograd::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`step`](Optimizer::step); for a rate of the host that is negative or not finite, and for a
    /// tensor that does not have one float. What a tensor holds is not looked at.
    fn step_with_lr(&mut self, gradients: &Gradients, lr: Scalar<'_>) -> Result<()>;

    /// The learning rate of the next step.
    fn lr(&self) -> f64;

    /// Sets the learning rate, for instance to what a [`Schedule`] gives.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for a rate that is negative,
    /// infinite or no number; the rate before it stays.
    fn set_lr(&mut self, lr: f64) -> Result<()>;

    /// What the optimizer needs to continue: momenta, step counts, the learning rate. The
    /// parameters count in the order in which they were given: `3.momentum_buffer`. The tensors are
    /// copies, which later steps do not change.
    ///
    /// # Errors
    /// [`Error::Unsavable`](crate::Error::Unsavable) for a learning rate that is negative or not
    /// finite; as [`Tensor::copy`](phalanx_tensor::Tensor::copy).
    fn state(&self) -> Result<State>;

    /// Continues from a saved state: training goes on bit for bit as it would have without the
    /// pause. The optimizer's own tensors, once it has some, stay where they are. Nothing is changed
    /// where something does not fit.
    ///
    /// # Errors
    /// [`Error::SavedMismatch`](crate::Error::SavedMismatch),
    /// [`Error::MissingTensor`](crate::Error::MissingTensor),
    /// [`Error::UnexpectedTensor`](crate::Error::UnexpectedTensor);
    /// [`Error::Format`](crate::Error::Format) for steps or a learning rate that cannot be.
    fn load_state(&mut self, state: State) -> Result<()>;
}
