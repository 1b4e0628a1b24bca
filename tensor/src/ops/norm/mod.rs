//! Normalisations.

mod batch_norm;
mod batch_norm_cpu;

pub use batch_norm::{BatchNormGrads, BatchNormMask, BatchNormOutput, BatchNormSaved};
