//! [`Adam`], with coupled or decoupled weight decay (AdamW).

use super::Optimizer;
use super::check::{checked, expect_rate};
use super::groups::{Group, Groups, Kept, split, take_count, take_like};
use crate::error::{Error, Result};
use crate::grads::Gradients;
use crate::param::Param;
use crate::state::{State, saved_count};
use phalanx_tensor::Tensor;
use phalanx_tensor::ops::Scalar;
pub use phalanx_tensor::ops::optim::{AdamConfig, DecayMode};
use phalanx_tensor::ops::optim::{AdamState, adam_steps};
use smallvec::{SmallVec, smallvec};

/// Adam and AdamW, as `torch.optim.Adam` and `torch.optim.AdamW`: [`AdamConfig::adam`] and
/// [`AdamConfig::adamw`] are their defaults.
///
/// ```
/// use phalanx_autograd::optim::{Adam, AdamConfig, Optimizer};
/// use phalanx_autograd::{Param, Tape};
/// use phalanx_tensor::{Device, Tensor};
///
/// let w = Param::new(Tensor::scalar(5.0f64, Device::cpu(0))?);
/// let mut adam = Adam::new(vec![w.clone()], AdamConfig { lr: 0.5, ..AdamConfig::adam() })?;
/// let tape = Tape::new();
/// let loss = tape.leaf(&w).square()?;
/// adam.step(&tape.backward(&loss)?)?;
/// assert!((w.value()?.item::<f64>()? - 4.5).abs() < 1e-6); // the first step has the length lr
/// # Ok::<(), phalanx_autograd::Error>(())
/// ```
#[derive(Debug)]
pub struct Adam {
    config: AdamConfig,
    groups: Groups<AdamState>,
}

impl Adam {
    /// For these parameters; one that occurs twice gets one step.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for numbers that [`AdamConfig::check`] refuses.
    pub fn new(params: Vec<Param>, config: AdamConfig) -> Result<Adam> {
        checked(config.check("Adam::new"))?;
        Ok(Adam {
            config,
            groups: Groups::new(params)?,
        })
    }

    /// Gives some parameters peculiarities of their own, whether they are in already or not.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where the group's numbers are negative, infinite or no numbers.
    pub fn with_group(mut self, group: Group) -> Result<Adam> {
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

impl Kept for AdamState {
    fn tensors(&self) -> SmallVec<[&Tensor; 2]> {
        smallvec![&self.exp_avg, &self.exp_avg_sq]
    }

    fn tensors_mut(&mut self) -> SmallVec<[&mut Tensor; 2]> {
        smallvec![&mut self.exp_avg, &mut self.exp_avg_sq]
    }

    fn take_counts(&mut self, new: &AdamState) {
        self.step = new.step;
    }
}

impl Optimizer for Adam {
    fn step_with_lr(&mut self, gradients: &Gradients, lr: Scalar<'_>) -> Result<()> {
        let config = self.config;
        let (lr, scale) = split(lr);
        let of_group = |group: &Group| AdamConfig {
            lr: lr * group.lr_scale,
            weight_decay: group.weight_decay.unwrap_or(config.weight_decay),
            ..config
        };
        self.groups
            .step(gradients, of_group, scale, |parts| Ok(adam_steps(parts)?))
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
        self.groups.save(self.config.lr, |state, i, adam| {
            state.insert(format!("{i}.exp_avg"), adam.exp_avg.copy()?);
            state.insert(format!("{i}.exp_avg_sq"), adam.exp_avg_sq.copy()?);
            let name = format!("{i}.step");
            let step = saved_count(&name, adam.step)?;
            state.insert(name, step);
            Ok(())
        })
    }

    fn load_state(&mut self, state: State) -> Result<()> {
        self.config.lr = self.groups.load(state, |state, i, param| {
            let mean = take_like(state, &format!("{i}.exp_avg"), param)?;
            let name = format!("{i}.exp_avg_sq");
            let square = take_like(state, &name, param)?;
            match (mean, square) {
                (None, None) => Ok(None),
                (Some(exp_avg), Some(exp_avg_sq)) => Ok(Some(AdamState {
                    exp_avg,
                    exp_avg_sq,
                    step: take_count(state, &format!("{i}.step"))?,
                })),
                _ => Err(Error::MissingTensor { name }),
            }
        })?;
        Ok(())
    }
}
