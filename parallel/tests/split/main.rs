//! A model split over devices equals the same model in one piece. One table for virtual CPU devices and for cards, which
//! `PHALANX_TEST_DEVICE=cuda:0` names; where there are too few cards, each test says so.

mod memory;
mod residual;
#[path = "../../../tensor/tests/cuda/support.rs"]
mod support;
mod toy;

use phalanx_tensor::Device;
use std::sync::MutexGuard;

/// So many devices, and the turn of the test: cards from the first on where the environment names them, else CPU devices
/// from `first` on, which no other test uses. `None`, with a loud line, where there are too few cards.
fn devices(
    test: &str,
    first: usize,
    n: usize,
) -> Option<(Vec<Device>, Option<MutexGuard<'static, ()>>)> {
    let named = std::env::var("PHALANX_TEST_DEVICE").ok();
    let named = named.map(|name| name.parse().expect("PHALANX_TEST_DEVICE names a device"));
    match named {
        Some(Device::Cuda(_)) => {
            let turn = support::cards(test, n)?;
            Some(((0..n).map(Device::cuda).collect(), Some(turn)))
        }
        _ => Some(((first..first + n).map(Device::cpu).collect(), None)),
    }
}
