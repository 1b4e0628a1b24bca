//! Gradient clipping by the global norm.

use crate::error::{Error, Result};
use crate::grads::Gradients;
use phalanx_tensor::ops::optim::{global_norm, scale};

/// The Euclidean norm of all gradients together.
///
/// # Errors
/// As [`global_norm`].
pub fn grad_norm(gradients: &Gradients) -> Result<f64> {
    let norm = global_norm(gradients.iter().map(|(_, grad)| grad));
    Ok(norm.map_err(|error| error.of("grad_norm"))?)
}

/// Scales all gradients by one factor so that their common norm is at most `max_norm`; returns the
/// norm before (Pascanu et al. 2013; PyTorch: `clip_grad_norm_`, whose factor is
/// `max_norm / (norm + 1e-6)` where that is below 1).
///
/// A norm that is infinite or no number is returned, and the gradients are scaled by what the
/// formula gives: look at the value before stepping.
///
/// # Errors
/// [`Error::InvalidArgument`] for a `max_norm` that is negative or no number, which would turn the
/// gradients round or spoil them. As [`global_norm`] and [`scale`]. No gradient is changed then.
pub fn clip_grad_norm(gradients: &mut Gradients, max_norm: f64) -> Result<f64> {
    const OP: &str = "clip_grad_norm";
    if max_norm.is_nan() || max_norm < 0.0 {
        return Err(Error::InvalidArgument {
            op: OP,
            reason: format!("{max_norm} is no norm to clip at"),
        });
    }
    let norm = grad_norm(gradients).map_err(|error| error.of(OP))?;
    let factor = max_norm / (norm + 1e-6);
    if factor < 1.0 || factor.is_nan() {
        let scaled = scale(gradients.iter_mut().map(|(_, grad)| grad), factor);
        scaled.map_err(|error| error.of(OP))?;
    }
    Ok(norm)
}
