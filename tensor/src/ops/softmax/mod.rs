//! Softmax, log-softmax and the cross-entropy of logits against class indices.
//!
//! The kernels work on rows: an axis other than the last is brought there first. Every row is
//! shifted by its maximum, so that no exponential overflows.

mod cpu;
mod cross_entropy;

pub use cross_entropy::{CrossEntropyConfig, CrossEntropyOutput, Reduction};

use crate::layout::resolve_axis;
use crate::storage::Memory;
use crate::{Result, Tensor, dispatch_float};

impl Tensor {
    /// `exp(x) / Σ exp(x)` along `axis`. A row of which all elements are −∞ gives NaN.
    ///
    /// ```
    /// # use phalanx_tensor::{Device, Tensor};
    /// let x = Tensor::from_slice(&[0.0f64, 3f64.ln(), 0.0, 0.0], [2, 2], Device::cpu(0))?;
    /// let p = x.softmax(-1)?.to_vec::<f64>()?;
    /// assert!((p[1] - 0.75).abs() < 1e-12 && (p[2] - 0.5).abs() < 1e-12);
    /// # Ok::<(), phalanx_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::AxisOutOfRange`](crate::Error::AxisOutOfRange),
    /// [`Error::UnsupportedDType`](crate::Error::UnsupportedDType) for integers.
    pub fn softmax(&self, axis: isize) -> Result<Tensor> {
        const OP: &str = "softmax";
        map_rows(OP, axis, [self], |[x], out, width| {
            match x.storage().memory() {
                #[cfg(feature = "cuda")]
                Memory::Cuda(s) => return Err(s.unsupported(OP)),
                Memory::Cpu(_) => dispatch_float!(OP, x.dtype(), T => {
                    cpu::softmax::<T>(x.as_slice()?, out.make_mut()?, width);
                }),
            }
            Ok(())
        })
    }

    /// The logarithm of the softmax along `axis`: `x − ln Σ exp(x)`.
    ///
    /// # Errors
    /// As [`softmax`](Tensor::softmax).
    pub fn log_softmax(&self, axis: isize) -> Result<Tensor> {
        const OP: &str = "log_softmax";
        map_rows(OP, axis, [self], |[x], out, width| {
            match x.storage().memory() {
                #[cfg(feature = "cuda")]
                Memory::Cuda(s) => return Err(s.unsupported(OP)),
                Memory::Cpu(_) => dispatch_float!(OP, x.dtype(), T => {
                    cpu::log_softmax::<T>(x.as_slice()?, out.make_mut()?, width);
                }),
            }
            Ok(())
        })
    }

    /// The gradient of [`softmax`](Tensor::softmax)'s input, where `self` is the gradient of its
    /// output `out`: `out · (grad − Σ grad · out)`.
    ///
    /// # Errors
    /// As [`softmax`](Tensor::softmax); shapes, types and devices must agree.
    pub fn softmax_backward(&self, out: &Tensor, axis: isize) -> Result<Tensor> {
        const OP: &str = "softmax_backward";
        map_rows(OP, axis, [self, out], |[g, y], dx, width| {
            match g.storage().memory() {
                #[cfg(feature = "cuda")]
                Memory::Cuda(s) => return Err(s.unsupported(OP)),
                Memory::Cpu(_) => dispatch_float!(OP, g.dtype(), T => {
                    cpu::softmax_backward::<T>(g.as_slice()?, y.as_slice()?, dx.make_mut()?, width);
                }),
            }
            Ok(())
        })
    }

    /// The gradient of [`log_softmax`](Tensor::log_softmax)'s input, where `self` is the gradient
    /// of its output `out`: `grad − exp(out) · Σ grad`.
    ///
    /// # Errors
    /// As [`softmax_backward`](Tensor::softmax_backward).
    pub fn log_softmax_backward(&self, out: &Tensor, axis: isize) -> Result<Tensor> {
        const OP: &str = "log_softmax_backward";
        map_rows(OP, axis, [self, out], |[g, y], dx, width| {
            match g.storage().memory() {
                #[cfg(feature = "cuda")]
                Memory::Cuda(s) => return Err(s.unsupported(OP)),
                Memory::Cpu(_) => dispatch_float!(OP, g.dtype(), T => {
                    cpu::log_softmax_backward::<T>(g.as_slice()?, y.as_slice()?, dx.make_mut()?, width);
                }),
            }
            Ok(())
        })
    }
}

/// Checks, brings `axis` to the end, allocates, runs `kernel(inputs, out, row length)` on
/// contiguous tensors and puts the axis back.
fn map_rows<const N: usize>(
    op: &'static str,
    axis: isize,
    inputs: [&Tensor; N],
    kernel: impl FnOnce([&Tensor; N], &mut Tensor, usize) -> Result<()>,
) -> Result<Tensor> {
    let x = inputs[0];
    x.expect_float(op)?;
    let axis = resolve_axis(op, axis, x.rank())?;
    for other in &inputs[1..] {
        x.expect_same_kind(op, other)?;
        x.expect_same_shape(op, other, "they must be equal")?;
    }
    let last = axis + 1 == x.rank();
    let rows = |t: &Tensor| {
        if last {
            t.contiguous_for(op)
        } else {
            t.transpose(axis as isize, -1)?.contiguous_for(op)
        }
    };
    let mut dense = [const { None }; N];
    for (dense, t) in dense.iter_mut().zip(inputs) {
        *dense = Some(rows(t)?);
    }
    let dense = dense.each_ref().map(|t| match t {
        Some(t) => t,
        None => unreachable!("{op}: filled in above"),
    });
    let mut out = Tensor::allocate(op, dense[0].shape().clone(), x.dtype(), x.device())?;
    if out.numel() > 0 {
        kernel(dense, &mut out, x.dims()[axis])?;
    }
    if last {
        Ok(out)
    } else {
        out.transpose(axis as isize, -1)
    }
}
