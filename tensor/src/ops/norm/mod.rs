//! Normalisations.

mod batch_norm;
mod cpu;
mod layer_norm;

pub use batch_norm::{BatchNormGrads, BatchNormMask, BatchNormOutput, BatchNormSaved};
pub use layer_norm::{LayerNormGrads, LayerNormOutput};
