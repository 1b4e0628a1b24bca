//! [`MpiWork`]: how a rank waits; and the background thread, which moves things along while the rank
//! computes.

use super::engine::{Engine, Stage};
use super::header::Key;
use super::wire;
use crate::error::Result;
use crate::work::{Pending, Tensors};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{sleep, yield_now};
use std::time::{Duration, Instant};

/// A rank's side of an operation that it has issued.
pub(super) struct MpiWork {
    pub(super) engine: Arc<Engine>,
    pub(super) key: Key,
    pub(super) deadline: Duration,
    /// How many programs this process had ended when it was issued.
    pub(super) run: u64,
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
        let mut core = self.engine.lock();
        core.progress();
        if let Stage::Done = core.stage(self.key) {
            return Ok(true);
        }
        core.refuse()?;
        Ok(false)
    }

    /// The thread that waits makes progress itself: no hand-over to another thread stands between
    /// a message and its receiver.
    fn wait(self: Box<Self>) -> Result<Tensors> {
        let mut waiting = Waiting::new(&self.engine);
        let (mut idle_since, mut asked) = (None, None);
        loop {
            let mut core = self.engine.lock();
            let anything_moved = core.progress();
            let stage = core.stage(self.key);
            if let Stage::Done = stage {
                let outputs = core.take(self.key);
                waiting.leaves_bulk = core.has_bulk();
                return Ok(outputs);
            }
            core.refuse()?;
            // What others do to this rank's other operations is no progress of this one, which may be late all the same …
            if anything_moved && matches!(stage, Stage::Moving) {
                (idle_since, asked) = (None, None);
                continue;
            }
            let idle = idle_since.get_or_insert_with(Instant::now).elapsed();
            if let Stage::Filling = stage {
                core.check_departures(self.key, self.run);
            }
            if idle > self.deadline && !core.accuses() {
                core.late(self.key, self.deadline, asked);
            } else if asked.is_none() && idle > self.deadline / 2 {
                asked = Some(Instant::now());
                core.ping(self.key);
            }
            // … but nobody else moves them along while this thread waits.
            let nap = idle > YIELDS && !anything_moved && !core.is_busy();
            drop(core);
            match nap {
                true => sleep((idle / 50).min(NAP)),
                false => yield_now(),
            }
        }
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
        let is_alone = core.all_others_end();
        drop(core);
        if is_alone && alone_since.get_or_insert_with(Instant::now).elapsed() > PRECEDENCE {
            return;
        }
        sleep(LOOK);
    }
}
