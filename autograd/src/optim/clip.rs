//! Gradient clipping by the global norm.

use crate::error::{Error, Result};
use crate::grads::Gradients;
use phalanx_tensor::Tensor;
use phalanx_tensor::ops::optim::{clip_by_norm, global_norm};

/// The Euclidean norm of all gradients together: an `f64` of rank 0 on the first gradient's device,
/// where it stays until the program reads it ([`Tensor::item`]).
///
/// # Errors
/// As [`global_norm`].
pub fn grad_norm(gradients: &Gradients) -> Result<Tensor> {
    let norm = global_norm(gradients.iter().map(|(_, grad)| grad));
    Ok(norm.map_err(|error| error.of("grad_norm"))?)
}

/// Scales all gradients by one factor so that their common norm is at most `max_norm`; returns the
/// norm before, as [`grad_norm`] does (Pascanu et al. 2013; PyTorch: `clip_grad_norm_`, whose factor
/// is `max_norm / (norm + 1e-6)` where that is below 1, else 1).
///
/// Norm and factor are computed on the device and stay there: clipping never waits. So every
/// gradient is multiplied, by 1 where nothing is clipped, and one that somebody shares is copied.
///
/// A norm that is infinite or no number is returned, and the gradients are scaled by what the
/// formula gives: a program that wants to know reads the value before it steps.
///
/// # Errors
/// [`Error::InvalidArgument`] for a `max_norm` that is negative or no number, which would turn the
/// gradients round or spoil them. As [`global_norm`] and [`clip_by_norm`]. No gradient is changed then.
pub fn clip_grad_norm(gradients: &mut Gradients, max_norm: f64) -> Result<Tensor> {
    const OP: &str = "clip_grad_norm";
    if max_norm.is_nan() || max_norm < 0.0 {
        return Err(Error::InvalidArgument {
            op: OP,
            reason: format!("{max_norm} is no norm to clip at"),
        });
    }
    let norm = grad_norm(gradients).map_err(|error| error.of(OP))?;
    let clipped = clip_by_norm(gradients.iter_mut().map(|(_, grad)| grad), &norm, max_norm);
    clipped.map_err(|error| error.of(OP))?;
    Ok(norm)
}
