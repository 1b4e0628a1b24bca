//! Normalisation over a batch or over the last axes.

use crate::error::Result;
use crate::var::Var;
use crate::vjp::{Grads, Vjp, tensor_bytes};
use phalanx_tensor::ops::norm::{BatchNormMask, BatchNormSaved};
use phalanx_tensor::{Shape, Tensor};
use smallvec::SmallVec;

/// What [`Var::batch_norm`] returns.
#[derive(Debug, Clone)]
pub struct BatchNormVar {
    /// The result.
    pub out: Var,
    /// The mean of each channel.
    pub mean: Tensor,
    /// The biased variance of each channel.
    pub var: Tensor,
}

/// What stands after a batch normalisation.
#[derive(Debug)]
enum After {
    Nothing,
    Relu,
    /// The result, whose zeros are the mask.
    ResidualRelu(Tensor),
}

/// The statistics of a batch normalisation.
#[derive(Debug)]
enum Statistics {
    /// Of the batch: the gradient flows through them.
    Batch { mean: Tensor, invstd: Tensor },
    /// Given, and constant.
    Given { mean: Tensor, var: Tensor, eps: f64 },
}

/// Backward of [`Var::batch_norm`] and [`Var::batch_norm_inference`]: input, weight, bias, residual,
/// those that are there.
#[derive(Debug)]
pub struct BatchNorm {
    statistics: Statistics,
    input: Tensor,
    weight: Option<Tensor>,
    bias: Option<Tensor>,
    residual: bool,
    after: After,
}

impl Vjp for BatchNorm {
    fn name(&self) -> &'static str {
        match self.statistics {
            Statistics::Batch { .. } => "batch_norm",
            Statistics::Given { .. } => "batch_norm_inference",
        }
    }

    fn backward(&self, grad: Tensor, _needs: &[bool]) -> Result<Grads> {
        let saved = |mean, invstd| BatchNormSaved {
            input: &self.input,
            mean,
            invstd,
            weight: self.weight.as_ref(),
            bias: self.bias.as_ref(),
            activation: match &self.after {
                After::Nothing => BatchNormMask::Linear,
                After::Relu => BatchNormMask::Relu,
                After::ResidualRelu(out) => BatchNormMask::ResidualRelu(out),
            },
        };
        let all = match &self.statistics {
            Statistics::Batch { mean, invstd } => {
                Tensor::batch_norm_backward(&grad, &saved(mean, invstd))?
            }
            Statistics::Given { mean, var, eps } => {
                let invstd = var.batch_norm_invstd(*eps)?;
                Tensor::batch_norm_inference_backward(&grad, &saved(mean, &invstd))?
            }
        };
        let mut grads = Grads::new();
        grads.push(Some(all.input));
        grads.extend(self.weight.is_some().then_some(Some(all.weight)));
        grads.extend(self.bias.is_some().then_some(Some(all.bias)));
        if self.residual {
            // Without an activation, the residual's gradient is that of the result.
            grads.push(Some(all.residual.unwrap_or(grad)));
        }
        Ok(grads)
    }

    fn saved_bytes(&self) -> usize {
        let after = match &self.after {
            After::ResidualRelu(out) => Some(out),
            _ => None,
        };
        let statistics = match &self.statistics {
            Statistics::Batch { mean, invstd } => [mean, invstd],
            Statistics::Given { mean, var, .. } => [mean, var],
        };
        let saved = (statistics.into_iter().chain([&self.input]))
            .chain(&self.weight)
            .chain(&self.bias)
            .chain(after);
        saved.map(tensor_bytes).sum()
    }

    fn joint(&self) -> bool {
        true
    }
}

/// Backward of [`Var::layer_norm`]: input, weight, bias, those that are there.
#[derive(Debug)]
pub struct LayerNorm {
    normalized: Shape,
    input: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Option<Tensor>,
    bias: bool,
}

impl Vjp for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn backward(&self, grad: Tensor, _needs: &[bool]) -> Result<Grads> {
        let all = grad.layer_norm_backward(
            &self.input,
            &self.normalized,
            self.weight.as_ref(),
            &self.mean,
            &self.rstd,
        )?;
        let mut grads = Grads::new();
        grads.push(Some(all.input));
        if self.weight.is_some() {
            grads.push(all.weight);
        }
        if self.bias {
            grads.push(match all.bias {
                Some(bias) => Some(bias),
                None => Some(grad.sum_to_shape(&self.normalized)?),
            });
        }
        Ok(grads)
    }

    fn saved_bytes(&self) -> usize {
        let always = [&self.input, &self.mean, &self.rstd];
        always
            .into_iter()
            .chain(&self.weight)
            .map(tensor_bytes)
            .sum()
    }

    fn joint(&self) -> bool {
        true
    }
}

