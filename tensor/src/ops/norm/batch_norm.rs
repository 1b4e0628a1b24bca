//! Batch normalisation over `[n, c, …]`: one mean and variance per channel, with the addition of a
//! residual and ReLU in the same pass where a network has them.

use super::cpu::batch_norm as cpu;
use crate::ops::working::{on_real, rounded, working};
use crate::storage::Memory;
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
        forward(
            "batch_norm",
            self,
            Affine { weight, bias },
            eps,
            None,
            false,
        )
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
        forward(
            "batch_norm_act",
            self,
            Affine { weight, bias },
            eps,
            residual,
            relu,
        )
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
        let dims = Dims::new(OP, self)?;
        let x = working(OP, self)?;
        let affine = Affine { weight, bias }.check(OP, self, &dims)?;
        let residual = residual_of(OP, self, residual)?;
        let mean = channel(OP, self, mean, &dims)?;
        let invstd = channel(OP, self, var, &dims)?.batch_norm_invstd(eps);
        let invstd = invstd.map_err(|error| error.of(OP))?;
        let mut out = Tensor::allocate(OP, x.shape().clone(), x.dtype(), x.device())?;
        match self.storage().memory() {
            #[cfg(feature = "cuda")]
            Memory::Cuda(s) => return Err(s.unsupported(OP)),
            Memory::Cpu(_) => on_real!(x, T => {
                let (w, b) = affine.slices::<T>()?;
                let residual = residual.as_ref().map(|r| r.as_slice::<T>()).transpose()?;
                let stats = (mean.as_slice::<T>()?, invstd.as_slice::<T>()?);
                cpu::inference(&dims, x.as_slice()?, stats, (w, b), (residual, relu), out.make_mut()?);
            }),
        }
        rounded(OP, out, self.dtype())
    }

    /// `1 / √(self + eps)` in the working type, with the bits that
    /// [`batch_norm_inference`](Tensor::batch_norm_inference) computes with.
    ///
    /// # Errors
    /// [`Error::UnsupportedDType`] for integers; [`Error::OutOfMemory`].
    pub fn batch_norm_invstd(&self, eps: f64) -> Result<Tensor> {
        const OP: &str = "batch_norm_invstd";
        self.expect_float(OP)?;
        let var = working(OP, self)?;
        let mut out = Tensor::allocate(OP, var.shape().clone(), var.dtype(), var.device())?;
        match var.storage().memory() {
            #[cfg(feature = "cuda")]
            Memory::Cuda(s) => return Err(s.unsupported(OP)),
            Memory::Cpu(_) => on_real!(var, T => {
                cpu::invstd::<T>(var.as_slice()?, eps, out.make_mut()?);
            }),
        }
        Ok(out)
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
        backward("batch_norm_backward", grad, saved, cpu::Origin::Batch)
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
        backward(OP, grad, saved, cpu::Origin::Given)
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

/// Scale and shift of each channel.
struct Affine<'a> {
    weight: Option<&'a Tensor>,
    bias: Option<&'a Tensor>,
}

/// The same, checked and in the working type.
struct WorkingAffine {
    weight: Option<Tensor>,
    bias: Option<Tensor>,
}

impl Affine<'_> {
    fn check(&self, op: &'static str, x: &Tensor, dims: &Dims) -> Result<WorkingAffine> {
        let get = |t: Option<&Tensor>| t.map(|t| channel(op, x, t, dims)).transpose();
        Ok(WorkingAffine {
            weight: get(self.weight)?,
            bias: get(self.bias)?,
        })
    }
}

impl WorkingAffine {
    fn slices<T: crate::Element>(&self) -> Result<cpu::Affine<'_, T>> {
        let weight = self.weight.as_ref().map(|t| t.as_slice()).transpose()?;
        let bias = self.bias.as_ref().map(|t| t.as_slice()).transpose()?;
        Ok((weight, bias))
    }
}

/// A tensor of one element per channel, in the working type; of the input's type or, as
/// statistics and often parameters of half-precision networks are, already of the working type.
fn channel(op: &'static str, x: &Tensor, t: &Tensor, dims: &Dims) -> Result<Tensor> {
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
    working(op, t)
}

fn same_shape(op: &'static str, t: &Tensor, x: &Tensor) -> Result<()> {
    t.expect_same_kind(op, x)?;
    if t.shape() == x.shape() {
        return Ok(());
    }
    Err(Error::ShapeMismatch {
        op,
        lhs: t.shape().clone(),
        rhs: x.shape().clone(),
        reason: "gradient, output and residual must have the input's shape",
    })
}

