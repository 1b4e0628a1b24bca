//! How tests launch ranks: as threads, under mpirun, on CPUs and on cards.

use phalanx_comm::env::Start;
use phalanx_comm::{LaunchConfig, ProcessGroup, Ranks, RunConfig, run};
use phalanx_parallel::Result;
use phalanx_tensor::Device;
use std::sync::Arc;
use std::time::Duration;

/// Where `n` ranks compute: on the cards that the environment names, from the first one on, if there are so many.
pub fn device_for(n: usize) -> Device {
    let named = std::env::var("PHALANX_TEST_DEVICE").ok();
    let first = named.map(|name| name.parse().expect("PHALANX_TEST_DEVICE names a device"));
    let Some(Device::Cuda(first)) = first else {
        return Device::cpu(0);
    };
    match (first..first + n).all(|card| Device::cuda(card).memory().is_ok()) {
        true => Device::cuda(first),
        false => {
            eprintln!("there are no {n} cards: {n} ranks compute on the CPU");
            Device::cpu(0)
        }
    }
}

/// Whether the ranks compute on CPUs; else a line that says that the test leaves cards out, and why.
pub fn on_cpus(test: &str, why: &str) -> bool {
    let is_cpu = device_for(1).is_cpu();
    if !is_cpu {
        eprintln!("SKIPPED: {test}: on cards {why}");
    }
    is_cpu
}

/// Runs `f` on `n` ranks, threads of this process; under mpirun on its first `n` processes, of which this is one, and
/// the others wait. Returns what the ranks of this process have returned; panics with the error of the rank that failed.
pub fn on_ranks<T: Send>(
    n: usize,
    f: impl Fn(Arc<dyn ProcessGroup>) -> Result<T> + Sync,
) -> Vec<T> {
    let launch = LaunchConfig::new(n)
        .deadline(Duration::from_secs(20))
        .device(device_for(n));
    let config = RunConfig::new(Ranks::OrAlone(n)).launch(launch);
    let program = |world: Arc<dyn ProcessGroup>| {
        assert!(world.size() >= n, "{n} ranks are needed");
        if world.size() == n {
            return f(world).map(Some);
        }
        let group = world.split((world.rank() < n).then_some(0), 0)?;
        let result = group.map(&f).transpose()?;
        world.barrier()?.wait()?;
        Ok(result)
    };
    let ends = run(config, program).unwrap_or_else(|e| panic!("{e}"));
    ends.into_iter().filter_map(|(_, end)| end).collect()
}

/// Whether there can be `n` ranks: threads always, processes as many as mpirun has started.
pub fn has_ranks(n: usize) -> bool {
    match Start::detect().unwrap() {
        Start::Mpi(process) => process.size >= n,
        Start::Alone | Start::Torchrun(_) => true,
    }
}
