//! CUDA kernels of the normalisations.

pub(crate) mod batch_norm;
pub(crate) mod layer_norm;
mod planes;
pub(crate) mod track;
