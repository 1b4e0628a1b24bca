//! Layers, losses and initialisers, with PyTorch's names and defaults.

mod conv;
mod embedding;
mod init;
mod layers;
mod linear;
mod loss;
pub(crate) mod module;
mod norm;
mod sequential;

pub use crate::ops::linear::Activation;
pub use conv::{Conv2d, Conv2dConfig};
pub use embedding::Embedding;
pub use init::{Factory, Fan, Init};
pub use layers::*;
pub use linear::Linear;
pub use loss::{CrossEntropyConfig, Reduction, binary_cross_entropy, cross_entropy, l1, mse, nll};
pub use module::{Count, Module, Training, Visitor, inputs, one_output};
pub use norm::{BatchNorm2d, LayerNorm};
pub use sequential::Sequential;
