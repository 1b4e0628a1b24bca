//! [`run`]: the same program, wherever it is started: as threads of this process, under `mpirun`, or under torchrun.

use crate::env::{Process, Start};
use crate::group::ProcessGroup;
use crate::launch::{Ended, LaunchConfig, LaunchError, Program, threads, typed};
use std::fmt::{Debug, Display};
use std::sync::Arc;

/// How to run a program on ranks, wherever it is started.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RunConfig {
    /// How many ranks there are.
    pub ranks: Ranks,
    /// Deadline and threads; its number of ranks counts where the program was started alone.
    pub launch: LaunchConfig,
}

/// Who says how many ranks there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ranks {
    /// The program; a launcher that starts another number is a mistake.
    Exactly(usize),
    /// The launcher; so many, where there is none.
    OrAlone(usize),
}

impl Ranks {
    /// Whether a launcher that has started this process may have started so many.
    fn agrees_with(self, process: Process) -> bool {
        match self {
            Ranks::Exactly(asked) => asked == process.size,
            Ranks::OrAlone(_) => true,
        }
    }
}

impl RunConfig {
    /// With the defaults of [`LaunchConfig`].
    pub fn new(ranks: Ranks) -> RunConfig {
        let (Ranks::Exactly(n) | Ranks::OrAlone(n)) = ranks;
        RunConfig {
            ranks,
            launch: LaunchConfig::new(n),
        }
    }

    /// With deadline and threads of this `launch`.
    pub fn launch(self, launch: LaunchConfig) -> RunConfig {
        let world_size = self.launch.world_size;
        RunConfig {
            launch: LaunchConfig {
                world_size,
                ..launch
            },
            ..self
        }
    }
}

impl From<Ranks> for RunConfig {
    fn from(ranks: Ranks) -> RunConfig {
        RunConfig::new(ranks)
    }
}

/// Runs `program` on every rank of the world that this process was started in, and returns the
/// results of the ranks that live in this process, with their numbers:
///
/// - started alone, [`launch`](crate::launch()) runs all ranks as threads of this process;
/// - started by `mpirun` (Open MPI's, MPICH's, `srun`), this process is one rank. The program runs on
///   a thread named after it, as there, and this call waits for it. Needs the feature `mpi`;
/// - started by torchrun, or in its manner (`RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `LOCAL_WORLD_SIZE`, `MASTER_ADDR`,
///   `MASTER_PORT`), this process is one rank, too. Its group carries small talk between ranks alone: see
///   [`backends::store`](crate::backends::store). Rank 0's process serves the store by which they talk, at the address
///   of `MASTER_ADDR` and the port of `MASTER_PORT`; one port above, where torchrun's agent has a store of its own there
///   (`TORCHELASTIC_USE_AGENT_STORE=True`), which speaks another protocol;
/// - started as the only one of its processes, by whomever, this process is a world of one rank.
///
/// What [`launch`](crate::launch()) says of ranks that fail holds here too. Processes end together: one that has ended
/// its program, well or not, stays in its `exit` until the others have ended theirs, and goes without
/// them only when a rank hangs: see [`OnFailure`](crate::OnFailure). So a rank that computes when
/// another fails gets the error at its next call, and may save what it has. Return the error from
/// `main`, or `exit` with a code: what you print before is not lost, and the job's code is that of the
/// first rank to fail. A process whose program returned well, and that does something else before it
/// ends (it evaluates, say), is not ended for the failure of another; but those that failed wait for it
/// in their `exit` no longer than the policy's limit, and most MPI launchers end the job when they leave
/// with their code. A process that is killed is another matter: most launchers end the job then, at
/// once.
///
/// ```
/// use phalanx_comm::{DType, Error, Ranks, ReduceOp, Tensor, run};
///
/// let sums = run(Ranks::OrAlone(2), |group| {
///     let mine = Tensor::full([2], group.rank() as f64, DType::F32, group.device())?;
///     Ok::<_, Error>(group.all_reduce(mine, ReduceOp::Sum)?.wait()?.to_vec::<f32>()?)
/// })?;
/// for (rank, sum) in sums {
///     println!("rank {rank} got {sum:?}");
/// }
/// # Ok::<(), phalanx_comm::LaunchError<Error>>(())
/// ```
///
/// # Errors
/// [`LaunchError`]: a rank of this process failed; or the world is not what was asked for. Under torchrun also
/// [`LaunchError::World`], where the rank returned well, but the world had failed by then and its program was never told.
pub fn run<T, E, F>(
    config: impl Into<RunConfig>,
    program: F,
) -> Result<Vec<(usize, T)>, LaunchError<E>>
where
    T: Send,
    E: Display + Debug + Send,
    F: Fn(Arc<dyn ProcessGroup>) -> Result<T, E> + Sync,
{
    let config = config.into();
    typed(&program, |program| start(config, program))
}

/// What [`run`] does, of a program without its types.
fn start(config: RunConfig, program: Program<'_>) -> Ended {
    let alone = |config: LaunchConfig| {
        let config = LaunchConfig {
            world_size: 1,
            ..config
        };
        threads(&config, program)
    };
    match Start::detect()? {
        Start::Alone => threads(&config.launch, program),
        Start::Mpi(process) | Start::Torchrun(process) if !config.ranks.agrees_with(process) => {
            Err(LaunchError::WorldSize {
                asked: config.launch.world_size,
                launcher: process.launcher,
                size: process.size,
            })
        }
        // A world of one rank needs no engine, and MPI has none for cards.
        Start::Mpi(process) if process.size == 1 && !config.launch.device.is_cpu() => {
            alone(config.launch)
        }
        #[cfg(feature = "mpi")]
        Start::Mpi(process) => crate::backends::mpi::launch(&config.launch, process, program),
        #[cfg(not(feature = "mpi"))]
        Start::Mpi(process) if process.size == 1 => alone(config.launch),
        #[cfg(not(feature = "mpi"))]
        Start::Mpi(process) => Err(LaunchError::Unsupported {
            launcher: process.launcher,
            size: process.size,
            reason: "it was built without MPI: turn on the feature `mpi` of phalanx-comm (`--features mpi` for the examples)".into(),
        }),
        Start::Torchrun(process) if process.size == 1 => alone(config.launch),
        Start::Torchrun(process) => {
            crate::backends::store::launch(&config.launch, process, program)
        }
    }
}
