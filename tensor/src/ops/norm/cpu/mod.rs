//! CPU kernels.

pub(super) mod batch_norm;
pub(super) mod layer_norm;
