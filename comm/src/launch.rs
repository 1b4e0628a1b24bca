//! [`launch`]: runs a program on every rank, and brings back what the ranks return, or why they
//! did not.

pub(crate) mod config;
mod error;
mod typed;

pub use self::config::{LaunchConfig, OnFailure};
pub use self::error::{FailureKind, LaunchError, RankFailure};

pub(crate) use self::typed::{Ended, Program, typed};
use crate::backends::local::{self, Watcher};
use crate::error::Error;
use crate::group::{Flight, Group, ProcessGroup};
use crate::line::report;
use phalanx_tensor::{Device, cpu};
use std::any::Any;
use std::fmt::{Debug, Display};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

/// The most ranks that one process runs.
const MOST_RANKS: usize = 4096;
/// The most threads of a rank.
const MOST_THREADS: usize = 4096;

/// Runs `program` on `config.world_size` ranks, each a thread of this process named `rank-0`,
/// `rank-1`, …, and returns their results in rank order.
///
/// Rank `r`'s results live on `Device::cpu(r)`, unless `config.device` is another one, and its tensor operations use
/// `config.threads_per_rank` threads.
///
/// A rank that returns an error or panics fails the world: the others get
/// [`Error::RankFailed`] or [`Error::RankPanicked`] from what they wait for, at once. A rank that
/// returns well while others still need it fails it with [`Error::RankReturned`]; one that returns well and has dropped
/// a [`Work`](crate::Work) to which others are still to come, with [`Error::Abandoned`]. The threads have
/// ended when `launch` returns; so a rank that computes forever, without a word to the others, keeps
/// it from returning, though the others learn of it at the deadline. What happens then is a policy:
/// see [`OnFailure`].
///
/// Where the ranks of a group call what does not go together, the error is given when all of them have come, so that it
/// names the one that differs from most; or after a tenth of the deadline, a second at most, by those who have come.
/// A rank that waits for longer than the deadline gets [`Error::DeadlineExceeded`], which says whom it waits for, and
/// what that one waits for, across groups. Only time counts in which the rank can look: a process that was stopped, or
/// a rank that had no core, is not late for it.
///
/// Ranks that wait for each other in a circle get [`Error::Deadlock`] without waiting for the deadline: after two or
/// three tenths of it, three seconds at most. That is so for ranks that make all their calls, `wait` and `poll`
/// included, from one thread. A rank that has called from several threads may be helped by another one of them, so it
/// is in no circle, and the deadline counts. (A thread that has not made a call yet cannot be known: a rank that sleeps in a
/// circle of waits until such a thread makes the first call of its life is taken to wait in vain.)
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
/// [`LaunchError`], if any rank failed; or if all returned well, but the world has failed by what they had dropped, and none
/// of them has heard of it.
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
    let results = typed(&program, |program| threads(&config, program))?;
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

