//! What the example programs share: the data set, the models, the training loop and its report.

pub mod chart;
pub mod cli;
pub mod data;
pub mod models;
pub mod pipeline;
pub mod progress;
pub mod report;
pub mod train;

/// Runs the programs of the README as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
