//! [`MpiWork`]: how a rank waits; and the background thread, which moves things along while the rank
//! computes.

use super::engine::{Engine, Stage};
use super::header::Key;
use super::wire;
use crate::error::Result;
use crate::work::Pending;
use phalanx_tensor::Tensor;
use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread, sleep, yield_now};
use std::time::{Duration, Instant};

/// A rank's side of an operation that it has issued.
pub(super) struct MpiWork {
    pub(super) engine: Arc<Engine>,
    pub(super) key: Key,
    pub(super) deadline: Duration,
    /// How many programs this process had ended when it was issued.
    pub(super) run: u64,
    /// Whether each process of this machine can have a core to itself.
    pub(super) cores_to_spare: bool,
}

/// Rounds in which a waiting thread does nothing else, where it has a core to itself.
const SPINS: u32 = 2000;
/// How long it then yields, before it sleeps between looks.
const YIELDS: Duration = Duration::from_millis(5);
/// How long it sleeps.
const NAP: Duration = Duration::from_micros(50);

/// Says that a thread waits, as long as it lives.
struct Waiting<'a>(&'a Engine);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiters.fetch_sub(1, SeqCst);
    }
}

impl Pending for MpiWork {
    fn poll(&mut self) -> bool {
        let mut core = self.engine.lock();
        core.progress();
        core.fault().is_some() || matches!(core.stage(self.key), Stage::Done)
    }

    /// The thread that waits makes progress itself: no hand-over to another thread stands between
    /// a message and its receiver.
    fn wait(self: Box<Self>) -> Result<Option<Tensor>> {
        self.engine.waiters.fetch_add(1, SeqCst);
        let _waiting = Waiting(&self.engine);
        let (mut rounds, mut idle_since, mut asked) = (0u32, None, None);
        loop {
            let mut core = self.engine.lock();
            let mut moved = core.progress();
            let stage = core.stage(self.key);
            if let Stage::Done = stage {
                return Ok(core.take(self.key));
            }
            if let Some((error, _)) = core.fault() {
                let error = error.clone();
                core.told.get_or_insert_with(Instant::now);
                return Err(error);
            }
            // What others do to this rank's other operations is no progress of this one.
            moved &= matches!(stage, Stage::Moving);
            if moved {
                (rounds, idle_since, asked) = (0, None, None);
                continue;
            }
            rounds += 1;
            if self.cores_to_spare && rounds < SPINS {
                drop(core);
                spin_loop();
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
            let nap = idle > YIELDS && !matches!(stage, Stage::Moving);
            drop(core);
            match nap {
                true => sleep(NAP),
                false => yield_now(),
            }
        }
    }
}

/// Where the background thread sleeps, and how it is woken.
#[derive(Default)]
pub(super) struct Listener {
    thread: OnceLock<Thread>,
    /// It sleeps, and nobody has roused it.
    dozes: AtomicBool,
    /// Somebody has roused it since it last woke up.
    wanted: AtomicBool,
}

impl Listener {
    /// Sleeps so long, or until roused; says which. For the background thread alone.
    fn doze(&self, time: Duration) -> bool {
        self.thread.get_or_init(thread::current);
        self.dozes.store(true, SeqCst);
        // Who rouses before this line is seen here; who does so after it leaves a token, and nobody
        // sleeps.
        if !self.wanted.load(SeqCst) {
            thread::park_timeout(time);
        }
        self.dozes.store(false, SeqCst);
        self.wanted.swap(false, SeqCst)
    }

    /// Ends the background thread's sleep.
    pub(super) fn rouse(&self) {
        self.wanted.store(true, SeqCst);
        if self.dozes.swap(false, SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }
}

/// How long a rank that does not listen may go on after the world has failed.
pub(super) const GRACE: Duration = Duration::from_millis(700);
/// How long a rank may go on that has been told, or whose program has ended.
const LAST_WORDS: Duration = Duration::from_secs(60);
/// How long the background thread sleeps where there is nothing to do but to listen, …
const LISTEN: Duration = Duration::from_micros(500);
/// … and where operations are under way, but nothing could be moved for as long as [`EAGER`].
const LOOK: Duration = Duration::from_micros(100);
/// How long it goes on looking after data has moved, or a call was issued, and only lets others run
/// in between: a nap would take longer than a step of the data.
const EAGER: Duration = Duration::from_micros(300);

/// Moves things along while the rank computes, until `ended`; so the others get what they need from
/// this rank, and hear that it is alive. Where the world has failed and the rank takes no notice, it
/// ends the process, and with it the job.
pub(super) fn background(engine: &Engine, ended: &AtomicBool) {
    let mut eager_since = Instant::now();
    while !ended.load(SeqCst) {
        let mut pause = LISTEN;
        if !engine.is_waited_in() {
            let mut core = engine.lock();
            if ended.load(SeqCst) {
                return;
            }
            if core.progress() {
                eager_since = Instant::now();
            }
            pause = match core.is_busy() || core.has_calls() {
                true if eager_since.elapsed() < EAGER => Duration::ZERO,
                true => LOOK,
                false => LISTEN,
            };
            let rank = core.wire.rank;
            let is_deaf = match (core.fault(), core.told.or(core.ended)) {
                (None, _) => false,
                _ if core.farewells[rank] => false,
                (Some((_, since)), None) => since.elapsed() > GRACE,
                (Some((_, since)), Some(told)) => told.max(*since).elapsed() > LAST_WORDS,
            };
            if is_deaf && let Some((error, _)) = core.fault() {
                eprintln!("rank {rank} is ended, since it does not end by itself: {error}");
                drop(core);
                wire::abort(1);
            }
        }
        match pause.is_zero() {
            true => yield_now(),
            false if engine.listener.doze(pause) => eager_since = Instant::now(),
            false => {}
        }
    }
}