fn residual_of(op: &'static str, x: &Tensor, residual: Option<&Tensor>) -> Result<Option<Tensor>> {
    let Some(r) = residual else { return Ok(None) };
    same_shape(op, r, x)?;
    working(op, r).map(Some)
}

fn forward(
    op: &'static str,
    input: &Tensor,
    affine: Affine<'_>,
    eps: f64,
    residual: Option<&Tensor>,
    relu: bool,
) -> Result<BatchNormOutput> {
    let dims = Dims::new(op, input)?;
    let x = working(op, input)?;
    let affine = affine.check(op, input, &dims)?;
    let residual = residual_of(op, input, residual)?;
    let like = |shape: Shape| Tensor::allocate(op, shape, x.dtype(), x.device());
    let mut out = like(x.shape().clone())?;
    let (mut mean, mut var, mut invstd) = (
        like(dims.c.into())?,
        like(dims.c.into())?,
        like(dims.c.into())?,
    );
    match input.storage().memory() {
        #[cfg(feature = "cuda")]
        Memory::Cuda(s) => return Err(s.unsupported(op)),
        Memory::Cpu(_) => on_real!(x, T => {
            let (w, b) = affine.slices::<T>()?;
            let residual = residual.as_ref().map(|r| r.as_slice::<T>()).transpose()?;
            let stats = cpu::Stats {
                mean: mean.make_mut()?,
                var: var.make_mut()?,
                invstd: invstd.make_mut()?,
            };
            cpu::forward(&dims, x.as_slice()?, (w, b), eps, (residual, relu), stats, out.make_mut()?);
        }),
    }
    Ok(BatchNormOutput {
        out: rounded(op, out, input.dtype())?,
        mean,
        var,
        invstd,
    })
}

fn backward(
    op: &'static str,
    grad: &Tensor,
    saved: &BatchNormSaved<'_>,
    origin: cpu::Origin,
) -> Result<BatchNormGrads> {
    let input = saved.input;
    let dims = Dims::new(op, input)?;
    same_shape(op, grad, input)?;
    let affine = Affine {
        weight: saved.weight,
        bias: saved.bias,
    }
    .check(op, input, &dims)?;
    let mean = channel(op, input, saved.mean, &dims)?;
    let invstd = channel(op, input, saved.invstd, &dims)?;
    let out = match saved.activation {
        BatchNormMask::ResidualRelu(out) => {
            same_shape(op, out, input)?;
            Some(working(op, out)?)
        }
        _ => None,
    };
    let (x, dy) = (working(op, input)?, working(op, grad)?);
    let like = |shape: Shape| Tensor::allocate(op, shape, x.dtype(), x.device());
    let mut dx = like(x.shape().clone())?;
    let mut residual = out.is_some().then(|| like(x.shape().clone())).transpose()?;
    let (mut dw, mut db) = (like(dims.c.into())?, like(dims.c.into())?);
    match input.storage().memory() {
        #[cfg(feature = "cuda")]
        Memory::Cuda(s) => return Err(s.unsupported(op)),
        Memory::Cpu(_) => on_real!(x, T => {
            let (w, b) = affine.slices::<T>()?;
            let mask = match (&out, &mut residual) {
                (Some(out), Some(r)) => cpu::Mask::Output(out.as_slice()?, r.make_mut()?),
                _ if matches!(saved.activation, BatchNormMask::Relu) => cpu::Mask::Input,
                _ => cpu::Mask::None,
            };
            let stats = (mean.as_slice::<T>()?, invstd.as_slice::<T>()?, origin);
            let grads = cpu::Grads { dx: dx.make_mut()?, dw: dw.make_mut()?, db: db.make_mut()? };
            cpu::backward(&dims, dy.as_slice()?, x.as_slice()?, stats, (w, b), mask, grads);
        }),
    }
    let kind = |p: Option<&Tensor>| p.map_or(x.dtype(), Tensor::dtype);
    Ok(BatchNormGrads {
        input: rounded(op, dx, input.dtype())?,
        weight: rounded(op, dw, kind(saved.weight))?,
        bias: rounded(op, db, kind(saved.bias))?,
        residual: residual
            .map(|r| rounded(op, r, input.dtype()))
            .transpose()?,
    })
}
