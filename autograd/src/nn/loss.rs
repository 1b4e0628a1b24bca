//! Losses, as functions of predictions and targets; all are means.

use crate::error::Result;
use crate::var::Var;
use phalanx_tensor::Tensor;
pub use phalanx_tensor::ops::softmax::{CrossEntropyConfig, Reduction};

/// The mean cross-entropy between logits `[batch, classes]` and class indices `[batch]` of type
/// `i64` (PyTorch: `nn.functional.cross_entropy`). For label smoothing, weights or sums see
/// [`Var::cross_entropy`].
///
/// # Errors
/// As [`Tensor::cross_entropy`].
pub fn cross_entropy(logits: &Var, targets: &Tensor) -> Result<Var> {
    logits.cross_entropy(targets, &CrossEntropyConfig::default())
}

/// The mean negative log-likelihood of class indices `[batch]` under log-probabilities
/// `[batch, classes]` (PyTorch: `nn.functional.nll_loss`).
///
/// # Errors
/// As [`Tensor::gather`].
pub fn nll(log_probabilities: &Var, targets: &Tensor) -> Result<Var> {
    let chosen = log_probabilities.gather(1, &targets.unsqueeze(1)?)?;
    chosen.mean_all()?.neg()
}

/// The mean squared difference (PyTorch: `nn.functional.mse_loss`).
///
/// # Errors
/// As [`Tensor::sub`].
pub fn mse(prediction: &Var, target: &Var) -> Result<Var> {
    prediction.sub(target)?.square()?.mean_all()
}

/// The mean absolute difference (PyTorch: `nn.functional.l1_loss`).
///
/// # Errors
/// As [`Tensor::sub`].
pub fn l1(prediction: &Var, target: &Var) -> Result<Var> {
    prediction.sub(target)?.abs()?.mean_all()
}

/// The mean binary cross-entropy between logits and probabilities of the same shape (PyTorch:
/// `nn.functional.binary_cross_entropy_with_logits`).
///
/// # Errors
/// As [`Tensor::sub`].
pub fn binary_cross_entropy(logits: &Var, target: &Var) -> Result<Var> {
    // ln(1 + eˣ) − x y: no logarithm of a small difference.
    logits.softplus()?.sub(&logits.mul(target)?)?.mean_all()
}
