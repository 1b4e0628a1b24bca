//! [`Sgd`]: stochastic gradient descent.

use super::Optimizer;
use super::check::{checked, expect_rate};
use super::groups::{Group, Groups, split, take_like};
use crate::error::Result;
use crate::grads::Gradients;
use crate::param::Param;
use crate::state::State;
use phalanx_tensor::Tensor;
use phalanx_tensor::ops::Scalar;
pub use phalanx_tensor::ops::optim::SgdConfig;
use phalanx_tensor::ops::optim::sgd_steps;

/// Stochastic gradient descent with momentum, Nesterov's variant, dampening and weight decay, as
/// `torch.optim.SGD`.
///
/// ```
/// use phalanx_autograd::optim::{Optimizer, Sgd, SgdConfig};
/// use phalanx_autograd::{Param, Tape};
/// use phalanx_tensor::{Device, Tensor};
///
/// let w = Param::new(Tensor::scalar(5.0f64, Device::cpu(0))?);
/// let config = SgdConfig { lr: 0.1, momentum: 0.5, ..SgdConfig::default() };
/// let mut sgd = Sgd::new(vec![w.clone()], config)?;
/// let tape = Tape::new();
/// for _ in 0..60 {
///     let loss = tape.leaf(&w).add_scalar(-3.0)?.square()?;
///     sgd.step(&tape.backward(&loss)?)?;
/// }
/// assert!((w.value()?.item::<f64>()? - 3.0).abs() < 1e-6);
/// # Ok::<(), phalanx_autograd::Error>(())
/// ```
#[derive(Debug)]
pub struct Sgd {
    config: SgdConfig,
    groups: Groups<Tensor>,
}

impl Sgd {
    /// For these parameters; one that occurs twice gets one step.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for numbers that
    /// [`SgdConfig::check`] refuses.
    pub fn new(params: Vec<Param>, config: SgdConfig) -> Result<Sgd> {
        checked(config.check("Sgd::new"))?;
        Ok(Sgd {
            config,
            groups: Groups::new(params)?,
        })
    }

    /// Gives some parameters peculiarities of their own, whether they are in already or not.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) where the group's numbers are
    /// negative, infinite or no numbers.
    pub fn with_group(mut self, group: Group) -> Result<Sgd> {
        self.groups.push(group)?;
        Ok(self)
    }

    /// The tensors of the state, where they lie: for the tests which say that they stay there, and for
    /// nobody else.
    #[doc(hidden)]
    pub fn kept(&self) -> impl Iterator<Item = &Tensor> {
        self.groups.kept()
    }
}

impl Optimizer for Sgd {
    fn step_with_lr(&mut self, gradients: &Gradients, lr: Scalar<'_>) -> Result<()> {
        let config = self.config;
        let (lr, scale) = split(lr);
        let of_group = |group: &Group| SgdConfig {
            lr: lr * group.lr_scale,
            weight_decay: group.weight_decay.unwrap_or(config.weight_decay),
            ..config
        };
        self.groups
            .step(gradients, of_group, scale, |parts| Ok(sgd_steps(parts)?))
    }

    fn lr(&self) -> f64 {
        self.config.lr
    }

    fn set_lr(&mut self, lr: f64) -> Result<()> {
        expect_rate("set_lr", "lr", lr)?;
        self.config.lr = lr;
        Ok(())
    }

    fn state(&self) -> Result<State> {
        self.groups.save(self.config.lr, |state, i, momentum| {
            state.insert(format!("{i}.momentum_buffer"), momentum.copy()?);
            Ok(())
        })
    }

    fn load_state(&mut self, state: State) -> Result<()> {
        self.config.lr = self.groups.load(state, |state, i, param| {
            take_like(state, &format!("{i}.momentum_buffer"), param)
        })?;
        Ok(())
    }
}
