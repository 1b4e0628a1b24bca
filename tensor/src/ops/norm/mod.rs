//! Normalisations.

mod batch_norm;
mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
mod layer_norm;
mod running;

pub use batch_norm::{BatchNormGrads, BatchNormMask, BatchNormOutput, BatchNormSaved};
pub use layer_norm::{LayerNormGrads, LayerNormOutput};
pub use running::BatchNormMomentum;
