//! [`BatchNorm2d`] and [`LayerNorm`].

use super::init::{Factory, Init};
use super::module::{Module, Training, Visitor};
use crate::error::{Error, Result};
use crate::param::{Buffer, Param};
use crate::slot::set_all;
use crate::tape::Tape;
use crate::var::Var;
use phalanx_tensor::ops::norm::BatchNormMomentum;
use phalanx_tensor::{DType, Shape, Tensor};

/// Batch normalisation of the channels of `[n, c, h, w]` (Ioffe and Szegedy 2015), as
/// `torch.nn.BatchNorm2d`: by the batch's statistics in training, by running ones in evaluation.
///
/// Parameters `weight` (1) and `bias` (0), buffers `running_mean` (0), `running_var` (1, from the
/// unbiased variance) and `num_batches_tracked`.
///
/// A batch of no images (a rank that ran out of data, a detector that found nothing) gives an empty
/// result and zero gradients, and leaves the buffers as they are (as in pytorch#12013; PyTorch
/// counts the batch in `num_batches_tracked`, and here it does not count).
#[derive(Debug)]
pub struct BatchNorm2d {
    /// The scale, `[c]`.
    pub weight: Param,
    /// The shift, `[c]`.
    pub bias: Param,
    /// `[c]`.
    pub running_mean: Buffer,
    /// `[c]`.
    pub running_var: Buffer,
    /// How many batches the running statistics have seen.
    pub num_batches_tracked: Buffer,
    /// Added to the variance; 1e-5.
    pub eps: f64,
    /// Share of a new batch in the running statistics, 0.1; `None` for the mean over all batches.
    pub momentum: Option<f64>,
    /// Whether ReLU follows in the same pass.
    pub relu: bool,
    training: Training,
}

impl BatchNorm2d {
    /// For `channels` channels.
    ///
    /// # Errors
    /// As [`Factory::tensor`].
    pub fn new(channels: usize, f: &mut Factory) -> Result<BatchNorm2d> {
        // Running statistics of a half-precision model are kept in `f32`.
        let dtype = f.dtype.compute();
        let buffer =
            |value| Ok::<_, Error>(Buffer::new(Tensor::full(channels, value, dtype, f.device)?));
        let (running_mean, running_var) = (buffer(0.0)?, buffer(1.0)?);
        let count = Tensor::zeros((), DType::I64, f.device)?;
        Ok(BatchNorm2d {
            weight: Param::new(f.tensor(channels, Init::Constant(1.0))?),
            bias: Param::new(f.tensor(channels, Init::Constant(0.0))?),
            running_mean,
            running_var,
            num_batches_tracked: Buffer::new(count),
            eps: 1e-5,
            momentum: Some(0.1),
            relu: false,
            training: Training::default(),
        })
    }

    /// The same with ReLU behind it, fused.
    #[must_use]
    pub fn with_relu(self) -> BatchNorm2d {
        BatchNorm2d { relu: true, ..self }
    }

    /// The layer, then `+ residual`, then ReLU if the layer has one: the end of a residual block
    /// in one pass.
    ///
    /// # Errors
    /// As [`Var::batch_norm`]; [`Error::InvalidArgument`] for an input without channels and, in
    /// training, for one element per channel.
    pub fn forward_residual(&self, tape: &Tape, x: &Var, residual: &Var) -> Result<Var> {
        self.normalise(tape, x, Some(residual))
    }

    fn normalise(&self, tape: &Tape, x: &Var, residual: Option<&Var>) -> Result<Var> {
        let unusable = |what: &str| Error::InvalidArgument {
            op: "BatchNorm2d",
            reason: format!("an input of shape {} {what}", x.shape()),
        };
        let &[_, channels, ..] = x.dims() else {
            return Err(unusable("has no channels: it needs [n, c, …]"));
        };
        let (weight, bias) = (tape.leaf(&self.weight), tape.leaf(&self.bias));
        if !self.training.is_on() {
            return self.evaluate(x, &weight, &bias, residual);
        }
        let per_channel = x.numel() / channels.max(1);
        if per_channel == 1 {
            // Its unbiased variance is 0 / 0, which would stay in the running one for good.
            return Err(unusable("has one element per channel: no variance"));
        }
        let result = x.batch_norm(Some(&weight), Some(&bias), self.eps, residual, self.relu)?;
        // A batch without elements has no statistics: the running ones stay, and so does the count.
        if !tape.is_replaying() && per_channel > 0 {
            self.track(&result.mean, &result.var, per_channel)?;
        }
        Ok(result.out)
    }

