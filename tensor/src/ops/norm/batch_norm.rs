//! Batch normalisation over `[n, c, …]`: one mean and variance per channel, with the addition of a
//! residual and ReLU in the same pass where a network has them.

use super::cpu::batch_norm as cpu;
use crate::storage::{On, on, out};
use crate::{Error, Result, Shape, Tensor};

/// What [`Tensor::batch_norm`] computes. The statistics have one element per channel and are `f32`
/// for half types.
#[derive(Clone, Debug)]
pub struct BatchNormOutput {
    /// The normalised tensor, of the input's shape and type.
    pub out: Tensor,
    /// Mean of each channel.
    pub mean: Tensor,
    /// Variance of each channel, divided by the number of elements (not by one less).
    pub var: Tensor,
    /// `1 / √(var + eps)`.
    pub invstd: Tensor,
}

/// The gradients of a batch normalisation.
#[derive(Clone, Debug)]
pub struct BatchNormGrads {
    /// With respect to the input.
    pub input: Tensor,
    /// With respect to the weight: one element per channel.
    pub weight: Tensor,
    /// With respect to the bias: one element per channel.
    pub bias: Tensor,
    /// With respect to the residual, where there was one.
    pub residual: Option<Tensor>,
}

/// What the forward pass keeps for the gradients of a batch normalisation.
#[derive(Clone, Copy, Debug)]
pub struct BatchNormSaved<'a> {
    /// The input.
    pub input: &'a Tensor,
    /// [`BatchNormOutput::mean`], or the mean that was given.
    pub mean: &'a Tensor,
    /// [`BatchNormOutput::invstd`], or [`Tensor::batch_norm_invstd`] of the variance that was
    /// given.
    pub invstd: &'a Tensor,
    /// The scale of each channel, if there was one.
    pub weight: Option<&'a Tensor>,
    /// The shift of each channel, if there was one.
    pub bias: Option<&'a Tensor>,
    /// Which activation followed, and what its mask is read from.
    pub activation: BatchNormMask<'a>,
}

/// The activation after a batch normalisation, and where its gradient's mask comes from.
#[derive(Clone, Copy, Debug)]
pub enum BatchNormMask<'a> {
    /// No activation. A residual, if there was one, has the gradient of the output.
    Linear,
    /// ReLU without a residual: the mask is computed again from the input.
    Relu,
    /// ReLU after the addition of a residual: the mask is read from the output, which is given.
    ResidualRelu(&'a Tensor),
}

impl Tensor {
    /// Batch normalisation of `self` `[n, c, …]` with the statistics of this batch: each channel
    /// to mean 0 and variance 1, then scaled by `weight` `[c]` and shifted by `bias` `[c]`.
    ///
    /// The variance is the mean square distance from the mean, in two passes: sums of a plane in
    /// the working type, planes' sums in `f64`. So a mean far from zero costs no digits.
    ///
    /// A batch without elements gives an empty result, and statistics that are NaN, as the
    /// [mean](Tensor::mean) of nothing is; its gradients are zeros.
    ///
    /// ```
    /// use phalanx_tensor::{Device, Tensor};
    ///
    /// let x = Tensor::from_slice(&[1.0f32, 3.0], [2, 1], Device::cpu(0))?;
    /// let y = x.batch_norm(None, None, 0.0)?;
    /// assert_eq!(y.out.to_vec::<f32>()?, [-1.0, 1.0]);
    /// assert_eq!((y.mean.item::<f64>()?, y.var.item::<f64>()?), (2.0, 1.0));
    /// # Ok::<(), phalanx_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// Rank below 2, no float type, or operands that do not fit.
    pub fn batch_norm(
        &self,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        eps: f64,
    ) -> Result<BatchNormOutput> {
        let input = Input {
            x: self,
            affine: (weight, bias),
            eps,
            residual: None,
            relu: false,
        };
        forward("batch_norm", &input)
    }

    /// [`batch_norm`](Tensor::batch_norm), then `+ residual`, then ReLU where `relu` says so: the
    /// end of a residual block in one pass over memory.
    ///
    /// # Errors
    /// As [`batch_norm`](Tensor::batch_norm); where `residual` has another shape.
    pub fn batch_norm_act(
        &self,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        eps: f64,
        residual: Option<&Tensor>,
        relu: bool,
    ) -> Result<BatchNormOutput> {
        let input = Input {
            x: self,
            affine: (weight, bias),
            eps,
            residual,
            relu,
        };
        forward("batch_norm_act", &input)
    }

