//! Softmax, log-softmax and cross-entropy.

use super::one;
use crate::error::Result;
use crate::var::Var;
use crate::vjp::{Grads, Vjp, tensor_bytes};
use phalanx_tensor::Tensor;
use phalanx_tensor::ops::softmax::CrossEntropyConfig;

/// Backward of [`Var::softmax`].
#[derive(Debug)]
pub struct Softmax {
    out: Tensor,
    axis: isize,
}

impl Vjp for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }
    fn backward(&self, grad: Tensor, _needs: &[bool]) -> Result<Grads> {
        Ok(one(grad.softmax_backward(&self.out, self.axis)?))
    }
    fn saved_bytes(&self) -> usize {
        tensor_bytes(&self.out)
    }
}

/// Backward of [`Var::log_softmax`].
#[derive(Debug)]
pub struct LogSoftmax {
    out: Tensor,
    axis: isize,
}

impl Vjp for LogSoftmax {
    fn name(&self) -> &'static str {
        "log_softmax"
    }
    fn backward(&self, grad: Tensor, _needs: &[bool]) -> Result<Grads> {
        Ok(one(grad.log_softmax_backward(&self.out, self.axis)?))
    }
    fn saved_bytes(&self) -> usize {
        tensor_bytes(&self.out)
    }
}

/// Backward of [`Var::cross_entropy`].
#[derive(Debug)]
pub struct CrossEntropy {
    logits: Tensor,
    targets: Tensor,
    saved: Tensor,
    total_weight: Tensor,
    config: CrossEntropyConfig,
}

impl Vjp for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }
    fn backward(&self, grad: Tensor, _needs: &[bool]) -> Result<Grads> {
        let (logits, targets) = (&self.logits, &self.targets);
        let (saved, total) = (&self.saved, &self.total_weight);
        let grad = grad.cross_entropy_backward(logits, targets, saved, total, &self.config)?;
        Ok(one(grad))
    }
    fn saved_bytes(&self) -> usize {
        let saved = [&self.logits, &self.targets, &self.saved, &self.total_weight];
        saved.map(tensor_bytes).iter().sum()
    }
}

impl Var {
    /// The softmax along `axis`. As [`Tensor::softmax`].
    ///
    /// # Errors
    /// As the tensor's method.
    pub fn softmax(&self, axis: isize) -> Result<Var> {
        let out = self.value().softmax(axis)?;
        Var::from_vjp(self.tape(), &[self], out.clone(), |_| Softmax { out, axis })
    }

    /// The logarithm of the softmax along `axis`. As [`Tensor::log_softmax`].
    ///
    /// # Errors
    /// As the tensor's method.
    pub fn log_softmax(&self, axis: isize) -> Result<Var> {
        let out = self.value().log_softmax(axis)?;
        Var::from_vjp(self.tape(), &[self], out.clone(), |_| LogSoftmax {
            out,
            axis,
        })
    }

    /// The cross-entropy between the softmax of these logits and class indices. As
    /// [`Tensor::cross_entropy`]; [`nn::cross_entropy`](crate::nn::cross_entropy) is the same with
    /// the defaults.
    ///
    /// # Errors
    /// As the tensor's method.
    pub fn cross_entropy(&self, targets: &Tensor, config: &CrossEntropyConfig) -> Result<Var> {
        let out = self.value().cross_entropy(targets, config)?;
        Var::from_vjp(self.tape(), &[self], out.loss, |_| CrossEntropy {
            logits: self.value().clone(),
            targets: targets.clone(),
            saved: out.saved,
            total_weight: out.total_weight,
            config: config.clone(),
        })
    }
}