    /// Moves the running statistics towards those of a batch with `n` elements per channel.
    fn track(&self, mean: &Tensor, var: &Tensor, n: usize) -> Result<()> {
        let count = self.num_batches_tracked.read(|n| n.add_scalar(1.0))?;
        let momentum = match self.momentum {
            Some(share) => BatchNormMomentum::Share(share),
            None => BatchNormMomentum::Cumulative(&count),
        };
        let batch = [mean, var];
        let [mean, var] = self.running_mean.read(|mean| {
            self.running_var
                .read(|var| Tensor::batch_norm_track([mean, var], batch, n, momentum))
        })?;
        // All three or, where there is no memory, none.
        let buffers = [
            &self.num_batches_tracked,
            &self.running_mean,
            &self.running_var,
        ];
        set_all(&buffers.map(Buffer::slot), &[&count, &mean, &var])
    }

    /// By the running statistics, which are constants.
    fn evaluate(&self, x: &Var, weight: &Var, bias: &Var, residual: Option<&Var>) -> Result<Var> {
        // Half types compute in `f32`: there, statistics lose no digits.
        let dtype = x.dtype().compute();
        x.batch_norm_inference(
            &self.running_mean.read(|mean| mean.cast(dtype))?,
            &self.running_var.read(|var| var.cast(dtype))?,
            Some(weight),
            Some(bias),
            self.eps,
            residual,
            self.relu,
        )
    }
}

impl Module for BatchNorm2d {
    fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
        self.normalise(tape, x, None)
    }

    fn visit(&self, v: &mut Visitor<'_>) {
        v.param("weight", &self.weight);
        v.param("bias", &self.bias);
        v.buffer("running_mean", &self.running_mean);
        v.buffer("running_var", &self.running_var);
        v.buffer("num_batches_tracked", &self.num_batches_tracked);
        v.training(&self.training);
    }
}

/// Normalisation of the last axes (Ba et al. 2016), as `torch.nn.LayerNorm`: parameters `weight`
/// (1) and `bias` (0).
#[derive(Debug)]
pub struct LayerNorm {
    /// The scale.
    pub weight: Param,
    /// The shift.
    pub bias: Param,
    /// Added to the variance; 1e-5.
    pub eps: f64,
}

impl LayerNorm {
    /// For inputs whose last axes have the extents `normalized`.
    ///
    /// # Errors
    /// As [`Factory::tensor`].
    pub fn new(normalized: impl Into<Shape>, f: &mut Factory) -> Result<LayerNorm> {
        let shape = normalized.into();
        Ok(LayerNorm {
            weight: Param::new(f.tensor(&shape, Init::Constant(1.0))?),
            bias: Param::new(f.tensor(&shape, Init::Constant(0.0))?),
            eps: 1e-5,
        })
    }

    /// The same with another `eps`.
    #[must_use]
    pub fn with_eps(self, eps: f64) -> LayerNorm {
        LayerNorm { eps, ..self }
    }
}

impl Module for LayerNorm {
    fn forward(&self, tape: &Tape, x: &Var) -> Result<Var> {
        let (weight, bias) = (tape.leaf(&self.weight), tape.leaf(&self.bias));
        x.layer_norm(self.weight.shape(), Some(&weight), Some(&bias), self.eps)
    }

    fn visit(&self, v: &mut Visitor<'_>) {
        v.param("weight", &self.weight);
        v.param("bias", &self.bias);
    }
}
