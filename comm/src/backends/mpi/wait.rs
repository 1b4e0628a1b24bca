//! [`MpiWork`]: how a rank waits; and the background thread, which moves things along while the rank
//! computes.

use super::Handle;
use super::engine::{Engine, Stage};
use super::header::Key;
use super::wire;
use crate::error::Result;
use crate::meeting::late::Clock;
use crate::work::{Pending, Tensors};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{sleep, yield_now};
use std::time::{Duration, Instant};

/// A rank's side of an operation that it has issued.
pub(super) struct MpiWork {
    pub(super) handle: Arc<Handle>,
    pub(super) key: Key,
    pub(super) deadline: Duration,
    /// Whether its result was given.
    pub(super) is_taken: bool,
}

/// How long a waiting thread only yields between looks, before it sleeps. (It never spins: where nobody else wants the
/// core, a yield takes 0.2 µs; and where somebody does, it may be whom this thread waits for. Two processes on two cores
/// lost 0.3 ms when one's waiting thread had the core of the other's background thread.)
const YIELDS: Duration = Duration::from_millis(5);
/// How long it sleeps: a fiftieth of what it has waited, but no more than this. Each sleep costs the core that somebody
/// else may need, under virtualisation 40 µs of it.
const NAP: Duration = Duration::from_millis(1);

/// Says that a thread waits, as long as it lives.
struct Waiting<'a> {
    engine: &'a Engine,
    /// Whether it leaves data behind that the background thread has to move from now on. It has left that to the thread
    /// that waits, and sleeps.
    leaves_bulk: bool,
}

