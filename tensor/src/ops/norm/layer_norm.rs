//! Layer normalisation over the last axes (Ba, Kiros & Hinton 2016).

use super::cpu::layer_norm as cpu;
use crate::storage::{On, on, out};
use crate::{Error, Result, Shape, Tensor};

/// What [`Tensor::layer_norm`] returns. The statistics have the shape of the axes that are not
/// normalised, and are `f32` for half types.
#[derive(Clone, Debug)]
pub struct LayerNormOutput {
    /// The normalised tensor, of the input's shape and type.
    pub out: Tensor,
    /// The means.
    pub mean: Tensor,
    /// `1 / √(variance + eps)`.
    pub rstd: Tensor,
}

/// The gradients of a layer normalisation.
#[derive(Clone, Debug)]
pub struct LayerNormGrads {
    /// With respect to the input.
    pub input: Tensor,
    /// With respect to the weight, where there is one.
    pub weight: Option<Tensor>,
    /// With respect to the bias, where there is a weight.
    pub bias: Option<Tensor>,
}

impl Tensor {
    /// Shifts and scales the elements of the last axes, whose extents are `normalized`, to mean 0
    /// and variance 1, then multiplies by `weight` and adds `bias`, both of shape `normalized`.
    ///
    /// ```
    /// # use phalanx_tensor::{Device, Tensor};
    /// let x = Tensor::from_slice(&[1.0f32, 3.0, 10.0, 10.0], [2, 2], Device::cpu(0))?;
    /// let y = x.layer_norm([2], None, None, 1e-5)?.out.to_vec::<f32>()?;
    /// assert!((y[0] + 1.0).abs() < 1e-5 && (y[1] - 1.0).abs() < 1e-5 && y[2] == 0.0);
    /// # Ok::<(), phalanx_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] where `normalized` is not the end of the shape, or weight and bias
    /// have another; [`Error::InvalidShape`] where there is nothing to normalise,
    /// [`Error::DTypeMismatch`], [`Error::DeviceMismatch`], [`Error::UnsupportedDType`].
    pub fn layer_norm(
        &self,
        normalized: impl Into<Shape>,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        eps: f64,
    ) -> Result<LayerNormOutput> {
        const OP: &str = "layer_norm";
        let normalized = normalized.into();
        let lead = lead_axes(OP, self, &normalized)?;
        check_params(OP, self, &normalized, [weight, bias])?;
        let (device, wide) = (self.device(), self.dtype().compute());
        let mut output = LayerNormOutput {
            out: Tensor::allocate(OP, self.shape().clone(), self.dtype(), device)?,
            mean: Tensor::allocate(OP, lead.clone(), wide, device)?,
            rstd: Tensor::allocate(OP, lead, wide, device)?,
        };
        let stats = (out(&mut output.mean), out(&mut output.rstd));
        match on(OP, (self, (weight, bias), stats, out(&mut output.out)))? {
            On::Cpu((x, affine, stats, out)) => {
                let width = normalized.numel();
                cpu::forward(OP, x, width, affine, eps, stats, out)?;
            }
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (x, affine, stats, out)) => {
                super::cuda::layer_norm::forward(&mut lane, x, affine, eps, stats, out)?;
            }
        }
        Ok(output)
    }

    /// The gradients of [`layer_norm`](Tensor::layer_norm), where `self` is the gradient of its
    /// output: the input's, and the weight's and the bias's if there is a weight. One pass over
    /// gradient and input.
    ///
    /// # Errors
    /// As [`layer_norm`](Tensor::layer_norm).
    pub fn layer_norm_backward(
        &self,
        input: &Tensor,
        normalized: impl Into<Shape>,
        weight: Option<&Tensor>,
        mean: &Tensor,
        rstd: &Tensor,
    ) -> Result<LayerNormGrads> {
        const OP: &str = "layer_norm_backward";
        let normalized = normalized.into();
        self.expect_same_kind(OP, input)?;
        self.expect_same_shape(OP, input, "a gradient must have its tensor's shape")?;
        let lead = lead_axes(OP, input, &normalized)?;
        check_params(OP, input, &normalized, [weight, None])?;
        let wide = input.dtype().compute();
        for stat in [mean, rstd] {
            input.expect_same_device(OP, stat)?;
            if stat.dtype() != wide {
                return Err(Error::DTypeMismatch {
                    op: OP,
                    lhs: wide,
                    rhs: stat.dtype(),
                });
            }
            if *stat.shape() != lead {
                return Err(Error::ShapeMismatch {
                    op: OP,
                    lhs: stat.shape().clone(),
                    rhs: lead,
                    reason: "the statistics must have the axes that are not normalised",
                });
            }
        }
        let like = |shape: &Shape| Tensor::allocate(OP, shape.clone(), self.dtype(), self.device());
        let mut grads = LayerNormGrads {
            input: like(self.shape())?,
            weight: weight.map(|_| like(&normalized)).transpose()?,
            bias: weight.map(|_| like(&normalized)).transpose()?,
        };
        let params =
            (grads.weight.as_mut().zip(grads.bias.as_mut())).map(|(w, b)| (out(w), out(b)));
        let operands = (self, input, weight, (mean, rstd));
        match on(OP, (operands, out(&mut grads.input), params))? {
            On::Cpu((operands, dx, params)) => {
                cpu::backward(OP, normalized.numel(), operands, dx, params)?
            }
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (operands, dx, params)) => {
                super::cuda::layer_norm::backward(&mut lane, operands, dx, params)?;
            }
        }
        Ok(grads)
    }
}

/// The axes before `normalized`, which must be the last ones.
fn lead_axes(op: &'static str, x: &Tensor, normalized: &Shape) -> Result<Shape> {
    x.expect_float(op)?;
    if normalized.numel() == 0 || normalized.is_empty() {
        return Err(Error::InvalidShape {
            op,
            shape: normalized.clone(),
            reason: "there is nothing to normalise".into(),
        });
    }
    match x.dims().strip_suffix(&**normalized) {
        Some(lead) => Ok(lead.into()),
        None => Err(Error::ShapeMismatch {
            op,
            lhs: x.shape().clone(),
            rhs: normalized.clone(),
            reason: "the second must be the end of the first",
        }),
    }
}

/// Weight and bias, where there are any, have the shape of what is normalised.
fn check_params(
    op: &'static str,
    x: &Tensor,
    normalized: &Shape,
    params: [Option<&Tensor>; 2],
) -> Result<()> {
    for param in params.into_iter().flatten() {
        x.expect_same_kind(op, param)?;
        if param.shape() != normalized {
            return Err(Error::ShapeMismatch {
                op,
                lhs: normalized.clone(),
                rhs: param.shape().clone(),
                reason: "weight and bias must have the shape of what is normalised",
            });
        }
    }
    Ok(())
}
