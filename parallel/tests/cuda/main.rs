//! Training with cards, real or simulated ones: a replica alone on its card, and a model split over two. Where there
//! are too few, each test says so.
#![cfg(feature = "cuda")]

#[allow(
    dead_code,
    reason = "the tests of the tensors' operations use all of it"
)]
#[macro_use]
#[path = "../../../tensor/tests/cuda/support.rs"]
mod support;
mod alone;
#[allow(
    dead_code,
    reason = "the tests of the tensors' operations use all of it"
)]
#[path = "../../../tensor/tests/cuda/counts.rs"]
mod counts;
mod split;