impl<'a> Waiting<'a> {
    fn new(engine: &'a Engine) -> Waiting<'a> {
        engine.waiters.fetch_add(1, SeqCst);
        Waiting {
            engine,
            leaves_bulk: false,
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.engine.waiters.fetch_sub(1, SeqCst);
        // Not before: it would find a thread that waits, and go back to sleep.
        if self.leaves_bulk {
            self.engine.listener.rouse();
        }
    }
}

impl Pending for MpiWork {
    fn poll(&mut self) -> Result<bool> {
        let mut core = self.handle.engine.lock();
        core.note_caller(self.handle.epoch);
        core.progress();
        if let Stage::Done = core.stage(self.key) {
            return Ok(true);
        }
        core.refuse(self.handle.epoch)?;
        Ok(false)
    }

    /// The thread that waits makes progress itself: no hand-over to another thread stands between
    /// a message and its receiver.
    fn wait(mut self: Box<Self>) -> Result<Tensors> {
        let Handle { engine, epoch, .. } = &*self.handle;
        let mut waiting = Waiting::new(engine);
        let (mut idle_since, mut watch) = (None, None);
        let mut core = engine.lock();
        core.note_caller(*epoch);
        loop {
            let anything_moved = core.progress();
            if let Stage::Done = core.stage(self.key) {
                core.end_watch(self.key, &mut watch);
                let outputs = core.take(self.key);
                waiting.leaves_bulk = core.has_bulk();
                self.is_taken = true;
                return Ok(outputs);
            }
            if let Err(error) = core.refuse(*epoch) {
                core.end_watch(self.key, &mut watch);
                return Err(error);
            }
            let now = Instant::now();
            core.watch(now, self.key, *epoch, self.deadline, &mut watch);
            if anything_moved {
                idle_since = None;
            }
            let idle = now - *idle_since.get_or_insert(now);
            let nap = idle > YIELDS && !core.is_busy();
            drop(core);
            rest(nap.then_some(idle));
            core = engine.lock();
        }
    }
}

impl Drop for MpiWork {
    /// The engine finishes it, and frees it then.
    fn drop(&mut self) {
        if !self.is_taken {
            self.handle.engine.lock().abandon(self.key);
        }
    }
}

/// Between two looks: leaves the core to others, or sleeps, where nothing has come for so long.
fn rest(idle: Option<Duration>) {
    match idle {
        Some(idle) => sleep((idle / 50).min(NAP)),
        None => yield_now(),
    }
}

/// Waits until the operations of this epoch are done that this rank has issued and that nobody waits for. Where that
/// cannot be, or not in time, the epoch fails: see [`Error::Abandoned`](crate::Error::Abandoned). Ends when the epoch has
/// failed.
pub(super) fn finish(engine: &Engine, epoch: u64, deadline: Duration) {
    if engine.lock().abandoned(epoch).is_none() {
        return;
    }
    let _waiting = Waiting::new(engine);
    let start = Instant::now();
    let (mut clock, mut last) = (Clock::start(start, deadline), None);
    loop {
        let mut core = engine.lock();
        core.progress();
        let abandoned = core.abandoned(epoch);
        let Some((key, is_hopeless)) = abandoned.filter(|_| core.detector.fault(epoch).is_none())
        else {
            return;
        };
        let (now, state) = (Instant::now(), Some((key, core.steps(key))));
        if state != last {
            last = state;
            clock.restart(now);
        }
        clock.look(now);
        if is_hopeless || clock.is_over() {
            core.fail_abandoned(key, epoch);
        }
        drop(core);
        rest(Some(start.elapsed()));
    }
}

/// Where the background thread sleeps, and how it is woken: by a byte through a socket.
///
/// Whom a socket wakes, Linux puts on the core of the waker, which it takes to sleep soon, unless another core is idle.
/// That is as it should be: who computes on a device leaves his core. A futex has no such hint: two processes on two
/// cores had both background threads on one of them, while the other idled, in one run of five, for as long as 0.1 s; a
/// step with an `all_reduce` of 1 MiB behind it took 0.39 ms instead of 0.14.
#[derive(Debug)]
pub(super) struct Listener {
    bell: UnixStream,
    button: UnixStream,
    /// It sleeps, and nobody has roused it.
    dozes: AtomicBool,
    /// Somebody has roused it, and it has taken no notice yet.
    wanted: AtomicBool,
}

impl Listener {
    pub(super) fn new() -> io::Result<Listener> {
        let (bell, button) = UnixStream::pair()?;
        bell.set_read_timeout(Some(LISTEN))?;
        button.set_nonblocking(true)?;
        Ok(Listener {
            bell,
            button,
            dozes: AtomicBool::new(false),
            wanted: AtomicBool::new(false),
        })
    }

    /// Sleeps for [`LISTEN`], or until roused; says which. For the background thread alone.
    fn doze(&self) -> bool {
        self.dozes.store(true, SeqCst);
        // Who rouses before this line is seen here; who does so after it leaves a byte, and nobody
        // sleeps.
        if !self.wanted.load(SeqCst) {
            // The error is that the time is over, or a signal, after which the thread looks too soon.
            let _ = (&self.bell).read(&mut [0; 16]);
        }
        self.dozes.store(false, SeqCst);
        self.is_wanted()
    }

    /// Whether somebody has roused the thread since it was last asked.
    fn is_wanted(&self) -> bool {
        self.wanted.swap(false, SeqCst)
    }

    /// Ends the background thread's sleep.
    pub(super) fn rouse(&self) {
        self.wanted.store(true, SeqCst);
        if self.dozes.swap(false, SeqCst) {
            // If there is no room, there are bytes enough.
            let _ = (&self.button).write(&[1]);
        }
    }
}

/// How long a rank that is ended by force leaves those that have failed before it to end first, so
/// that the job ends with their code.
const PRECEDENCE: Duration = Duration::from_millis(500);
/// How long the background thread sleeps where there is nothing to do but to listen: for failures, and for who asks
/// whether this rank lives. Data of this rank that no header carries rouses it: a call with such data, and the end of a
/// `wait` that leaves some under way. …
const LISTEN: Duration = Duration::from_millis(5);
/// … and where operations are under way, but nothing could be moved for as long as [`EAGER`]. Nothing ends this sleep
/// early: a socket's timeout is counted in the kernel's ticks, of up to 10 ms, and could not be so short.
const LOOK: Duration = Duration::from_micros(100);
/// How long it goes on looking after data has moved, or a call was issued, and only lets others run
/// in between: a nap would take longer than a step of the data.
const EAGER: Duration = Duration::from_micros(300);

/// What the background thread does between two looks.
enum Next {
    /// Let others run.
    Yield,
    /// Sleep for [`LOOK`].
    Nap,
    /// Sleep for [`LISTEN`], or until roused.
    Listen,
}

/// Moves things along while the rank computes, until `ended`; so the others get what they need from
/// this rank, and hear that it is alive. Where the world has failed and the rank takes no notice, it
/// ends the process, and with it the job.
pub(super) fn background(engine: &Engine, ended: &AtomicBool) {
    let mut eager_since = Instant::now();
    while !ended.load(SeqCst) {
        let mut next = Next::Listen;
        if !engine.is_waited_in() {
            let mut core = engine.lock();
            if ended.load(SeqCst) {
                return;
            }
            if core.progress() {
                eager_since = Instant::now();
            }
            next = match core.is_busy() || core.has_calls() {
                true if eager_since.elapsed() < EAGER => Next::Yield,
                true => Next::Nap,
                false => Next::Listen,
            };
            if let Some(limit) = core.is_overdue() {
                let told = core.patience.told;
                core.give_up(limit);
                drop(core);
                make_room(engine, told);
                wire::abort(1);
            }
        }
        let wanted = match next {
            Next::Yield => {
                yield_now();
                false
            }
            Next::Nap => {
                sleep(LOOK);
                engine.listener.is_wanted()
            }
            Next::Listen => engine.listener.doze(),
        };
        if wanted {
            eager_since = Instant::now();
        }
    }
}

/// Before this process is ended, and with it the job: leaves the others, which have been told, the time
/// `told` for their last words, and lets them go first, so that the job ends with their code.
fn make_room(engine: &Engine, told: Duration) {
    let start = Instant::now();
    let mut alone_since = None;
    while start.elapsed() <= told {
        let mut core = engine.lock();
        core.progress();
        let is_alone = core.detector.all_others_end();
        drop(core);
        if is_alone && alone_since.get_or_insert_with(Instant::now).elapsed() > PRECEDENCE {
            return;
        }
        sleep(LOOK);
    }
}
