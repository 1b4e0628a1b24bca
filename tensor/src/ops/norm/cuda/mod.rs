//! CUDA kernels of the normalisations.

pub(crate) mod layer_norm;
