//! Dropout.

use super::one;
use crate::error::Result;
use crate::var::Var;
use crate::vjp::{Grads, Vjp, tensor_bytes};
use phalanx_tensor::{Rng, Tensor};

/// Backward of [`Var::dropout`].
#[derive(Debug)]
pub struct Dropout {
    mask: Tensor,
    p: f64,
}

impl Vjp for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }
    fn backward(&self, grad: Tensor, _needs: &[bool]) -> Result<Grads> {
        Ok(one(grad.dropout_backward(&self.mask, self.p)?))
    }
    fn saved_bytes(&self) -> usize {
        tensor_bytes(&self.mask)
    }
}

impl Var {
    /// Drops each element with probability `p` and scales the others so that the mean stays. As
    /// [`Tensor::dropout`]. Inside a [`checkpoint`](crate::checkpoint()) use a stream that
    /// [`Tape::seed`](crate::Tape::seed) began, as [`nn::Dropout`](crate::nn::Dropout) does.
    ///
    /// # Errors
    /// As the tensor's method.
    pub fn dropout(&self, p: f64, rng: &mut Rng) -> Result<Var> {
        let (out, mask) = self.value().dropout(p, rng)?;
        Var::from_vjp(self.tape(), &[self], out, |_| Dropout { mask, p })
    }
}
