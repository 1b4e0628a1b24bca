//! This process's place in an MPI world, from its start to its end.
#![allow(unsafe_code)]

use super::engine::Engine;
use super::wait::{Listener, background};
use super::wire::{Failure, Wire};
use crate::env::Start;
use crate::line::report;
use mpi::Threading;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// MPI can be started once in a process, and there is one world: the one thing that is global.
static ENGINE: OnceLock<Result<Arc<Engine>, Failure>> = OnceLock::new();
/// Tells the background thread that MPI is no more to be called.
static ENDED: AtomicBool = AtomicBool::new(false);

/// How long a rank that fails because of another leaves that one to end first.
const PRECEDENCE: Duration = Duration::from_millis(150);

/// How long a process that has ended waits for a sign of those that have not, each time it has asked
/// them for one.
const SILENCE: Duration = Duration::from_secs(30);

/// The engine of this process; starts MPI at the first call. Collective then: it returns when all
/// processes have called it, and ends this process if that takes longer than `deadline`.
pub(super) fn engine(deadline: Duration) -> Result<Arc<Engine>, Failure> {
    ENGINE.get_or_init(|| start(deadline)).clone()
}

/// The engine of this process, if MPI has been started.
pub(super) fn started() -> Option<&'static Engine> {
    ENGINE.get()?.as_deref().ok()
}

fn start(deadline: Duration) -> Result<Arc<Engine>, Failure> {
    let refused = |message: &str| Failure {
        call: "MPI_Init_thread",
        message: message.into(),
    };
    let alarm = Alarm::set(deadline);
    let alarm = alarm.map_err(|e| refused(&format!("no thread for its deadline: {e}")))?;
    let Some((universe, threads)) = mpi::initialize_with_threading(Threading::Multiple) else {
        return Err(refused("somebody else has started MPI in this process"));
    };
    // Its drop would call `MPI_Finalize`, which waits for all others: for ever, where a rank is in
    // trouble. `end` calls it when all others are known to be there.
    std::mem::forget(universe);
    if threads < Threading::Serialized {
        return Err(refused("it grants MPI calls to one thread only"));
    }
    let listener = Listener::new();
    let listener = listener.map_err(|e| refused(&format!("no socket for its progress: {e}")))?;
    let engine = Arc::new(Engine::new(Wire::new()?, listener));
    drop(alarm);
    let served = Arc::clone(&engine);
    thread::Builder::new()
        .name("mpi-progress".into())
        .spawn(move || {
            step_back();
            background(&served, &ENDED);
        })
        .map_err(|e| refused(&format!("no thread for its progress: {e}")))?;
    // SAFETY: `end` is a function that needs nothing but statics.
    let registered = unsafe { libc::atexit(end) };
    if registered != 0 {
        return Err(refused("its end could not be registered with the system"));
    }
    Ok(engine)
}

/// Ends the process when MPI has not started in time, unless it is dropped before.
///
/// `MPI_Init` waits for all processes of the job, for ever where one has ended before it, or is
/// another program; and nothing but the end of the process ends that wait.
struct Alarm {
    _bell: Sender<()>,
}

impl Alarm {
    fn set(deadline: Duration) -> io::Result<Alarm> {
        let (bell, silence) = channel();
        // Not when it goes off: MPI sets variables while it starts, and nobody may read them meanwhile.
        let start = Start::detect().ok();
        thread::Builder::new()
            .name("mpi-start".into())
            .spawn(move || {
                if silence.recv_timeout(deadline) == Err(RecvTimeoutError::Timeout) {
                    report(late(start, deadline));
                    // SAFETY: it has no condition. (`exit` would run what MPI has registered, with its
                    // locks held.)
                    unsafe { libc::_exit(1) };
                }
            })?;
        Ok(Alarm { _bell: bell })
    }
}

/// Why a process ends whose MPI has not started.
fn late(start: Option<Start>, deadline: Duration) -> String {
    let (who, others) = match start {
        Some(Start::Mpi(p)) => (format!("rank {} of {}", p.rank, p.size), p.size > 1),
        _ => ("this process".into(), true),
    };
    let why = match others {
        true => {
            "another process has not called MPI_Init: it has ended before, or is another program"
        }
        false => "its MPI does not answer",
    };
    format!(
        "{who} waited {deadline:?} for MPI to start, and ends: {why} (`start_deadline` is the limit)"
    )
}

