//! Convolution.

use super::sum_for;
use crate::error::Result;
use crate::var::Var;
use crate::vjp::{Grads, Vjp, tensor_bytes};
use phalanx_tensor::ops::conv::Conv2dConfig;
use phalanx_tensor::{Shape, Tensor};

/// Backward of [`Var::conv2d`]: inputs, weight, and the bias where there is one.
#[derive(Debug)]
pub struct Conv2d {
    config: Conv2dConfig,
    shapes: [Shape; 2],
    /// For the weight's gradient.
    input: Option<Tensor>,
    /// For the input's gradient.
    weight: Option<Tensor>,
}

impl Vjp for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn backward(&self, grad: Tensor, needs: &[bool]) -> Result<Grads> {
        self.backward_into(grad, needs, &mut [])
    }

    fn backward_into(
        &self,
        grad: Tensor,
        needs: &[bool],
        sums: &mut [Option<Tensor>],
    ) -> Result<Grads> {
        let [input_shape, weight_shape] = &self.shapes;
        let mut grads = Grads::new();
        grads.push(match &self.weight {
            Some(weight) if needs[0] => Some(Tensor::conv2d_input_grad(
                &grad,
                weight,
                input_shape,
                &self.config,
            )?),
            _ => None,
        });
        grads.push(match &self.input {
            Some(input) if needs[1] => match sum_for(sums, 1, &grad) {
                Some(sum) => {
                    Tensor::conv2d_weight_grad_into(input, &grad, sum, &self.config)?;
                    None
                }
                None => {
                    let (shape, config) = (weight_shape, &self.config);
                    Some(Tensor::conv2d_weight_grad(input, &grad, shape, config)?)
                }
            },
            _ => None,
        });
        if let Some(&need) = needs.get(2) {
            grads.push(match need {
                true => Some(grad.sum(&[0, 2, 3], false)?),
                false => None,
            });
        }
        Ok(grads)
    }

    fn saved_bytes(&self) -> usize {
        self.input
            .iter()
            .chain(&self.weight)
            .map(tensor_bytes)
            .sum()
    }

    fn shrink(&mut self, needs: &[bool]) {
        self.weight.take_if(|_| !needs[0]);
        self.input.take_if(|_| !needs[1]);
    }
}

impl Var {
    /// The cross-correlation of `[n, c, h, w]` with `weight` `[out, c / groups, kh, kw]`, plus a
    /// bias per output channel. As [`Tensor::conv2d`].
    ///
    /// # Errors
    /// As the tensor's method; [`Error::TapeMismatch`](crate::Error::TapeMismatch).
    pub fn conv2d(&self, weight: &Var, bias: Option<&Var>, config: &Conv2dConfig) -> Result<Var> {
        let (x, w) = (self.value(), weight.value());
        let out = x.conv2d(w, bias.map(Var::value), config)?;
        let vjp = |needs: &[bool]| Conv2d {
            config: *config,
            shapes: [x.shape().clone(), w.shape().clone()],
            input: needs[1].then(|| x.clone()),
            weight: needs[0].then(|| w.clone()),
        };
        match bias {
            Some(bias) => Var::from_vjp(self.tape(), &[self, weight, bias], out, vjp),
            None => Var::from_vjp(self.tape(), &[self, weight], out, vjp),
        }
    }
}
