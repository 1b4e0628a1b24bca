//! What the example programs share: the data set, the models, the training loop and its report.

pub mod chart;
pub mod cli;
pub mod data;
pub mod report;
