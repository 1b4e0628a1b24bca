//! [`launch`]: a program as the one rank that this process is.

use crate::env::Process;
use crate::group::{Group, ProcessGroup};
use crate::launch::{
    FailureKind, LaunchConfig, LaunchError, RankFailure, check_threads, message, run_rank, spawn,
};
use std::fmt::{Debug, Display};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread;

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
    let (rank, seen) = (group.rank(), group.size());
    if seen != process.size {
        return Err(LaunchError::OtherMpi {
            launcher: process.launcher,
            size: process.size,
            seen,
        });
    }
    let failures = AtomicUsize::new(0);
    // MPI is called by one thread at a time, of whichever: so the rank may have one of its own, with a
    // stack as deep as that of a rank among threads.
    let end = thread::scope(|scope| {
        let run = || run_rank(group, &config, &program, &failures);
        let thread = spawn(scope, rank, config.stack_size, run)?;
        // `run_rank` catches the program's panics: what is left is dropping its panic's payload.
        let end = thread.join();
        Ok(end.unwrap_or_else(|panic| Err((0, FailureKind::Panic(message(&*panic))))))
    });
    match end.map_err(|error| LaunchError::Spawn { rank, error })? {
        Ok(result) => Ok(vec![(rank, result)]),
        Err((_, kind)) => Err(LaunchError::Ranks {
            first: RankFailure { rank, kind },
            others: Vec::new(),
        }),
    }
}
