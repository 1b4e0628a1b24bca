//! Differentiation and training on cards, real or simulated ones. Where there is none, each test says so.
#![cfg(feature = "cuda")]

#[macro_use]
#[path = "../../../tensor/tests/cuda/support.rs"]
mod support;
#[path = "../optim/addresses.rs"]
mod addresses;
#[path = "../../../tensor/tests/cuda/counts.rs"]
mod counts;
#[path = "../optim/into.rs"]
mod into;
mod recompute;
mod steps;
mod training;

/// Where a test of addresses runs that has the virtual device `_index` elsewhere: on the card, alone.
fn place(_index: usize) -> Option<(phalanx_tensor::Device, std::sync::MutexGuard<'static, ()>)> {
    support::card("addresses")
}
