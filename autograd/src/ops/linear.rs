//! The affine layer, fused with the activation behind it.

use super::sum_for;
use crate::error::Result;
use crate::var::Var;
use crate::vjp::{Grads, Vjp, tensor_bytes};
use phalanx_tensor::Tensor;
pub use phalanx_tensor::ops::linear::Activation;

/// Backward of [`Var::linear`]: input, weight, and the bias where there is one.
#[derive(Debug)]
pub struct Linear {
    /// For the weight's gradient.
    input: Option<Tensor>,
    /// For the input's gradient.
    weight: Option<Tensor>,
    /// What the activation's derivative is read from: the result, or the sums before it.
    slope: Option<Tensor>,
    activation: Activation,
}

/// All axes but the last as one.
fn rows(t: &Tensor) -> Result<Tensor> {
    let features = t.dims().last().copied().unwrap_or(1);
    let lead = &t.dims()[..t.rank().saturating_sub(1)];
    Ok(t.reshape([lead.iter().product(), features])?)
}

impl Vjp for Linear {
    fn name(&self) -> &'static str {
        "linear"
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
        let grad = match &self.slope {
            Some(saved) => self.activation.backward(&grad, saved)?,
            None => grad,
        };
        let mut grads = Grads::new();
        grads.push(match &self.weight {
            Some(weight) if needs[0] => Some(grad.linear_input_grad(weight)?),
            _ => None,
        });
        grads.push(match &self.input {
            Some(input) if needs[1] => match sum_for(sums, 1, &grad) {
                Some(sum) => {
                    sum.addmm(&rows(&grad)?.t()?, &rows(input)?)?;
                    None
                }
                None => Some(grad.linear_weight_grad(input)?),
            },
            _ => None,
        });
        if let Some(&need) = needs.get(2) {
            grads.push(match need {
                true => Some(grad.linear_bias_grad()?),
                false => None,
            });
        }
        Ok(grads)
    }

    fn saved_bytes(&self) -> usize {
        let saved = [&self.input, &self.weight, &self.slope];
        saved.into_iter().flatten().map(tensor_bytes).sum()
    }

    fn shrink(&mut self, needs: &[bool]) {
        self.weight.take_if(|_| !needs[0]);
        self.input.take_if(|_| !needs[1]);
    }
}

impl Var {
    /// `act(x Wᵀ + b)` along the last axis: `[…, in]` with a weight `[out, in]` and a bias `[out]`
    /// gives `[…, out]`. As [`Tensor::linear`].
    ///
    /// The activation is part of the product. Only where its gradient is wanted, and does not follow
    /// from the result (as those of GELU and SiLU), the sums are kept and it is mostly a pass of its
    /// own ([`Tensor::linear_with_sums`]).
    ///
    /// # Errors
    /// As the tensor's method; [`Error::TapeMismatch`](crate::Error::TapeMismatch).
    pub fn linear(&self, weight: &Var, bias: Option<&Var>, activation: Activation) -> Result<Var> {
        let recorded = [Some(self), Some(weight), bias];
        let recorded = recorded.into_iter().flatten().any(Var::requires_grad);
        let (x, w) = (self.value(), weight.value());
        let b = bias.map(Var::value);
        let (value, slope) = if recorded && activation.saves_argument() {
            let both = x.linear_with_sums(w, b, activation);
            let (out, sums) = both.map_err(|error| error.of("linear"))?;
            (out, Some(sums))
        } else {
            let out = x.linear(w, b, activation)?;
            let slope = (activation != Activation::None).then(|| out.clone());
            (out, slope)
        };
        let vjp = |needs: &[bool]| Linear {
            input: needs[1].then(|| x.clone()),
            weight: needs[0].then(|| w.clone()),
            slope,
            activation,
        };
        match bias {
            Some(bias) => Var::from_vjp(self.tape(), &[self, weight, bias], value, vjp),
            None => Var::from_vjp(self.tape(), &[self, weight], value, vjp),
        }
    }
}
