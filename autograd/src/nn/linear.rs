//! [`Linear`]: the fully connected layer.

use super::init::{Factory, Init};
use super::module::{Module, Visitor};
use crate::error::Result;
use crate::ops::linear::Activation;
use crate::param::Param;
use crate::tape::Tape;
use crate::var::Var;

/// `act(x Wᵀ + b)` along the last axis, `[…, in]` to `[…, out]`, as `torch.nn.Linear`; the
/// activation, where there is one, is computed with the product.
///
/// Parameters: `weight` `[out, in]`, `bias` `[out]`, both uniform with bound `1 / √in`.
#[derive(Debug)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Param,
    /// `[out]`.
    pub bias: Option<Param>,
    /// What follows.
    pub activation: Activation,
}

impl Linear {
    /// From `inputs` to `outputs` features.
    ///
    /// # Errors
    /// As [`Factory::tensor`].
    pub fn new(inputs: usize, outputs: usize, f: &mut Factory) -> Result<Linear> {
        let mut linear = Linear::without_bias(inputs, outputs, f)?;
        let bias = f.tensor(outputs, Init::fan_in_uniform(inputs))?;
        linear.bias = Some(Param::new(bias));
        Ok(linear)
    }

    /// The same without a bias.
    ///
    /// # Errors
    /// As [`Factory::tensor`].
    pub fn without_bias(inputs: usize, outputs: usize, f: &mut Factory) -> Result<Linear> {
        let weight = f.tensor([outputs, inputs], Init::fan_in_uniform(inputs))?;
        Ok(Linear {
            weight: Param::new(weight),
            bias: None,
            activation: Activation::None,
        })
    }

    /// The same with an activation, fused into the product.
    #[must_use]
    pub fn with_activation(self, activation: Activation) -> Linear {
        Linear { activation, ..self }
    }
}

impl Module for Linear {
    fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
        let bias = self.bias.as_ref().map(|b| tape.leaf(b));
        x.linear(&tape.leaf(&self.weight), bias.as_ref(), self.activation)
    }

    fn visit(&self, v: &mut Visitor<'_>) {
        v.param("weight", &self.weight);
        v.optional_param("bias", self.bias.as_ref());
    }
}