    /// Batch normalisation with given statistics, as at evaluation:
    /// `(x − mean) / √(var + eps) · weight + bias`, then `+ residual`, then ReLU where asked for.
    /// Half types compute in `f32` and round once.
    ///
    /// # Errors
    /// As [`batch_norm_act`](Tensor::batch_norm_act).
    #[allow(clippy::too_many_arguments)] // PyTorch's list, and the two of batch_norm_act
    pub fn batch_norm_inference(
        &self,
        mean: &Tensor,
        var: &Tensor,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        eps: f64,
        residual: Option<&Tensor>,
        relu: bool,
    ) -> Result<Tensor> {
        const OP: &str = "batch_norm_inference";
        let input = Input {
            x: self,
            affine: (weight, bias),
            eps,
            residual,
            relu,
        };
        let dims = input.check(OP)?;
        check_channels(OP, self, [Some(mean), Some(var)], &dims)?;
        let mut y = Tensor::allocate(OP, self.shape().clone(), self.dtype(), self.device())?;
        match on(OP, (input.operands(), (mean, var), out(&mut y)))? {
            On::Cpu((_, stats, y)) => cpu::inference(OP, &dims, &input, stats, y)?,
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (_, stats, y)) => {
                super::cuda::batch_norm::inference(&mut lane, &dims, &input, stats, y)?;
            }
        }
        Ok(y)
    }

    /// `1 / √(self + eps)` in the working type, with the bits that
    /// [`batch_norm_inference`](Tensor::batch_norm_inference) computes with.
    ///
    /// # Errors
    /// [`Error::UnsupportedDType`] for integers; [`Error::OutOfMemory`].
    pub fn batch_norm_invstd(&self, eps: f64) -> Result<Tensor> {
        const OP: &str = "batch_norm_invstd";
        self.expect_float(OP)?;
        let wide = self.dtype().compute();
        let mut invstd = Tensor::allocate(OP, self.shape().clone(), wide, self.device())?;
        match on(OP, (self, out(&mut invstd)))? {
            On::Cpu((var, invstd)) => cpu::invstd(OP, var, eps, invstd)?,
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (var, invstd)) => {
                super::cuda::batch_norm::invstd(&mut lane, var, eps, invstd)?
            }
        }
        Ok(invstd)
    }

    /// The gradients of [`batch_norm`](Tensor::batch_norm) (or, with an
    /// [activation](BatchNormSaved::activation), of [`batch_norm_act`](Tensor::batch_norm_act)),
    /// given `grad` with respect to its output.
    ///
    /// # Errors
    /// Tensors that are not those of one forward pass: other shapes, types or devices.
    pub fn batch_norm_backward(
        grad: &Tensor,
        saved: &BatchNormSaved<'_>,
    ) -> Result<BatchNormGrads> {
        backward("batch_norm_backward", grad, saved, Origin::Batch)
    }

    /// The gradients of [`batch_norm_inference`](Tensor::batch_norm_inference), whose statistics do
    /// not depend on the input, given `grad` with respect to its output.
    ///
    /// # Errors
    /// As [`batch_norm_backward`](Tensor::batch_norm_backward).
    pub fn batch_norm_inference_backward(
        grad: &Tensor,
        saved: &BatchNormSaved<'_>,
    ) -> Result<BatchNormGrads> {
        const OP: &str = "batch_norm_inference_backward";
        backward(OP, grad, saved, Origin::Given)
    }
}

/// `[n, c, …]` as `n × c` planes of `plane` elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dims {
    pub n: usize,
    pub c: usize,
    pub plane: usize,
}

impl Dims {
    fn new(op: &'static str, x: &Tensor) -> Result<Self> {
        x.expect_float(op)?;
        let &[n, c, ref rest @ ..] = x.dims() else {
            return Err(Error::InvalidShape {
                op,
                shape: x.shape().clone(),
                reason: "needs at least two axes, [n, c, …]".into(),
            });
        };
        Ok(Dims {
            n,
            c,
            plane: rest.iter().product(),
        })
    }
}

/// Where the statistics of a backward pass come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// From the batch itself: the gradient flows through them too.
    Batch,
    /// From elsewhere: they are constants.
    Given,
}

/// What a forward pass reads, but for statistics that are given.
pub(super) struct Input<'a> {
    pub(super) x: &'a Tensor,
    /// Scale and shift of each channel.
    pub(super) affine: (Option<&'a Tensor>, Option<&'a Tensor>),
    pub(super) eps: f64,
    pub(super) residual: Option<&'a Tensor>,
    pub(super) relu: bool,
}

type Operands<'a> = (
    &'a Tensor,
    (Option<&'a Tensor>, Option<&'a Tensor>),
    Option<&'a Tensor>,
);

