//! Differentiation and training on cards, real or simulated ones. Where there is none, each test says so.
#![cfg(feature = "cuda")]

#[allow(
    dead_code,
    reason = "the tests of the tensors' operations use all of it"
)]
#[macro_use]
#[path = "../../../tensor/tests/cuda/support.rs"]
mod support;
#[allow(
    dead_code,
    reason = "the tests of the tensors' operations use all of it"
)]
#[path = "../../../tensor/tests/cuda/counts.rs"]
mod counts;
mod recompute;
mod steps;
mod training;
