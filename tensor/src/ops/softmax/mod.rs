//! Softmax, log-softmax and the cross-entropy of logits against class indices.
//!
//! The kernels work on rows: an axis other than the last is brought there first. Every row is
//! shifted by its maximum, so that no exponential overflows.

mod cpu;
mod cross_entropy;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;

pub use cross_entropy::{CrossEntropyConfig, CrossEntropyOutput, Reduction};

use crate::layout::resolve_axis;
use crate::storage::{On, on, out};
use crate::{Result, Tensor};

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Softmax,
    LogSoftmax,
}

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
        forward("softmax", Kind::Softmax, self, axis)
    }

    /// The logarithm of the softmax along `axis`: `x − ln Σ exp(x)`.
    ///
    /// # Errors
    /// As [`softmax`](Tensor::softmax).
    pub fn log_softmax(&self, axis: isize) -> Result<Tensor> {
        forward("log_softmax", Kind::LogSoftmax, self, axis)
    }

    /// The gradient of [`softmax`](Tensor::softmax)'s input, where `self` is the gradient of its
    /// output `out`: `out · (grad − Σ grad · out)`.
    ///
    /// # Errors
    /// As [`softmax`](Tensor::softmax); shapes, types and devices must agree.
    pub fn softmax_backward(&self, out: &Tensor, axis: isize) -> Result<Tensor> {
        backward("softmax_backward", Kind::Softmax, self, out, axis)
    }

    /// The gradient of [`log_softmax`](Tensor::log_softmax)'s input, where `self` is the gradient
    /// of its output `out`: `grad − exp(out) · Σ grad`.
    ///
    /// # Errors
    /// As [`softmax_backward`](Tensor::softmax_backward).
    pub fn log_softmax_backward(&self, out: &Tensor, axis: isize) -> Result<Tensor> {
        backward("log_softmax_backward", Kind::LogSoftmax, self, out, axis)
    }
}

fn forward(op: &'static str, kind: Kind, x: &Tensor, axis: isize) -> Result<Tensor> {
    along_rows(op, axis, [x], |[x], y| match on(op, (x, out(y)))? {
        On::Cpu((x, y)) => cpu::forward(op, kind, x, y),
        #[cfg(feature = "cuda")]
        On::Cuda(mut lane, (x, y)) => cuda::forward(&mut lane, kind, x, y),
    })
}

fn backward(
    op: &'static str,
    kind: Kind,
    grad: &Tensor,
    y: &Tensor,
    axis: isize,
) -> Result<Tensor> {
    along_rows(op, axis, [grad, y], |[dy, y], dx| {
        match on(op, (dy, y, out(dx)))? {
            On::Cpu((dy, y, dx)) => cpu::backward(op, kind, dy, y, dx),
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (dy, y, dx)) => cuda::backward(&mut lane, kind, dy, y, dx),
        }
    })
}

/// Checks, brings `axis` to the end, allocates, runs `kernel(inputs, out)` and puts the axis back.
fn along_rows<const N: usize>(
    op: &'static str,
    axis: isize,
    inputs: [&Tensor; N],
    kernel: impl FnOnce([&Tensor; N], &mut Tensor) -> Result<()>,
) -> Result<Tensor> {
    let x = inputs[0];
    x.expect_float(op)?;
    let axis = resolve_axis(op, axis, x.rank())? as isize;
    for other in &inputs[1..] {
        x.expect_same_kind(op, other)?;
        x.expect_same_shape(op, other, "they must be equal")?;
    }
    let like = |t: &Tensor| Tensor::allocate(op, t.shape().clone(), t.dtype(), t.device());
    if axis + 1 == x.rank() as isize {
        let mut out = like(x)?;
        kernel(inputs, &mut out)?;
        return Ok(out);
    }
    let mut rows = inputs.map(Tensor::clone);
    for rows in &mut rows {
        *rows = rows.transpose(axis, -1)?;
    }
    let mut out = like(&rows[0])?;
    kernel(rows.each_ref(), &mut out)?;
    out.transpose(axis, -1)
}
