//! [`run`]: the same program, wherever it is started: as threads of this process, or under `mpirun`.

use crate::env::{Process, Start};
use crate::group::ProcessGroup;
use crate::launch::{LaunchConfig, LaunchError, launch};
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
/// - started alone, [`launch`] runs all ranks as threads of this process;
/// - started by `mpirun` (Open MPI's, MPICH's, `srun`), this process is one rank. It runs the program
///   on the calling thread. Needs the feature `mpi`.
///
/// What [`launch`] says of ranks that fail holds here too. Processes end together: one that has ended
/// its program well stays until the others have; one that fails ends all, and a rank that takes no
/// notice within a second is ended by force, with a line on its stderr. So return the error from
/// `main`, or `exit` with a code: what you print before is not lost.
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
/// [`LaunchError`]: a rank of this process failed; or the world is not what was asked for.
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
    match Start::detect() {
        Start::Alone => Ok(launch(config.launch, program)?
            .into_iter()
            .enumerate()
            .collect()),
        Start::Mpi(process) => {
            as_asked(&config, process)?;
            mpi(config.launch, process, program)
        }
        Start::Torchrun(process) => Err(LaunchError::Unsupported {
            launcher: process.launcher.to_string(),
            size: process.size,
            reason: "processes without MPI need NCCL, which is not there yet; use mpirun".into(),
        }),
    }
}

fn as_asked<E: Display + Debug>(
    config: &RunConfig,
    process: Process,
) -> Result<(), LaunchError<E>> {
    match config.ranks {
        Ranks::Exactly(asked) if asked != process.size => Err(LaunchError::WorldSize {
            asked,
            launcher: process.launcher.to_string(),
            size: process.size,
        }),
        _ => Ok(()),
    }
}

#[cfg(not(feature = "mpi"))]
fn mpi<T, E, F>(
    config: LaunchConfig,
    process: Process,
    program: F,
) -> Result<Vec<(usize, T)>, LaunchError<E>>
where
    T: Send,
    E: Display + Debug + Send,
    F: Fn(Arc<dyn ProcessGroup>) -> Result<T, E> + Sync,
{
    if process.size == 1 {
        let alone = LaunchConfig {
            world_size: 1,
            ..config
        };
        return Ok(launch(alone, program)?.into_iter().enumerate().collect());
    }
    Err(LaunchError::Unsupported {
        launcher: process.launcher.to_string(),
        size: process.size,
        reason: "it was built without MPI; build it with `--features mpi`".into(),
    })
}

#[cfg(feature = "mpi")]
use crate::launch::mpi;
