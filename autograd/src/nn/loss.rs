//! Losses, as functions of predictions and targets; all are means.
//!
//! **A loss never broadcasts**: predictions and targets have one shape, else it is an error. (With
//! PyTorch's rules, `[n, 1]` against `[n]` is a mean over `n²` differences.) **A loss of half types
//! is `f32`**, and so are its intermediate values: a sum in `f16` overflows at 65504. The gradients
//! of the predictions keep the predictions' type. The mean over no element is NaN, as in PyTorch,
//! and its gradient is empty.

use crate::error::Result;
use crate::var::Var;
pub use phalanx_tensor::ops::softmax::{CrossEntropyConfig, Reduction};
use phalanx_tensor::{Error, Tensor};

/// The mean cross-entropy between logits `[batch, classes]` and class indices `[batch]` of type
/// `i64` (PyTorch: `nn.functional.cross_entropy`). For label smoothing, weights or sums see
/// [`Var::cross_entropy`].
///
/// # Errors
/// As [`Tensor::cross_entropy`].
pub fn cross_entropy(logits: &Var, targets: &Tensor) -> Result<Var> {
    logits.cross_entropy(targets, &CrossEntropyConfig::default())
}

/// The mean negative log-likelihood of class indices `[batch]` of type `i64` under
/// log-probabilities `[batch, classes]` (PyTorch: `nn.functional.nll_loss`).
///
/// # Errors
/// A shape mismatch where the targets are not `[batch]`; as [`Tensor::gather`].
pub fn nll(log_probabilities: &Var, targets: &Tensor) -> Result<Var> {
    let fits = log_probabilities.rank() == 2 && targets.dims() == &log_probabilities.dims()[..1];
    if !fits {
        return Err(mismatch(
            "nll",
            log_probabilities.value(),
            targets,
            "log-probabilities [batch, classes] must have targets [batch]",
        ));
    }
    let loss = || {
        let chosen = log_probabilities.gather(1, &targets.unsqueeze(1)?)?;
        wide(&chosen)?.mean_all()?.neg()
    };
    loss().map_err(|error| error.of("nll"))
}

/// The mean squared difference between predictions and targets of one shape (PyTorch:
/// `nn.functional.mse_loss`).
///
/// # Errors
/// A shape mismatch; as [`Tensor::sub`].
pub fn mse(prediction: &Var, target: &Var) -> Result<Var> {
    let loss = || difference("mse", prediction, target)?.square()?.mean_all();
    loss().map_err(|error| error.of("mse"))
}

/// The mean absolute difference between predictions and targets of one shape (PyTorch:
/// `nn.functional.l1_loss`).
///
/// # Errors
/// A shape mismatch; as [`Tensor::sub`].
pub fn l1(prediction: &Var, target: &Var) -> Result<Var> {
    let loss = || difference("l1", prediction, target)?.abs()?.mean_all();
    loss().map_err(|error| error.of("l1"))
}

/// The mean binary cross-entropy between logits and probabilities of one shape (PyTorch:
/// `nn.functional.binary_cross_entropy_with_logits`).
///
/// # Errors
/// A shape mismatch; as [`Tensor::sub`].
pub fn binary_cross_entropy(logits: &Var, target: &Var) -> Result<Var> {
    same_shape("binary_cross_entropy", logits, target)?;
    let loss = || {
        let (logits, target) = (wide(logits)?, wide(target)?);
        // ln(1 + eˣ) − x y: no logarithm of a small difference.
        logits.softplus()?.sub(&logits.mul(&target)?)?.mean_all()
    };
    loss().map_err(|error| error.of("binary_cross_entropy"))
}

fn difference(op: &'static str, prediction: &Var, target: &Var) -> Result<Var> {
    same_shape(op, prediction, target)?;
    wide(prediction)?.sub(&wide(target)?)
}

fn same_shape(op: &'static str, prediction: &Var, target: &Var) -> Result<()> {
    if prediction.shape() == target.shape() {
        return Ok(());
    }
    let reason = "predictions and targets of a loss must have one shape";
    Err(mismatch(op, prediction.value(), target.value(), reason))
}

fn mismatch(op: &'static str, a: &Tensor, b: &Tensor, reason: &'static str) -> crate::Error {
    let (lhs, rhs) = (a.shape().clone(), b.shape().clone());
    crate::Error::Tensor(Error::ShapeMismatch {
        op,
        lhs,
        rhs,
        reason,
    })
}

/// The variable in the type that losses are computed in.
fn wide(x: &Var) -> Result<Var> {
    match x.dtype().compute() {
        dtype if dtype == x.dtype() => Ok(x.clone()),
        dtype => x.cast(dtype),
    }
}
