//! Normalisations.

mod batch_norm;
mod batch_norm_cpu;
mod layer_norm;
mod layer_norm_cpu;

pub use batch_norm::{BatchNormGrads, BatchNormMask, BatchNormOutput, BatchNormSaved};
pub use layer_norm::{LayerNormGrads, LayerNormOutput};
