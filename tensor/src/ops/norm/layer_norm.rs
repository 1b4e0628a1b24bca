//! Layer normalisation over the last axes (Ba, Kiros & Hinton 2016).

use super::cpu::layer_norm as cpu;
use crate::ops::working::{on_real, rounded, working};
use crate::storage::Memory;
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
        let w = affine(OP, self, &normalized, weight)?;
        let b = affine(OP, self, &normalized, bias)?;
        let x = working(OP, self)?;
        let like = |shape: &Shape| Tensor::allocate(OP, shape.clone(), x.dtype(), x.device());
        let (mut out, mut mean, mut rstd) = (like(x.shape())?, like(&lead)?, like(&lead)?);
        match self.storage().memory() {
            #[cfg(feature = "cuda")]
            Memory::Cuda(s) => return Err(s.unsupported(OP)),
            Memory::Cpu(_) => on_real!(x, T => {
                let w = w.as_ref().map(Tensor::as_slice::<T>).transpose()?;
                let b = b.as_ref().map(Tensor::as_slice::<T>).transpose()?;
                let stats = (mean.make_mut()?, rstd.make_mut()?);
                let width = normalized.numel();
                cpu::forward(x.as_slice::<T>()?, width, (w, b), eps, stats, out.make_mut()?);
            }),
        }
        let out = rounded(OP, out, self.dtype())?;
        Ok(LayerNormOutput { out, mean, rstd })
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
        let w = affine(OP, input, &normalized, weight)?;
        let (dy, x) = (working(OP, self)?, working(OP, input)?);
        for stat in [mean, rstd] {
            x.expect_same_kind(OP, stat)?;
            if *stat.shape() != lead {
                return Err(Error::ShapeMismatch {
                    op: OP,
                    lhs: stat.shape().clone(),
                    rhs: lead,
                    reason: "the statistics must have the axes that are not normalised",
                });
            }
        }
        let (mean, rstd) = (mean.contiguous_for(OP)?, rstd.contiguous_for(OP)?);
        let like = |shape: &Shape| Tensor::allocate(OP, shape.clone(), x.dtype(), x.device());
        let mut dx = like(x.shape())?;
        let mut params = match w {
            Some(_) => Some((like(&normalized)?, like(&normalized)?)),
            None => None,
        };
        let (width, rows) = (normalized.numel(), lead.numel());
        let partial = match params {
            Some(_) => Shape::from([cpu::blocks(rows), 2, width]),
            None => Shape::from(0),
        };
        let mut partial = like(&partial)?;
        match self.storage().memory() {
            #[cfg(feature = "cuda")]
            Memory::Cuda(s) => return Err(s.unsupported(OP)),
            Memory::Cpu(_) => on_real!(x, T => {
                let w = w.as_ref().map(Tensor::as_slice::<T>).transpose()?;
                let stats = (mean.as_slice::<T>()?, rstd.as_slice::<T>()?);
                let (dy, x) = (dy.as_slice::<T>()?, x.as_slice::<T>()?);
                let partial = partial.make_mut()?;
                cpu::backward(dy, x, width, w, stats, dx.make_mut()?, partial);
                if let Some((dw, db)) = &mut params {
                    cpu::sum_blocks(partial, dw.make_mut()?, db.make_mut()?);
                }
            }),
        }
        let (dw, db) = params.unzip();
        let round = |t: Option<Tensor>| t.map(|t| rounded(OP, t, self.dtype())).transpose();
        Ok(LayerNormGrads {
            input: rounded(OP, dx, self.dtype())?,
            weight: round(dw)?,
            bias: round(db)?,
        })
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

/// Weight or bias, as the kernels want it.
fn affine(
    op: &'static str,
    x: &Tensor,
    normalized: &Shape,
    param: Option<&Tensor>,
) -> Result<Option<Tensor>> {
    let Some(param) = param else {
        return Ok(None);
    };
    x.expect_same_kind(op, param)?;
    if param.shape() != normalized {
        return Err(Error::ShapeMismatch {
            op,
            lhs: normalized.clone(),
            rhs: param.shape().clone(),
            reason: "weight and bias must have the shape of what is normalised",
        });
    }
    working(op, param).map(Some)
}
