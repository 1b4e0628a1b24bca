//! [`launch`]: a program as the one rank that this process is.

use crate::env::Process;
use crate::error::Error;
use crate::group::{Group, ProcessGroup};
use crate::launch::{Ended, LaunchConfig, LaunchError, Program, check_threads, run_process};
use crate::place::Place;
use std::sync::Arc;

/// Runs `program` as the rank that this process is under MPI: see [`run`](crate::run()).
pub(crate) fn launch(config: &LaunchConfig, process: Process, program: Program<'_>) -> Ended {
    check_threads(config.threads_per_rank)?;
    config.check_device(process.size)?;
    let engine = super::join(config).map_err(LaunchError::World)?;
    let handle = Arc::clone(&engine.handle);
    let local_rank = match config.device.is_cpu() {
        true => 0,
        false => Place::detect()?.local_rank,
    };
    let card = config.card_of(local_rank, process.size);
    let group = Group::world_on(engine, card).map_err(LaunchError::World)?;
    let (rank, seen) = (group.rank(), group.size());
    if seen != process.size {
        return Err(LaunchError::OtherMpi {
            launcher: process.launcher,
            size: process.size,
            seen,
        });
    }
    // MPI is called by one thread at a time, of whichever: so the rank may have one of its own.
    run_process(group, config, program, &|_| ())?;
    let core = handle.engine.lock();
    match core.detector.fault(handle.epoch) {
        // What it has left undone is its own failure, though its program knows nothing of it; and where all have dropped
        // what they disagreed on, nobody has heard of it.
        Some((error, _)) if is_own(error, rank) || core.detector.told(handle.epoch).is_none() => {
            Err(LaunchError::World(error.clone()))
        }
        _ => Ok(()),
    }
}

fn is_own(error: &Error, rank: usize) -> bool {
    matches!(error, Error::Abandoned { rank: who, .. } if *who == rank)
}
