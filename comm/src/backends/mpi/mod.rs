//! Ranks as processes, on one machine or many, over the MPI that the system has.
//!
//! MPI moves bytes between pairs of processes, and that is all it is asked for. What is sent when is
//! this backend's own, since MPI's collectives give what a [`ProcessGroup`](crate::ProcessGroup)
//! promises only in part:
//!
//! - *Ranks that disagree are told.* MPI would hang, or mix up memory. Here a call first sends a
//!   `Header` to each other rank (small data rides along with it); only when all
//!   headers have come, and agree, does bulk data move. So MPI never sees calls that do not match.
//! - *The same bits as on the local backend.* `Plan`s reduce in rank order, by the same
//!   code.
//! - *No wait without a deadline.* No MPI call that blocks is made between `MPI_Init` and
//!   `MPI_Finalize`, and the latter only when all processes have said farewell. That is also why
//!   groups are split without `MPI_Comm_split`, which waits for all ranks: a group is a number in the
//!   header. It costs nothing, and there may be any number of them.
//! - *Element types that MPI has no word for* (`bf16`, `f16`), and messages of any length: all is
//!   bytes, in steps.
//!
//! Progress: MPI makes none by itself. A rank in `wait` drives it on its own thread; while the rank
//! computes, a background thread does: it is woken for what does not fit into a header, by the call and
//! by the end of a `wait` for another operation, looks without a pause while data moves, every 100 µs
//! while operations of this rank are under way, and every 5 ms otherwise.
//!
//! Failure: what a rank finds wrong it tells rank 0, which tells all; if that one does not answer, the
//! rank tells all itself. So all get the same error. A rank that takes no notice of it for as long as
//! the launch's `OnFailure` allows is ended by its background thread, with a line on stderr; one whose
//! program has ended well is not. Processes end together: see `process.rs`.

mod detector;
mod engine;
mod exchange;
mod header;
mod launch;
mod plan;
mod process;
mod wait;
mod wire;

pub(crate) use self::launch::launch;

use self::engine::{Ended, Engine};
use self::wait::MpiWork;
use crate::backends::{Backend, fold};
use crate::check::Call;
use crate::error::{Error, Result};
use crate::launch::LaunchConfig;
use crate::membership::Membership;
use crate::op::Promises;
use crate::work::Pending;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One rank's handle on a group of processes.
pub struct MpiGroup {
    membership: Membership,
    id: u64,
    engine: Arc<Engine>,
    /// How many programs this process had ended when the world was made.
    run: u64,
}

/// This process's handle on the world of all processes that `mpirun` has started; starts MPI at the
/// first call. Collective: all processes call it, and it returns when all have.
///
/// [`run`](crate::run) does this, where a program was started by `mpirun`.
///
/// # Errors
/// [`Error::Transport`], if MPI does not start. Where it does not start in time, this process ends:
/// see [`LaunchConfig::start_deadline`].
pub fn world(deadline: Duration) -> Result<MpiGroup> {
    join(&LaunchConfig::new(1).deadline(deadline))
}

/// As [`world`], with all that a launch says of waiting.
fn join(config: &LaunchConfig) -> Result<MpiGroup> {
    let engine = process::engine(config.start_deadline).map_err(|failure| Error::Transport {
        rank: 0,
        call: failure.call.into(),
        message: failure.message,
    })?;
    let deadline = config.deadline;
    let mut core = engine.lock();
    core.ended = None;
    core.patience = config.patience();
    let (rank, size) = (core.wire.rank, core.wire.size);
    let run = core.departed[rank];
    drop(core);
    let name = "world";
    Ok(MpiGroup {
        membership: Membership {
            rank,
            world_ranks: (0..size).collect(),
            name: name.into(),
            device: config.device_of(rank),
            deadline,
        },
        id: header::group_id(&format!("{run}:{name}")),
        engine,
        run,
    })
}

impl Backend for MpiGroup {
    fn name(&self) -> &'static str {
        "mpi"
    }

    fn membership(&self) -> &Membership {
        &self.membership
    }

    fn issue(&self, call: Call) -> Result<Box<dyn Pending>> {
        let mut core = self.engine.lock();
        let (key, is_bulk) = core.issue(call, self.id, &self.membership)?;
        drop(core);
        if is_bulk {
            self.engine.listener.rouse();
        }
        Ok(Box::new(MpiWork {
            engine: Arc::clone(&self.engine),
            key,
            deadline: self.membership.deadline,
            run: self.run,
        }))
    }

    fn promises(&self) -> Promises {
        fold::PROMISES
    }

    fn issued(&self) -> u64 {
        self.engine.lock().issued(self.id)
    }

    fn split_off(&self, new: Membership) -> Result<Arc<dyn Backend>> {
        Ok(Arc::new(MpiGroup {
            id: header::group_id(&format!("{}:{}", self.run, new.name)),
            membership: new,
            engine: Arc::clone(&self.engine),
            run: self.run,
        }))
    }

    fn fault(&self) -> Option<Error> {
        let core = self.engine.lock();
        core.fault().map(|(error, _)| error.clone())
    }

    fn depart(&self) {
        self.engine.lock().depart();
    }

    fn fail(&self, error: Error) {
        let mut core = self.engine.lock();
        core.ended = Some(Ended::Failed(Instant::now()));
        core.fail(error);
    }
}

impl fmt::Debug for MpiGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let me = &self.membership;
        write!(
            f,
            "MpiGroup(rank {} of {} in {})",
            me.rank,
            me.size(),
            me.name
        )
    }
}