/// Tells Linux that this thread is not to take the core from one that computes just because it was woken: it gets its
/// share of the core all the same, a little later. Else `issue`, which wakes it, returns when it has moved its first
/// data: an `all_reduce` of 1 MiB, of 0.13 ms, kept its rank for 0.065 ms.
fn step_back() {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: plain numbers, of which all zeros is a value.
        let param: libc::sched_param = unsafe { std::mem::zeroed() };
        // SAFETY: it reads a live local, and concerns the calling thread alone. That it is refused is no harm.
        unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const param) };
    }
}

/// Runs when the process ends, whichever way it takes: after `main`, or in `exit`. By then the
/// program has said what it had to say. Leaves together with the others, so that no process is killed
/// before it has done so too. Once the world has failed it waits for those that have been told, or
/// compute, no longer than they may go on: see [`Core::is_overdue`](super::engine::Core).
extern "C" fn end() {
    let Some(Ok(engine)) = ENGINE.get() else {
        return;
    };
    let mut core = engine.lock();
    core.bid_farewell();
    let start = Instant::now();
    let mut roll = Roll::new(start);
    let together = loop {
        core.progress();
        let all = core.detector.all_say_farewell();
        if all && core.has_sent_all() {
            break true;
        }
        let limit = core.patience.untold.max(core.patience.told);
        let limit = limit.saturating_add(PRECEDENCE);
        let overdue = |since: &Instant| since.max(&start).elapsed() > limit;
        let is_without_some = !all && core.detector.all_others_end() && core.has_sent_all();
        if is_without_some || core.fault().is_some_and(|(_, since)| overdue(since)) {
            break false;
        }
        match roll.call(Instant::now(), |then| core.detector.silent_since(then)) {
            Answer::Patience => {}
            // Who computes for long answers all the same, by its background thread.
            Answer::Ask => core.call_the_roll(),
            Answer::Gone(rank) => {
                report(format_args!(
                    "this process ends without rank {rank}, which gives no sign"
                ));
                break false;
            }
        }
        drop(core);
        thread::sleep(Duration::from_micros(100));
        core = engine.lock();
    };
    ENDED.store(true, SeqCst);
    // What a failure has left in MPI's hands forbids it to be ended in order.
    if together && !core.is_moving() {
        // There is nobody left to tell of an error.
        drop(core.wire.finalize());
    }
    if core.told().is_some() {
        // Whoever failed goes first: the job ends with the code of the first to fail.
        thread::sleep(PRECEDENCE);
    }
    // The lock is kept: nobody calls MPI any more.
    std::mem::forget(core);
}

/// When to ask the others for a sign, and when to go without them.
struct Roll {
    /// When they were last asked; at first, when the process ended.
    since: Instant,
    asked: bool,
}

/// What a process that has ended does about those that have not.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// It waits.
    Patience,
    /// It asks them for a sign.
    Ask,
    /// It leaves: this rank has given none since it was asked.
    Gone(usize),
}

impl Roll {
    fn new(now: Instant) -> Roll {
        Roll {
            since: now,
            asked: false,
        }
    }

    /// What to do now; `silent_since` names a rank that has given no sign since then, if there is one.
    fn call(&mut self, now: Instant, silent_since: impl Fn(Instant) -> Option<usize>) -> Answer {
        if now.duration_since(self.since) <= SILENCE {
            return Answer::Patience;
        }
        if self.asked
            && let Some(rank) = silent_since(self.since)
        {
            return Answer::Gone(rank);
        }
        (self.since, self.asked) = (now, true);
        Answer::Ask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_is_waited_for_as_long_as_it_gives_signs() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut roll = Roll::new(start);
        // Rank 2 was last heard of long before: that alone is nothing against it.
        let heard = |when: Instant| move |then: Instant| (when < then).then_some(2);
        assert_eq!(roll.call(at(30), heard(start)), Answer::Patience);
        assert_eq!(roll.call(at(31), heard(start)), Answer::Ask);
        assert_eq!(roll.call(at(32), heard(start)), Answer::Patience);
        // It answers, and again.
        assert_eq!(roll.call(at(62), heard(at(31))), Answer::Ask);
        assert_eq!(roll.call(at(93), heard(at(62))), Answer::Ask);
        // It answers no more.
        assert_eq!(roll.call(at(123), heard(at(62))), Answer::Patience);
        assert_eq!(roll.call(at(124), heard(at(62))), Answer::Gone(2));
    }
}
