//! Ranks as processes, on one machine or many, over the MPI that the system has.
//!
//! MPI moves bytes between pairs of processes, and that is all it is asked for. What is sent when is
//! this backend's own, since MPI's collectives give what a [`ProcessGroup`]
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
//! Failure: the `Detector` makes of what ranks find wrong one error for all, which belongs to an epoch of the world: the
//! program that all ranks run now. A rank that takes no notice of it for as long as
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
mod word;

pub(crate) use self::launch::launch;

pub use self::engine::Footprint;

use self::detector::Ended;
use self::engine::Engine;
use self::header::Key;
use self::wait::MpiWork;
use crate::backends::activity::Activity;
use crate::backends::{Backend, Together, fold, watcher};
use crate::check::Call;
use crate::error::{Error, Result};
use crate::group::{Group, ProcessGroup};
use crate::launch::LaunchConfig;
use crate::meeting::naming;
use crate::membership::Membership;
use crate::op::{Name, Promises};
use crate::work::Pending;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One rank's handle on a group of processes.
struct MpiGroup {
    membership: Membership,
    handle: Arc<Handle>,
}

/// What the handles on a group, and the works that they have issued, have in common. The engine counts the calls of a
/// group as long as there is one.
struct Handle {
    engine: Arc<Engine>,
    /// The number of the world's epoch: how many programs this process had ended when the world was made.
    epoch: u64,
    group: u64,
    /// What this rank does between its calls, in this epoch: what is said by a handle of another one, nobody reads.
    activity: Arc<Activity>,
}

impl Handle {
    fn new(engine: Arc<Engine>, epoch: u64, activity: Arc<Activity>, me: &Membership) -> Arc<Self> {
        let group = naming::group_id(epoch, &me.name);
        engine.lock().enter(group, epoch, me.size());
        Arc::new(Handle {
            engine,
            epoch,
            group,
            activity,
        })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.engine.lock().leave(self.group);
    }
}

/// How much this process remembers of what it has done with others, if MPI has been started. It does not grow with the
/// number of calls, nor with that of groups that were made and dropped.
pub fn footprint() -> Option<Footprint> {
    Some(process::started()?.lock().footprint())
}

/// This process's handle on the world of all processes that `mpirun` has started; starts MPI at the
/// first call. Collective: all processes call it, and it returns when all have.
///
/// [`run`](crate::run) does this, where a program was started by `mpirun`.
///
/// # Errors
/// [`Error::Transport`], if MPI does not start. Where it does not start in time, this process ends:
/// see [`LaunchConfig::start_deadline`].
pub fn world(deadline: Duration) -> Result<Arc<dyn ProcessGroup>> {
    let engine = join(&LaunchConfig::new(1).deadline(deadline))?;
    Ok(Arc::new(Group::world(engine)))
}

/// As [`world`], with all that a launch says of waiting.
fn join(config: &LaunchConfig) -> Result<MpiGroup> {
    let engine = process::engine(config.start_deadline).map_err(|failure| Error::Transport {
        rank: 0,
        call: failure.call.into(),
        message: failure.message,
    })?;
    let mut core = engine.lock();
    let (epoch, activity) = core.begin(config);
    let (rank, size) = (core.wire.rank, core.wire.size);
    drop(core);
    let membership = Membership {
        rank,
        world_ranks: (0..size).collect(),
        name: "world".into(),
        device: config.host_device(rank, size),
        deadline: config.deadline,
    };
    Ok(MpiGroup {
        handle: Handle::new(engine, epoch, activity, &membership),
        membership,
    })
}

impl MpiGroup {
    /// An operation that was issued.
    fn work(&self, key: Key) -> Box<dyn Pending> {
        Box::new(MpiWork {
            handle: Arc::clone(&self.handle),
            key,
            deadline: self.membership.deadline,
            is_taken: false,
        })
    }
}

impl Backend for MpiGroup {
    fn name(&self) -> &'static str {
        "mpi"
    }

    fn membership(&self) -> &Membership {
        &self.membership
    }

    fn issue(&self, call: Call) -> Result<Box<dyn Pending>> {
        let Handle {
            engine,
            epoch,
            group,
            ..
        } = &*self.handle;
        let mut core = engine.lock();
        let (key, is_bulk) = core.issue(call, (*epoch, *group), &self.membership)?;
        drop(core);
        if is_bulk {
            engine.listener.rouse();
        }
        Ok(self.work(key))
    }

    fn issue_together(&self, calls: Vec<Call>) -> Result<Box<dyn Pending>> {
        let Handle {
            engine,
            epoch,
            group,
            ..
        } = &*self.handle;
        let mut core = engine.lock();
        let issued = core.issue_together(calls, (*epoch, *group), &self.membership)?;
        drop(core);
        if issued.iter().any(|(_, is_bulk)| *is_bulk) {
            engine.listener.rouse();
        }
        let works = issued.into_iter().map(|(key, _)| self.work(key));
        Ok(Box::new(Together(works.collect())))
    }

    fn promises(&self) -> Promises {
        fold::PROMISES
    }

    fn issued(&self) -> u64 {
        let Handle { engine, group, .. } = &*self.handle;
        engine.lock().issued(*group, self.membership.rank)
    }

    fn split_off(&self, new: Membership) -> Result<Arc<dyn Backend>> {
        let Handle {
            engine,
            epoch,
            activity,
            ..
        } = &*self.handle;
        let (engine, activity) = (Arc::clone(engine), Arc::clone(activity));
        Ok(Arc::new(MpiGroup {
            handle: Handle::new(engine, *epoch, activity, &new),
            membership: new,
        }))
    }

    fn set_activity(&self, activity: Name) -> Name {
        self.handle.activity.replace(activity)
    }

    fn fault(&self) -> Option<Error> {
        let Handle { engine, epoch, .. } = &*self.handle;
        let core = engine.lock();
        core.detector.fault(*epoch).map(|(error, _)| error.clone())
    }

    fn refuse(&self) -> Result<()> {
        let Handle { engine, epoch, .. } = &*self.handle;
        engine.lock().refuse(*epoch)
    }

    /// The others hear of it first, so that nobody waits for a call that never comes; then what was issued and dropped
    /// is finished.
    fn depart(&self) {
        let Handle { engine, epoch, .. } = &*self.handle;
        engine.lock().end(*epoch, Ended::Well);
        wait::finish(engine, *epoch, self.membership.deadline);
    }

    /// Nothing, where this process runs another program by now.
    fn fail(&self, error: Error) {
        let Handle { engine, epoch, .. } = &*self.handle;
        let mut core = engine.lock();
        let counts = match watcher::is_program() {
            true => core.end(*epoch, Ended::Failed(Instant::now())),
            // The program of a rank whose card has failed still runs.
            false => *epoch == core.detector.epoch(),
        };
        if counts {
            core.fail(*epoch, &error);
        }
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
