//! Pooling of the pixels of `[n, c, h, w]`.

use super::one;
use crate::error::Result;
use crate::var::Var;
use crate::vjp::{Grads, Vjp, tensor_bytes};
use phalanx_tensor::ops::pool::Pool2dConfig;
use phalanx_tensor::{Shape, Tensor};

/// Backward of [`Var::max_pool2d`].
#[derive(Debug)]
pub struct MaxPool2d {
    indices: Tensor,
    from: Shape,
}

impl Vjp for MaxPool2d {
    fn name(&self) -> &'static str {
        "max_pool2d"
    }
    fn backward(&self, grad: Tensor, _needs: &[bool]) -> Result<Grads> {
        Ok(one(Tensor::max_pool2d_backward(
            &grad,
            &self.indices,
            &self.from,
        )?))
    }
    fn saved_bytes(&self) -> usize {
        tensor_bytes(&self.indices)
    }
}

/// Backward of [`Var::avg_pool2d`].
#[derive(Debug)]
pub struct AvgPool2d {
    config: Pool2dConfig,
    from: Shape,
}

impl Vjp for AvgPool2d {
    fn name(&self) -> &'static str {
        "avg_pool2d"
    }
    fn backward(&self, grad: Tensor, _needs: &[bool]) -> Result<Grads> {
        Ok(one(Tensor::avg_pool2d_backward(
            &grad,
            &self.from,
            &self.config,
        )?))
    }
    fn saved_bytes(&self) -> usize {
        0
    }
}

/// Backward of [`Var::adaptive_avg_pool2d`].
#[derive(Debug)]
pub struct AdaptiveAvgPool2d {
    from: Shape,
}

impl Vjp for AdaptiveAvgPool2d {
    fn name(&self) -> &'static str {
        "adaptive_avg_pool2d"
    }
    fn backward(&self, grad: Tensor, _needs: &[bool]) -> Result<Grads> {
        Ok(one(Tensor::adaptive_avg_pool2d_backward(
            &grad, &self.from,
        )?))
    }
    fn saved_bytes(&self) -> usize {
        0
    }
}

impl Var {
    /// The maximum of each window. As [`Tensor::max_pool2d`].
    ///
    /// # Errors
    /// As the tensor's method.
    pub fn max_pool2d(&self, config: &Pool2dConfig) -> Result<Var> {
        let (out, indices) = self.value().max_pool2d(config)?;
        Var::from_vjp(self.tape(), &[self], out, |_| MaxPool2d {
            indices,
            from: self.shape().clone(),
        })
    }

    /// The mean of each window. As [`Tensor::avg_pool2d`].
    ///
    /// # Errors
    /// As the tensor's method.
    pub fn avg_pool2d(&self, config: &Pool2dConfig) -> Result<Var> {
        let out = self.value().avg_pool2d(config)?;
        Var::from_vjp(self.tape(), &[self], out, |_| AvgPool2d {
            config: *config,
            from: self.shape().clone(),
        })
    }

    /// The means over `out` equal parts of each plane. As [`Tensor::adaptive_avg_pool2d`].
    ///
    /// # Errors
    /// As the tensor's method.
    pub fn adaptive_avg_pool2d(&self, out: [usize; 2]) -> Result<Var> {
        let out = self.value().adaptive_avg_pool2d(out)?;
        Var::from_vjp(self.tape(), &[self], out, |_| AdaptiveAvgPool2d {
            from: self.shape().clone(),
        })
    }
}
