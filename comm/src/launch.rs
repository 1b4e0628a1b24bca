//! [`launch`]: runs a program on every rank, and brings back what the ranks return, or why they
//! did not.

use crate::backends::Backend;
use crate::backends::local::{self, LocalGroup};
use crate::error::Error;
use crate::group::ProcessGroup;
use phalanx_tensor::{Device, cpu};
use std::any::Any;
use std::fmt::{self, Debug, Display};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

/// How to start a world. `LaunchConfig::from(n)` has `n` ranks and the defaults.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LaunchConfig {
    /// The number of ranks.
    pub world_size: usize,
    /// How long a rank waits for others before the world fails; 5 minutes by default.
    pub deadline: Duration,
    /// How many threads the tensor operations of a rank may use; 1 by default.
    pub threads_per_rank: usize,
}

impl LaunchConfig {
    /// `world_size` ranks and the defaults.
    pub fn new(world_size: usize) -> LaunchConfig {
        LaunchConfig {
            world_size,
            deadline: Duration::from_secs(300),
            threads_per_rank: 1,
        }
    }

    /// With this deadline.
    pub fn deadline(self, deadline: Duration) -> LaunchConfig {
        LaunchConfig { deadline, ..self }
    }

    /// With so many threads for each rank's operations.
    pub fn threads_per_rank(self, threads_per_rank: usize) -> LaunchConfig {
        LaunchConfig {
            threads_per_rank,
            ..self
        }
    }
}

impl From<usize> for LaunchConfig {
    fn from(world_size: usize) -> LaunchConfig {
        LaunchConfig::new(world_size)
    }
}

/// Why a launch did not bring back every rank's result. `E` is the error of the ranks' program.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError<E: Display + Debug> {
    /// A world needs a rank.
    #[error("a world of 0 ranks has nothing to run")]
    NoRanks,
    /// The system gave no thread.
    #[error("no thread for rank {rank}: {source}")]
    Spawn {
        /// The rank.
        rank: usize,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A launcher started another number of ranks than the program asks for.
    #[error("{asked} ranks were asked for, but {launcher} started {size}")]
    WorldSize {
        /// What the program asks for.
        asked: usize,
        /// Who started it.
        launcher: String,
        /// How many that one has started.
        size: usize,
    },
    /// The MPI that the program was built for sees another world than its launcher.
    #[error(
        "{launcher} started {size} ranks, but MPI sees a world of {seen}: the program was built for \
         another MPI than the one whose mpirun started it"
    )]
    OtherMpi {
        /// Who started it.
        launcher: String,
        /// How many that one has started.
        size: usize,
        /// How many MPI sees.
        seen: usize,
    },
    /// The program cannot be a rank of what it was started in.
    #[error("the program was started by {launcher} as one of {size} ranks, but {reason}")]
    Unsupported {
        /// Who started it.
        launcher: String,
        /// How many ranks that one has started.
        size: usize,
        /// What is missing.
        reason: String,
    },
    /// The world did not come about.
    #[error(transparent)]
    World(Error),
    /// Ranks failed.
    #[error("{first}{}", more(others))]
    Ranks {
        /// The rank that failed first, in time; the others failed because of it, more often than
        /// not.
        first: RankFailure<E>,
        /// The other ranks that failed, in rank order.
        others: Vec<RankFailure<E>>,
    },
}

fn more<E>(others: &[RankFailure<E>]) -> String {
    match others.len() {
        0 => String::new(),
        n => format!(" ({n} more failed after it)"),
    }
}

/// How one rank failed.
#[derive(Debug)]
pub struct RankFailure<E> {
    /// The rank.
    pub rank: usize,
    /// What happened.
    pub kind: FailureKind<E>,
}

/// An error or a panic.
#[derive(Debug)]
pub enum FailureKind<E> {
    /// The rank's program returned this error.
    Error(E),
    /// The rank's program panicked with this message.
    Panic(String),
}

impl<E: Display> Display for RankFailure<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            FailureKind::Error(e) => write!(f, "rank {}: {e:#}", self.rank),
            FailureKind::Panic(message) => write!(f, "rank {} panicked: {message}", self.rank),
        }
    }
}

