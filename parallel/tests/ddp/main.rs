//! `Ddp` against the single process, against PyTorch's values, and where things go wrong.

mod addresses;
mod buffers;
mod claims;
mod drift;
mod empty;
mod equivalence;
mod faults;
mod golden;
mod join;
mod kinds;
mod memory;
mod mesh;
mod model;
mod overlap;
mod poison;
mod power_sgd;
#[path = "../support/ranks.rs"]
mod ranks;
mod replicas;
mod unused;

use phalanx_comm::ProcessGroup;
use phalanx_parallel::Result;
use phalanx_tensor::Device;
use std::sync::Arc;

/// Runs `f` on two ranks, each on a virtual device of its own, from `first` on.
fn on_own_devices(first: usize, f: impl Fn(Arc<dyn ProcessGroup>, Device) -> Result<()> + Sync) {
    model::on_ranks(2, |group| {
        let device = Device::cpu(first + group.rank());
        f(group, device)
    });
}
