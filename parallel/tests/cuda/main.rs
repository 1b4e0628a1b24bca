//! Training with cards, real or simulated ones: a replica alone on its card, and a model split over two. Where there
//! are too few, each test says so.
#![cfg(feature = "cuda")]

#[macro_use]
#[path = "../../../tensor/tests/cuda/support.rs"]
mod support;
#[path = "../ddp/addresses.rs"]
mod addresses;
mod alone;
#[path = "../../../comm/tests/alone/mod.rs"]
mod collectives;
#[path = "../../../tensor/tests/cuda/counts.rs"]
mod counts;
mod overlap;
mod reduce;
mod trace;

use phalanx_comm::{LaunchConfig, ProcessGroup, launch};
use phalanx_parallel::Result;
use phalanx_tensor::Device;
use std::sync::Arc;

/// Runs `f` on one rank, which is alone on the card; elsewhere it runs on virtual devices from `_first` on.
fn on_own_devices(_first: usize, f: impl Fn(Arc<dyn ProcessGroup>, Device) -> Result<()> + Sync) {
    let (device, _turn) = card!();
    launch(LaunchConfig::new(1).device(device), |group| {
        f(group, device)
    })
    .unwrap();
}