impl Var {
    /// Normalises each channel of `[n, c, …]` by this batch's mean and variance, then scales,
    /// shifts, adds `residual` and applies ReLU where asked for, in one pass. As
    /// [`Tensor::batch_norm_act`].
    ///
    /// # Errors
    /// As the tensor's method; [`Error::TapeMismatch`](crate::Error::TapeMismatch).
    pub fn batch_norm(
        &self,
        weight: Option<&Var>,
        bias: Option<&Var>,
        eps: f64,
        residual: Option<&Var>,
        relu: bool,
    ) -> Result<BatchNormVar> {
        let (w, b) = (weight.map(Var::value), bias.map(Var::value));
        let x = self.value();
        let stats = x.batch_norm_act(w, b, eps, residual.map(Var::value), relu);
        let stats = stats.map_err(|error| error.of("batch_norm"))?;
        let (mean, var) = (stats.mean.clone(), stats.var);
        let statistics = Statistics::Batch {
            mean: stats.mean,
            invstd: stats.invstd,
        };
        let out = self.normalised(stats.out, statistics, [weight, bias, residual], relu)?;
        Ok(BatchNormVar { out, mean, var })
    }

    /// Normalises each channel of `[n, c, …]` by a mean and a variance that are given, and no
    /// function of the input, then scales, shifts, adds `residual` and applies ReLU where asked for,
    /// in one pass. As [`Tensor::batch_norm_inference`].
    ///
    /// # Errors
    /// As the tensor's method; [`Error::TapeMismatch`](crate::Error::TapeMismatch).
    #[allow(clippy::too_many_arguments)] // the tensor's
    pub fn batch_norm_inference(
        &self,
        mean: &Tensor,
        var: &Tensor,
        weight: Option<&Var>,
        bias: Option<&Var>,
        eps: f64,
        residual: Option<&Var>,
        relu: bool,
    ) -> Result<Var> {
        let (w, b) = (weight.map(Var::value), bias.map(Var::value));
        let (x, r) = (self.value(), residual.map(Var::value));
        let out = x.batch_norm_inference(mean, var, w, b, eps, r, relu)?;
        let statistics = Statistics::Given {
            mean: mean.clone(),
            var: var.clone(),
            eps,
        };
        self.normalised(out, statistics, [weight, bias, residual], relu)
    }

    /// Records a batch normalisation of `self` with the result `out`.
    fn normalised(
        &self,
        out: Tensor,
        statistics: Statistics,
        [weight, bias, residual]: [Option<&Var>; 3],
        relu: bool,
    ) -> Result<Var> {
        let of = |v: Option<&Var>| v.map(|v| v.value().clone());
        let inputs: SmallVec<[&Var; 4]> = [Some(self), weight, bias, residual]
            .into_iter()
            .flatten()
            .collect();
        Var::from_vjp(self.tape(), &inputs, out.clone(), |_| BatchNorm {
            statistics,
            input: self.value().clone(),
            weight: of(weight),
            bias: of(bias),
            residual: residual.is_some(),
            after: match (relu, residual) {
                (false, _) => After::Nothing,
                (true, None) => After::Relu,
                (true, Some(_)) => After::ResidualRelu(out),
            },
        })
    }

    /// Normalises the last axes, whose extents are `normalized`, then scales and shifts. As
    /// [`Tensor::layer_norm`].
    ///
    /// # Errors
    /// As the tensor's method; [`Error::TapeMismatch`](crate::Error::TapeMismatch).
    pub fn layer_norm(
        &self,
        normalized: impl Into<Shape>,
        weight: Option<&Var>,
        bias: Option<&Var>,
        eps: f64,
    ) -> Result<Var> {
        let normalized = normalized.into();
        let (w, b) = (weight.map(Var::value), bias.map(Var::value));
        let stats = self.value().layer_norm(&normalized, w, b, eps)?;
        let inputs: SmallVec<[&Var; 4]> =
            [Some(self), weight, bias].into_iter().flatten().collect();
        Var::from_vjp(self.tape(), &inputs, stats.out, |_| LayerNorm {
            normalized,
            input: self.value().clone(),
            mean: stats.mean,
            rstd: stats.rstd,
            weight: w.cloned(),
            bias: bias.is_some(),
        })
    }
}
