//! [`Conv2d`]: the convolutional layer.

use super::init::{Factory, Init};
use super::module::{Module, Visitor};
use crate::error::{Error, Result};
use crate::param::Param;
use crate::tape::Tape;
use crate::var::Var;
pub use phalanx_tensor::ops::conv::Conv2dConfig;

/// The cross-correlation of `[n, in, h, w]` with learned windows, as `torch.nn.Conv2d`.
///
/// Parameters: `weight` `[out, in / groups, kh, kw]`, `bias` `[out]`, both uniform with bound
/// `1 / √(in / groups · kh · kw)`.
#[derive(Debug)]
pub struct Conv2d {
    /// `[out, in / groups, kh, kw]`.
    pub weight: Param,
    /// `[out]`.
    pub bias: Option<Param>,
    /// Stride, padding, dilation, groups.
    pub config: Conv2dConfig,
}

impl Conv2d {
    /// From `inputs` to `outputs` channels with windows of `kernel` `[kh, kw]` pixels.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where the groups do not divide the channels; as
    /// [`Factory::tensor`].
    pub fn new(
        inputs: usize,
        outputs: usize,
        kernel: [usize; 2],
        config: Conv2dConfig,
        f: &mut Factory,
    ) -> Result<Conv2d> {
        let mut conv = Conv2d::without_bias(inputs, outputs, kernel, config, f)?;
        let fan_in = fan_in(&conv.weight.shape()[1..]);
        let bias = f.tensor(outputs, Init::fan_in_uniform(fan_in))?;
        conv.bias = Some(Param::new(bias));
        Ok(conv)
    }

    /// The same without a bias, as it is used before a normalisation.
    ///
    /// # Errors
    /// As [`new`](Conv2d::new).
    pub fn without_bias(
        inputs: usize,
        outputs: usize,
        [kh, kw]: [usize; 2],
        config: Conv2dConfig,
        f: &mut Factory,
    ) -> Result<Conv2d> {
        let groups = config.groups;
        if groups == 0 || !inputs.is_multiple_of(groups) || !outputs.is_multiple_of(groups) {
            return Err(Error::InvalidArgument {
                op: "Conv2d::new",
                reason: format!("{groups} groups do not divide {inputs} and {outputs} channels"),
            });
        }
        let shape = [outputs, inputs / groups, kh, kw];
        let weight = f.tensor(shape, Init::fan_in_uniform(fan_in(&shape[1..])))?;
        Ok(Conv2d {
            weight: Param::new(weight),
            bias: None,
            config,
        })
    }
}

impl Module for Conv2d {
    fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
        let bias = self.bias.as_ref().map(|b| tape.leaf(b));
        x.conv2d(&tape.leaf(&self.weight), bias.as_ref(), &self.config)
    }

    fn visit(&self, v: &mut Visitor<'_>) {
        v.param("weight", &self.weight);
        v.optional_param("bias", self.bias.as_ref());
    }
}

/// The inputs of one output: the product of a weight's extents but the first. A weight so large
/// that they cannot be counted is refused where it is made.
fn fan_in(extents: &[usize]) -> usize {
    extents
        .iter()
        .fold(1, |n: usize, &extent| n.saturating_mul(extent))
}