/// Runs `program` on `config.world_size` ranks, each a thread of this process named `rank-0`,
/// `rank-1`, …, and returns their results in rank order.
///
/// Rank `r`'s results live on `Device::cpu(r)`, and its tensor operations use
/// `config.threads_per_rank` threads.
///
/// A rank that returns an error or panics fails the world: the others get
/// [`Error::RankFailed`] or [`Error::RankPanicked`] from what they wait for, at once. A rank that
/// returns well while others still need it fails it with [`Error::RankReturned`]. The threads have
/// ended when `launch` returns; so a rank that computes forever, without a word to the others, keeps
/// it from returning, though the others learn of it at the deadline.
///
/// ```
/// use phalanx_comm::{DType, Error, ReduceOp, Tensor, launch};
///
/// let sums = launch(3, |group| {
///     let mine = Tensor::full([2], group.rank() as f64, DType::F32, group.device())?;
///     let sum = group.all_reduce(mine, ReduceOp::Sum)?.wait()?;
///     Ok::<_, Error>(sum.to_vec::<f32>()?)
/// })?;
/// assert_eq!(sums, vec![vec![3.0, 3.0]; 3]);
/// # Ok::<(), phalanx_comm::LaunchError<Error>>(())
/// ```
///
/// # Errors
/// [`LaunchError`], if any rank failed.
pub fn launch<T, E, F>(
    config: impl Into<LaunchConfig>,
    program: F,
) -> Result<Vec<T>, LaunchError<E>>
where
    T: Send,
    E: Display + Debug + Send,
    F: Fn(Arc<dyn ProcessGroup>) -> Result<T, E> + Sync,
{
    let config = config.into();
    if config.world_size == 0 {
        return Err(LaunchError::NoRanks);
    }
    let devices: Vec<Device> = (0..config.world_size).map(Device::cpu).collect();
    let groups = local::world(&devices, config.threads_per_rank, config.deadline);
    let failures = AtomicUsize::new(0);
    let run = |group: LocalGroup| run_rank(group, config.threads_per_rank, &program, &failures);
    let ends = thread::scope(|scope| {
        let mut threads = Vec::with_capacity(groups.len());
        for (rank, group) in groups.into_iter().enumerate() {
            let builder = thread::Builder::new().name(format!("rank-{rank}"));
            match builder.spawn_scoped(scope, || run(group)) {
                Ok(thread) => threads.push(thread),
                // The groups that are left are dropped: their ranks have departed, and the ranks
                // that run already end with `RankReturned`.
                Err(source) => return Err(LaunchError::Spawn { rank, source }),
            }
        }
        Ok(threads.into_iter().map(|t| t.join()).collect::<Vec<_>>())
    })?;
    let mut results = Vec::with_capacity(ends.len());
    let mut failed = Vec::new();
    for (rank, end) in ends.into_iter().enumerate() {
        match end {
            Ok(Ok(result)) => results.push(result),
            Ok(Err((order, kind))) => failed.push((order, RankFailure { rank, kind })),
            // `run_rank` catches the program's panics: what is left is dropping its panic's payload.
            Err(panic) => {
                let kind = FailureKind::Panic(message(&*panic));
                failed.push((usize::MAX, RankFailure { rank, kind }));
            }
        }
    }
    let Some(first) = (0..failed.len()).min_by_key(|&i| failed[i].0) else {
        return Ok(results);
    };
    let first = failed.remove(first).1;
    let others = failed.into_iter().map(|(_, failure)| failure).collect();
    Err(LaunchError::Ranks { first, others })
}

/// One rank from start to end. A failure comes with its place in the order of failures.
pub(crate) fn run_rank<G: Backend, T, E: Display>(
    group: G,
    threads: usize,
    program: impl Fn(Arc<dyn ProcessGroup>) -> Result<T, E>,
    failures: &AtomicUsize,
) -> Result<T, (usize, FailureKind<E>)> {
    let group = Arc::new(group);
    let rank = group.rank();
    let handle: Arc<dyn ProcessGroup> = group.clone();
    // A panic leaves nothing of ours half-done: the group is failed right after, and whatever the
    // program shares between its ranks is its own concern, as with any thread.
    let end = catch_unwind(AssertUnwindSafe(|| {
        cpu::with_threads(threads, || program(handle))
    }));
    match end {
        Ok(Ok(result)) => {
            // Not left to the last handle's drop: the program may have kept one.
            group.depart();
            Ok(result)
        }
        Ok(Err(error)) => {
            let order = failures.fetch_add(1, Relaxed);
            group.fail(Error::RankFailed {
                rank,
                message: format!("{error:#}"),
            });
            Err((order, FailureKind::Error(error)))
        }
        Err(panic) => {
            let order = failures.fetch_add(1, Relaxed);
            let message = message(&*panic);
            group.fail(Error::RankPanicked {
                rank,
                message: message.clone(),
            });
            Err((order, FailureKind::Panic(message)))
        }
    }
}

/// What a panic says.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "no message".into())
}