/// What [`launch`] does, of a program without its types.
pub(crate) fn threads(config: &LaunchConfig, program: Program<'_>) -> Ended {
    let size = config.world_size;
    if size == 0 {
        return Err(LaunchError::NoRanks);
    }
    if size > MOST_RANKS {
        return Err(LaunchError::TooManyRanks {
            asked: size,
            limit: MOST_RANKS,
        });
    }
    check_threads(config.threads_per_rank)?;
    config.check_device(size)?;
    let devices: Vec<Device> = (0..size)
        .map(|rank| config.host_device(rank, size))
        .collect();
    let groups = local::engines(&devices, config.threads_per_rank, config.deadline);
    let world = groups[0].watcher();
    for card in (0..size).filter_map(|rank| config.card_of(rank, size)) {
        card.memory()
            .map_err(|error| LaunchError::World(error.into()))?;
    }
    let groups = groups.into_iter().enumerate();
    let groups = groups.map(|(rank, host)| Group::world_on(host, config.card_of(rank, size)));
    let groups: Vec<Group> = groups
        .collect::<Result<_, _>>()
        .map_err(LaunchError::World)?;
    let flights: Vec<_> = groups.iter().map(|g| Arc::clone(g.flight())).collect();
    let failures = AtomicUsize::new(0);
    let ends = thread::scope(|scope| {
        let (sender, news) = channel();
        let mut threads = Vec::with_capacity(size);
        for (rank, group) in groups.into_iter().enumerate() {
            let (sender, failures) = (sender.clone(), &failures);
            let run = move || {
                let end = run_rank(group, config, program, failures);
                // It fails only where no thread could be had for another rank: then nobody listens.
                let _ = sender.send(rank);
                end
            };
            match spawn(scope, rank, config.stack_size, run) {
                Ok(thread) => threads.push(thread),
                // The groups that are left are dropped: their ranks have departed, and the ranks
                // that run already end with `RankReturned`.
                Err(error) => return Err(LaunchError::Spawn { rank, error }),
            }
        }
        drop(sender);
        watch(&news, &world, config, &flights);
        Ok(threads.into_iter().map(|t| t.join()).collect::<Vec<_>>())
    })?;
    let mut failed = Vec::new();
    for (rank, end) in ends.into_iter().enumerate() {
        match end {
            Ok(Ok(())) => {}
            Ok(Err((order, kind))) => failed.push((order, RankFailure { rank, kind })),
            // `run_rank` catches the program's panics: what is left is dropping its panic's payload.
            Err(panic) => {
                let kind = FailureKind::Panic(message(&*panic));
                failed.push((usize::MAX, RankFailure { rank, kind }));
            }
        }
    }
    let Some(first) = (0..failed.len()).min_by_key(|&i| failed[i].0) else {
        // Where all have dropped what they disagreed on, or what others never came to, nobody has heard of it.
        return match world.fault() {
            Some((fault, false)) => Err(LaunchError::World(fault)),
            _ => Ok(()),
        };
    };
    let first = failed.remove(first).1;
    let has_failed = |rank: usize| rank == first.rank || failed.iter().any(|f| f.1.rank == rank);
    for rank in (0..size).filter(|&rank| !has_failed(rank)) {
        write_record(&flights[rank], rank, config, "it returned well");
    }
    let others = failed.into_iter().map(|(_, failure)| failure).collect();
    Err(LaunchError::Ranks { first, others })
}

/// Fails where a rank is to have more threads than make sense.
pub(crate) fn check_threads(asked: usize) -> Ended {
    let limit = MOST_THREADS;
    match asked > limit {
        true => Err(LaunchError::TooManyThreads { asked, limit }),
        false => Ok(()),
    }
}

/// A rank's thread, with a stack of its own size: programs recurse as deep as their modules are
/// nested.
fn spawn<'scope>(
    scope: &'scope Scope<'scope, '_>,
    rank: usize,
    stack_size: usize,
    run: impl FnOnce() -> RankEnd + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, RankEnd>> {
    thread::Builder::new()
        .name(format!("rank-{rank}"))
        .stack_size(stack_size)
        .spawn_scoped(scope, run)
}

/// How often it is looked whether the world has failed, while ranks run.
const LOOK: Duration = Duration::from_millis(50);

/// Waits until all ranks have ended, and says which has not where that takes long after the world has
/// failed; ends the process, where the policy is such. It looks at the world itself: a rank that was
/// told of the failure may end well, and others say nothing at all.
fn watch(ends: &Receiver<usize>, world: &Watcher, config: &LaunchConfig, flights: &[Arc<Flight>]) {
    let mut runs = vec![true; config.world_size];
    let patience = config.patience();
    let limit = patience.untold.max(patience.told);
    let mut fault = None;
    let failure = loop {
        let wait = match &fault {
            None => LOOK,
            Some((_, since)) => limit.saturating_sub(Instant::elapsed(since)),
        };
        match (ends.recv_timeout(wait), &fault) {
            (Ok(rank), _) => runs[rank] = false,
            // All senders are gone when all ranks have ended.
            (Err(RecvTimeoutError::Disconnected), _) => return,
            (Err(RecvTimeoutError::Timeout), None) => {}
            (Err(RecvTimeoutError::Timeout), Some((failure, _))) => break failure,
        }
        fault = fault.or_else(|| Some((world.fault()?.0, Instant::now())));
    };
    let rank = runs.iter().position(|&runs| runs).unwrap_or_default();
    let still = format!("rank {rank} has not ended {limit:?} after the world has failed");
    for rank in (0..runs.len()).filter(|&rank| runs[rank]) {
        write_record(&flights[rank], rank, config, &format!("{still}: {failure}"));
    }
    if let OnFailure::EndAfter(_) = config.on_failure {
        report(format_args!("{still}, so this process is ended: {failure}"));
        process::exit(1);
    }
    report(format_args!("{still}, and is waited for: {failure}"));
}

