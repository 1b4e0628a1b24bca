//! Kernels of batch normalisation.

mod passes;

use crate::cpu::rows::C;
use crate::cpu::working::{Wide, on_real, slice_if, working, working_if};
use crate::ops::norm::batch_norm::{BatchNormMask, BatchNormSaved, Dims, Input, Origin};
use crate::ops::norm::running::BatchNormMomentum;
use crate::{Element, Float, Result, Tensor, dispatch_float};

/// Normalises with the statistics of the batch, which are written.
pub(crate) fn forward(
    op: &'static str,
    d: &Dims,
    input: &Input<'_>,
    (mean, var, invstd): (&mut Tensor, &mut Tensor, &mut Tensor),
    out: &mut Tensor,
) -> Result<()> {
    let (w, b) = (
        working_if(op, input.affine.0)?,
        working_if(op, input.affine.1)?,
    );
    let (x, residual) = (working(op, input.x)?, working_if(op, input.residual)?);
    let mut out = Wide::new(op, out)?;
    on_real!(x, T => {
        let stats = [mean.make_mut()?, var.make_mut()?, invstd.make_mut()?];
        let affine = (slice_if(&w)?, slice_if(&b)?);
        let (x, after) = (x.as_slice::<T>()?, (slice_if(&residual)?, input.relu));
        passes::forward(d, x, affine, input.eps, after, stats, out.slice()?);
    });
    out.round()
}

/// Normalises with given statistics.
pub(crate) fn inference(
    op: &'static str,
    d: &Dims,
    input: &Input<'_>,
    (mean, var): (&Tensor, &Tensor),
    out: &mut Tensor,
) -> Result<()> {
    let (w, b) = (
        working_if(op, input.affine.0)?,
        working_if(op, input.affine.1)?,
    );
    let (x, residual) = (working(op, input.x)?, working_if(op, input.residual)?);
    let mean = working(op, mean)?;
    let mut inv = Tensor::allocate(op, mean.shape().clone(), mean.dtype(), mean.device())?;
    invstd(op, var, input.eps, &mut inv)?;
    let mut out = Wide::new(op, out)?;
    on_real!(x, T => {
        let (stats, affine) = ((mean.as_slice()?, inv.as_slice()?), (slice_if(&w)?, slice_if(&b)?));
        let (x, after) = (x.as_slice::<T>()?, (slice_if(&residual)?, input.relu));
        passes::inference(d, x, stats, affine, after, out.slice()?);
    });
    out.round()
}

/// `1 / √(var + eps)`.
pub(crate) fn invstd(op: &'static str, var: &Tensor, eps: f64, out: &mut Tensor) -> Result<()> {
    let var = working(op, var)?;
    on_real!(var, T => {
        for (out, var) in out.make_mut::<T>()?.iter_mut().zip(var.as_slice::<T>()?) {
            *out = T::from_f64(1.0 / (var.to_f64() + eps).sqrt());
        }
    });
    Ok(())
}

/// The gradients of the input, of scale and shift, and of the residual where there was one.
pub(crate) fn backward(
    op: &'static str,
    d: &Dims,
    grad: &Tensor,
    saved: &BatchNormSaved<'_>,
    origin: Origin,
    (dx, (dw, db), residual): (&mut Tensor, (&mut Tensor, &mut Tensor), Option<&mut Tensor>),
) -> Result<()> {
    let (w, b) = (working_if(op, saved.weight)?, working_if(op, saved.bias)?);
    let (mean, invstd) = (working(op, saved.mean)?, working(op, saved.invstd)?);
    let mut masked = match (saved.activation, residual) {
        (BatchNormMask::ResidualRelu(out), Some(r)) => Some((working(op, out)?, Wide::new(op, r)?)),
        _ => None,
    };
    let (x, dy) = (working(op, saved.input)?, working(op, grad)?);
    let mut dx = Wide::new(op, dx)?;
    let (mut dw, mut db) = (Wide::new(op, dw)?, Wide::new(op, db)?);
    on_real!(x, T => {
        let mask = match (&mut masked, saved.activation) {
            (Some((out, masked)), _) => passes::Mask::Output(out.as_slice()?, masked.slice()?),
            (None, BatchNormMask::Relu) => passes::Mask::Input,
            (None, _) => passes::Mask::None,
        };
        let stats = (mean.as_slice::<T>()?, invstd.as_slice()?, origin);
        let grads = [dx.slice()?, dw.slice()?, db.slice()?];
        let affine = (slice_if(&w)?, slice_if(&b)?);
        passes::backward(d, dy.as_slice()?, x.as_slice()?, stats, affine, mask, grads);
    });
    if let Some((_, masked)) = masked {
        masked.round()?;
    }
    dw.round()?;
    db.round()?;
    dx.round()
}

/// Moves running statistics towards those of a batch. Both terms are rounded to their type.
pub(crate) fn track(
    op: &'static str,
    running: &[&Tensor],
    batch: &[&Tensor],
    elements: usize,
    momentum: BatchNormMomentum<'_>,
    (mean, var): (&mut Tensor, &mut Tensor),
) -> Result<()> {
    let momentum = match momentum {
        BatchNormMomentum::Share(share) => share,
        BatchNormMomentum::Cumulative(count) => 1.0 / count.as_slice::<i64>()?[0] as f64,
    };
    let unbiased = elements as f64 / (elements as f64 - 1.0);
    let results = [(mean, 1.0), (var, unbiased)];
    for ((running, batch), (out, factor)) in running.iter().zip(batch).zip(results) {
        let batch = batch.cast_for(op, running.dtype())?.contiguous_for(op)?;
        let running = running.contiguous_for(op)?;
        dispatch_float!(op, running.dtype(), T => {
            let scaled = |x: &T, by| T::narrow(x.widen() * C::<T>::from_f64(by)).widen();
            let terms = running.as_slice::<T>()?.iter().zip(batch.as_slice::<T>()?);
            for (out, (running, batch)) in out.make_mut::<T>()?.iter_mut().zip(terms) {
                let sum = scaled(running, 1.0 - momentum) + scaled(batch, momentum * factor);
                *out = T::narrow(sum);
            }
        });
    }
    Ok(())
}
