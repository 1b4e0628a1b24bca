//! [`launch`]: a program as the one rank that this process is.

use crate::env::Process;
use crate::group::ProcessGroup;
use crate::launch::{LaunchConfig, LaunchError, RankFailure, run_rank};
use std::fmt::{Debug, Display};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

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
    let group = super::world(config.deadline).map_err(LaunchError::World)?;
    let (rank, seen) = (group.rank(), group.size());
    if seen != process.size {
        return Err(LaunchError::OtherMpi {
            launcher: process.launcher.to_string(),
            size: process.size,
            seen,
        });
    }
    let failures = AtomicUsize::new(0);
    match run_rank(group, config.threads_per_rank, &program, &failures) {
        Ok(result) => Ok(vec![(rank, result)]),
        Err((_, kind)) => Err(LaunchError::Ranks {
            first: RankFailure { rank, kind },
            others: Vec::new(),
        }),
    }
}