/// How a rank has ended: a failure comes with its place in the order of failures.
type RankEnd = Result<(), (usize, FailureKind<String>)>;

/// One rank from start to end.
fn run_rank(
    group: Group,
    config: &LaunchConfig,
    program: Program<'_>,
    failures: &AtomicUsize,
) -> RankEnd {
    let rank = group.rank();
    let handle: Arc<dyn ProcessGroup> = Arc::new(group.clone());
    // A panic leaves nothing of ours half-done: the group is failed right after, and whatever the
    // program shares between its ranks is its own concern, as with any thread.
    let end = catch_unwind(AssertUnwindSafe(|| {
        group.connect();
        cpu::with_threads(config.threads_per_rank, || program(handle))
    }));
    let (error, kind) = match end {
        Ok(Ok(())) => {
            // Not left to the last handle's drop: the program may have kept one.
            group.depart();
            return Ok(());
        }
        Ok(Err(message)) => {
            let kind = FailureKind::Error(message.clone());
            (Error::RankFailed { rank, message }, kind)
        }
        Err(panic) => {
            let message = message(&*panic);
            let kind = FailureKind::Panic(message.clone());
            (Error::RankPanicked { rank, message }, kind)
        }
    };
    let order = failures.fetch_add(1, Relaxed);
    group.fail(error);
    let (FailureKind::Error(why) | FailureKind::Panic(why)) = &kind;
    write_record(group.flight(), rank, config, why);
    Err((order, kind))
}

/// The one rank that this process is, on a thread of its own with a stack as deep as that of a rank among threads.
/// `watch` runs meanwhile, and returns when its receiver says that the rank has ended.
pub(crate) fn run_process(
    group: Group,
    config: &LaunchConfig,
    program: Program<'_>,
    watch: &dyn Fn(&Receiver<()>),
) -> Ended {
    let rank = group.rank();
    let failures = AtomicUsize::new(0);
    let end = thread::scope(|scope| {
        let (sender, ends) = channel::<()>();
        let run = || {
            let _ends = sender; // with this thread
            run_rank(group, config, program, &failures)
        };
        let thread = spawn(scope, rank, config.stack_size, run)?;
        watch(&ends);
        // `run_rank` catches the program's panics: what is left is dropping its panic's payload.
        let end = thread.join();
        Ok(end.unwrap_or_else(|panic| Err((0, FailureKind::Panic(message(&*panic))))))
    });
    match end.map_err(|error| LaunchError::Spawn { rank, error })? {
        Ok(()) => Ok(()),
        Err((_, kind)) => Err(LaunchError::Ranks {
            first: RankFailure { rank, kind },
            others: Vec::new(),
        }),
    }
}

/// Writes what the rank has called, where the launch asks for it. That it could not be written is said, and no more:
/// the rank has a failure already.
fn write_record(flight: &Flight, rank: usize, config: &LaunchConfig, why: &str) {
    let Some(folder) = &config.flight_record else {
        return;
    };
    if let Err(error) = flight.write(folder, rank, why) {
        let folder = folder.display();
        report(format_args!(
            "rank {rank} cannot write its record into {folder}: {error}"
        ));
    }
}

/// What a panic says.
pub(crate) fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "no message".into())
}
