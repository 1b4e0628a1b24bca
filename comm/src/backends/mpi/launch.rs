//! [`launch`]: a program as the one rank that this process is.

use crate::env::Process;
use crate::group::{Group, ProcessGroup};
use crate::launch::{LaunchConfig, LaunchError, check_threads, run_process};
use std::fmt::{Debug, Display};
use std::sync::Arc;

/// Runs `program` as the rank that this process is under MPI: see [`run`](crate::run()).
pub(crate) fn launch<T, E, F>(
    config: LaunchConfig,
    process: Process,
    program: F,
) -> Result<Vec<(usize, T)>, LaunchError<E>>
where
    T: Send,
    E: Display + Debug + Send,
    F: Fn(Arc<dyn ProcessGroup>) -> Result<T, E> + Sync,
{
    check_threads(config.threads_per_rank)?;
    config.check_device(process.size)?;
    let group = Group::world(super::join(&config).map_err(LaunchError::World)?);
    let seen = group.size();
    if seen != process.size {
        return Err(LaunchError::OtherMpi {
            launcher: process.launcher,
            size: process.size,
            seen,
        });
    }
    // MPI is called by one thread at a time, of whichever: so the rank may have one of its own.
    run_process(group, &config, program, |_| ())
}
