//! Layers, losses and initialisers, with PyTorch's names and defaults.

pub(crate) mod module;
mod sequential;

pub use module::{Module, Training, Visitor};
pub use sequential::Sequential;
