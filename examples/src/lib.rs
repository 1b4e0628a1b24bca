//! What the example programs share: the data set, the models, the training loop and its report.

pub mod data;