impl<'a> Input<'a> {
    fn check(&self, op: &'static str) -> Result<Dims> {
        let dims = Dims::new(op, self.x)?;
        check_channels(op, self.x, [self.affine.0, self.affine.1], &dims)?;
        self.residual
            .map_or(Ok(()), |r| check_like(op, r, self.x))?;
        Ok(dims)
    }

    fn operands(&self) -> Operands<'a> {
        (self.x, self.affine, self.residual)
    }
}

/// The tensors have one element per channel; they are of the input's type or, as statistics and
/// often parameters of half-precision networks are, already of the working type.
fn check_channels(
    op: &'static str,
    x: &Tensor,
    tensors: [Option<&Tensor>; 2],
    dims: &Dims,
) -> Result<()> {
    for t in tensors.into_iter().flatten() {
        t.expect_same_device(op, x)?;
        if t.dtype() != x.dtype() && t.dtype() != x.dtype().compute() {
            return Err(Error::DTypeMismatch {
                op,
                lhs: x.dtype(),
                rhs: t.dtype(),
            });
        }
        if t.dims() != [dims.c] {
            return Err(Error::ShapeMismatch {
                op,
                lhs: x.shape().clone(),
                rhs: t.shape().clone(),
                reason: "parameters and statistics must have one element per channel",
            });
        }
    }
    Ok(())
}

fn check_like(op: &'static str, t: &Tensor, x: &Tensor) -> Result<()> {
    t.expect_same_kind(op, x)?;
    t.expect_same_shape(
        op,
        x,
        "gradient, output and residual must have the input's shape",
    )
}

fn forward(op: &'static str, input: &Input<'_>) -> Result<BatchNormOutput> {
    let (dims, x) = (input.check(op)?, input.x);
    let like = |shape: Shape, dtype| Tensor::allocate(op, shape, dtype, x.device());
    let stat = || like(dims.c.into(), x.dtype().compute());
    let mut output = BatchNormOutput {
        out: like(x.shape().clone(), x.dtype())?,
        mean: stat()?,
        var: stat()?,
        invstd: stat()?,
    };
    let (mean, var) = (out(&mut output.mean), out(&mut output.var));
    let stats = (mean, var, out(&mut output.invstd));
    match on(op, (input.operands(), stats, out(&mut output.out)))? {
        On::Cpu((_, stats, y)) => cpu::forward(op, &dims, input, stats, y)?,
        #[cfg(feature = "cuda")]
        On::Cuda(mut lane, (_, stats, y)) => {
            super::cuda::batch_norm::forward(&mut lane, &dims, input, stats, y)?
        }
    }
    Ok(output)
}

fn backward(
    op: &'static str,
    grad: &Tensor,
    saved: &BatchNormSaved<'_>,
    origin: Origin,
) -> Result<BatchNormGrads> {
    let x = saved.input;
    let dims = Dims::new(op, x)?;
    check_like(op, grad, x)?;
    check_channels(op, x, [saved.weight, saved.bias], &dims)?;
    check_channels(op, x, [Some(saved.mean), Some(saved.invstd)], &dims)?;
    let output = match saved.activation {
        BatchNormMask::ResidualRelu(output) => Some(output),
        BatchNormMask::Linear | BatchNormMask::Relu => None,
    };
    output.map_or(Ok(()), |output| check_like(op, output, x))?;
    let like = |shape: &Shape, dtype| Tensor::allocate(op, shape.clone(), dtype, x.device());
    let of = |param: Option<&Tensor>| {
        let dtype = param.map_or(x.dtype().compute(), Tensor::dtype);
        like(&dims.c.into(), dtype)
    };
    let mut grads = BatchNormGrads {
        input: like(x.shape(), x.dtype())?,
        weight: of(saved.weight)?,
        bias: of(saved.bias)?,
        residual: output.map(|_| like(x.shape(), x.dtype())).transpose()?,
    };
    let operands = ((grad, x, output), (saved.weight, saved.bias));
    let results = (
        out(&mut grads.input),
        (out(&mut grads.weight), out(&mut grads.bias)),
        grads.residual.as_mut().map(out),
    );
    match on(op, (operands, (saved.mean, saved.invstd), results))? {
        On::Cpu((_, _, results)) => cpu::backward(op, &dims, grad, saved, origin, results)?,
        #[cfg(feature = "cuda")]
        On::Cuda(mut lane, (_, _, results)) => {
            super::cuda::batch_norm::backward(&mut lane, &dims, grad, saved, origin, results)?;
        }
    }
    Ok(grads)
}
