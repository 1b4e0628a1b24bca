//! The simulated machine: who waits runs what can run.
//!
//! Streams have no threads. A host thread that waits takes the lock, picks an operation that can run, by the seed, and
//! runs it outside the lock; so may several threads at once. Nothing runs before somebody waits, or asks, or a queue is
//! full: a program that relies on more than it has ordered sees it.

use std::cell::Cell;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::code::{Code, Result};
use super::history::{Access, What};
use super::memory::{Block, Life, Space};
use super::operation::{Failure, Operation, Work};
use super::report::{Count, Report};
use super::settings::Settings;
use super::state::State;
use super::view::View;

/// How many operations a stream holds before the call that adds one more runs some.
const DEEPEST: usize = 1024;

/// How often a thread that can run nothing looks again: an operation may wait for another process.
const GLANCE: Duration = Duration::from_millis(2);

/// How many times as long as another wait one may last that is held up by a collective: its ranks may be late.
const LATE: u32 = 10;

/// All of the simulator.
pub struct Machine {
    /// What the environment asks for.
    pub settings: Settings,
    /// What was found and counted.
    pub report: Report,
    /// Memory.
    pub space: Space,
    state: Mutex<State>,
    changed: Condvar,
}

/// The lock.
pub type Guard<'a> = MutexGuard<'a, State>;

static MACHINE: OnceLock<std::result::Result<Machine, String>> = OnceLock::new();

thread_local! {
    static IN_HOST_CALL: Cell<bool> = const { Cell::new(false) };
}

impl Machine {
    /// Makes the machine, at the first call.
    ///
    /// # Errors
    /// A sentence: the environment asks for what cannot be.
    pub fn start() -> std::result::Result<&'static Machine, String> {
        let made = MACHINE.get_or_init(|| {
            let settings = Settings::read()?;
            Ok(Machine {
                report: Report::new(settings.report.clone(), true),
                space: Space::new(settings.gpus)?,
                state: Mutex::new(State::new(settings.gpus, settings.seed)),
                changed: Condvar::new(),
                settings,
            })
        });
        made.as_ref().map_err(Clone::clone)
    }

    /// The machine.
    ///
    /// # Errors
    /// `NOT_INITIALIZED` before `cuInit`; `NOT_PERMITTED` within a function of `cuLaunchHostFunc`.
    pub fn get() -> Result<&'static Machine> {
        let Some(Ok(machine)) = MACHINE.get() else {
            return Err(Code::NOT_INITIALIZED);
        };
        if IN_HOST_CALL.try_with(Cell::get).unwrap_or(false) {
            machine
                .report
                .finding("A function that cuLaunchHostFunc has called calls the driver.");
            return Err(Code::NOT_PERMITTED);
        }
        Ok(machine)
    }

    /// The machine if there is one, whoever asks.
    pub fn peek() -> Option<&'static Machine> {
        MACHINE.get()?.as_ref().ok()
    }

    /// Takes the lock.
    pub fn lock(&self) -> Guard<'_> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the lock, unless somebody holds it for long.
    pub fn lock_if_free(&self) -> Option<Guard<'_>> {
        for _ in 0..1000 {
            match self.state.try_lock() {
                Ok(state) => return Some(state),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        None
    }

    /// Tells the threads that wait that something may have become ready.
    pub fn notify(&self) {
        let mut state = self.lock();
        state.progress += 1;
        self.wake(&state);
    }

    /// Wakes the threads that wait: to call the system for nothing would be half of the work of a small operation.
    fn wake(&self, state: &State) {
        if state.waiting > 0 {
            self.changed.notify_all();
        }
    }

    /// Reports a finding and makes the context of a GPU fail.
    pub fn fail(&self, state: &mut State, gpu: usize, failure: &Failure) {
        self.report.finding(&failure.message);
        state.fail(gpu, failure.code);
        self.wake(state);
    }

    /// Runs one operation that can run. False if there is none.
    pub fn step<'a>(&'a self, mut state: Guard<'a>) -> (Guard<'a>, bool) {
        let Some((stream, mut operation)) = state.pick() else {
            return (state, false);
        };
        let gpu = state.streams[stream].gpu;
        let view = View {
            space: &self.space,
            gpu,
            peers: state.contexts[gpu].peers,
            pools: {
                let pools = state.pools.iter().enumerate();
                let open = pools.filter(|(_, pool)| pool.access >> gpu & 1 == 1);
                open.fold(0, |all, (number, _)| all | 1 << number)
            },
        };
        if operation.work.is_short() {
            let outcome = operation.work.run(&view);
            self.settle(&mut state, stream, operation, outcome);
            self.wake(&state);
            return (state, true);
        }
        state.started += 1;
        let ticket = state.started;
        state.running.insert(ticket);
        drop(state);
        let is_call = matches!(operation.work, Work::Host(_));
        let _ = IN_HOST_CALL.try_with(|inside| inside.set(is_call));
        let outcome = operation.work.run(&view);
        let _ = IN_HOST_CALL.try_with(|inside| inside.set(false));
        let mut state = self.lock();
        state.running.remove(&ticket);
        self.settle(&mut state, stream, operation, outcome);
        self.wake(&state);
        (state, true)
    }

    /// Judges what an operation has touched, and ends it.
    fn settle(
        &self,
        state: &mut State,
        stream: usize,
        operation: Operation,
        outcome: std::result::Result<Vec<crate::exec::Touched>, Failure>,
    ) {
        let gpu = state.streams[stream].gpu;
        let Operation {
            sequence,
            clock,
            work,
            ..
        } = operation;
        if state.contexts[gpu].error.is_none() {
            let found_by_run = outcome.is_err();
            let verdict = outcome.and_then(|touched| {
                for touched in touched {
                    let uses = [(touched.read, false), (touched.written, true)];
                    for (range, writes) in uses {
                        let Some(range) = range.filter(|range| !range.is_empty()) else {
                            continue;
                        };
                        let access = Access {
                            stream,
                            sequence,
                            writes,
                            range,
                            what: work.what(),
                        };
                        let kept = state.access(access, touched.region, &clock, true);
                        kept.map_err(|sentence| self.unordered(touched.region, &sentence))?;
                    }
                }
                Ok(())
            });
            if let Err(mut failure) = verdict {
                let name = state.name(stream);
                let sentence = failure.message.trim_end_matches('.');
                failure.message = format!("{sentence}. This was operation {sequence} of {name}.");
                let blocks = work
                    .addresses()
                    .into_iter()
                    .filter_map(|at| self.space.locate(at));
                let mut others =
                    blocks.filter_map(|block| state.unordered(stream, sequence, &clock, &block));
                if let Some(other) = others.next().filter(|_| found_by_run) {
                    failure.message += &format!(" A wait may be missing: {other}.");
                }
                self.fail(state, gpu, &failure);
            }
        }
        match work {
            Work::Free(block) => {
                self.space.set_life(block.id, Life::Freed(Some(stream)));
                state.contexts[block.gpu.unwrap_or(gpu)].pending -= block.len;
                self.close(state, block);
            }
            Work::Record(event) => {
                if let Some(event) = state.events.get_mut(&event) {
                    let last = event.recorded.as_ref();
                    if last.is_some_and(|last| last.stream == stream && last.sequence == sequence) {
                        event.at = Some(Instant::now());
                    }
                }
            }
            _ => {}
        }
        state.end(stream, sequence);
        let State {
            closing, running, ..
        } = state;
        if !closing.is_empty() {
            let oldest = running.first().copied().unwrap_or(u64::MAX);
            closing.retain(|(before, block)| {
                let touched = oldest <= *before;
                if !touched {
                    self.space.give_back(block);
                }
                touched
            });
        }
    }

    fn unordered(&self, id: u64, sentence: &str) -> Failure {
        let gpus = (0..self.settings.gpus).flat_map(|gpu| self.space.alive(gpu));
        let block = gpus.chain(self.space.pinned()).find(|block| block.id == id);
        let block = block.map_or("memory that is freed".to_owned(), |block| block.to_string());
        Failure::address(format!("Unordered use of {block}: {sentence}"))
    }

    /// Ends a freed block: its history, and its pages as soon as no operation can be touching them.
    pub fn close(&self, state: &mut State, block: Block) {
        state.histories.remove(&block.id);
        let started = state.started;
        if state.running.is_empty() {
            self.space.give_back(&block);
        } else {
            state.closing.push((started, block));
        }
    }

    /// Makes room in a stream that holds as many operations as a stream may hold.
    pub fn room<'a>(&'a self, mut state: Guard<'a>, stream: usize) -> Guard<'a> {
        while state.streams[stream].queue.len() >= DEEPEST {
            let (back, ran) = self.step(state);
            state = back;
            if !ran {
                if state.running.is_empty() {
                    break;
                }
                state = self.glance(state);
            }
        }
        state
    }

    /// Puts work at the end of a stream; its number in the stream comes back.
    ///
    /// # Errors
    /// The error of the stream's context.
    pub fn submit<'a>(
        &'a self,
        state: Guard<'a>,
        stream: usize,
        work: Work,
    ) -> Result<(Guard<'a>, u32)> {
        let mut state = self.room(state, stream);
        let gpu = state.streams[stream].gpu;
        state.context(gpu)?;
        let block = match &work {
            Work::Allocate(block) | Work::Free(block) => Some(*block),
            _ => None,
        };
        let what = work.what();
        let sequence = state.enqueue(stream, work, Vec::new(), None);
        self.wake(&state);
        if let Some(block) = block {
            let clock = state.streams[stream].clock.clone();
            let access = Access {
                stream,
                sequence,
                writes: true,
                range: 0..block.len,
                what,
            };
            if let Err(sentence) = state.access(access, block.id, &clock, false) {
                let failure = self.unordered(block.id, &sentence);
                self.fail(&mut state, gpu, &failure);
                return Err(failure.code);
            }
        }
        Ok((state, sequence))
    }

    /// Refuses work that was given an address in freed memory: the context fails.
    ///
    /// # Errors
    /// The code with which it fails.
    pub fn refuse_stale(&self, state: &mut State, gpu: usize, work: &Work) -> Result<()> {
        for address in work.addresses() {
            let block = self.space.locate(address);
            if block.is_some_and(|block| block.life != Life::Live) {
                let who = match work.what() {
                    What::Kernel(name) => format!("The kernel {name} is launched"),
                    What::Custom(name) => format!("A library calls {name}"),
                    _ => "An operation is enqueued".to_owned(),
                };
                let failure = Failure::address(format!(
                    "{who} with the stale pointer {address:#x}: it lies {}.",
                    self.space.explain(address)
                ));
                self.fail(state, gpu, &failure);
                return Err(failure.code);
            }
        }
        Ok(())
    }

    fn glance<'a>(&'a self, mut state: Guard<'a>) -> Guard<'a> {
        state.waiting += 1;
        let waited = self.changed.wait_timeout(state, GLANCE);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        state.waiting -= 1;
        state
    }

    /// Runs operations until `done` holds. A wait that nothing can end is reported and makes the context fail.
    pub fn until<'a>(
        &'a self,
        mut state: Guard<'a>,
        gpu: usize,
        done: impl Fn(&State) -> bool,
    ) -> Guard<'a> {
        let mut seen = (state.progress, Instant::now());
        while !done(&state) {
            let (back, ran) = self.step(state);
            state = back;
            if ran {
                continue;
            }
            state = self.glance(state);
            if state.progress != seen.0 || !state.running.is_empty() {
                seen = (state.progress, Instant::now());
                continue;
            }
            let patience = match state.waits_for_others() {
                true => LATE * self.settings.patience,
                false => self.settings.patience,
            };
            if seen.1.elapsed() >= patience {
                let failure = Failure {
                    code: Code::LAUNCH_TIMEOUT,
                    message: format!(
                        "Deadlock: a host thread waits for GPU {gpu}, and nothing has happened for {patience:?}: {}.",
                        state.obstacles()
                    ),
                };
                self.fail(&mut state, gpu, &failure);
                seen = (state.progress, Instant::now());
            }
        }
        state
    }

    /// A wait of the host, which is counted: runs operations until `done` holds, and lets the pools of the GPU give back
    /// what they do not use.
    ///
    /// # Errors
    /// The error that the context has, before or after the wait.
    pub fn wait<'a>(
        &'a self,
        mut state: Guard<'a>,
        gpu: usize,
        done: impl Fn(&State) -> bool,
    ) -> Result<Guard<'a>> {
        self.report.count(Count::Waits);
        state.context(gpu)?;
        let mut state = self.until(state, gpu, done);
        for pool in state.pools.iter_mut().filter(|pool| pool.gpu == gpu) {
            pool.trim(pool.threshold);
        }
        state.context(gpu)?;
        Ok(state)
    }

    /// Waits for all that was enqueued in a stream until now, and knows of it.
    ///
    /// # Errors
    /// The context's error.
    pub fn wait_stream<'a>(&'a self, state: Guard<'a>, stream: usize) -> Result<Guard<'a>> {
        let (gpu, count) = (state.streams[stream].gpu, state.streams[stream].enqueued);
        let clock = state.streams[stream].clock.clone();
        let mut state = self.wait(state, gpu, |state| state.streams[stream].done >= count)?;
        state.host.join(&clock);
        Ok(state)
    }

    /// Waits for all that was enqueued in a context until now, and knows of it.
    ///
    /// # Errors
    /// The context's error.
    pub fn wait_context<'a>(&'a self, state: Guard<'a>, gpu: usize) -> Result<Guard<'a>> {
        let streams = state.streams.iter().enumerate();
        let own = streams.filter(|(_, stream)| stream.gpu == gpu && stream.enqueued > 0);
        let goals: Vec<_> = own
            .map(|(number, stream)| (number, stream.enqueued))
            .collect();
        // Taken now: what other threads enqueue during the wait is not waited for.
        let mut known = state.host.clone();
        for (stream, _) in &goals {
            known.join(&state.streams[*stream].clock);
        }
        let mut state = self.wait(state, gpu, |state| {
            let mut goals = goals.iter();
            goals.all(|(stream, count)| state.streams[*stream].done >= *count)
        })?;
        state.host.join(&known);
        Ok(state)
    }
}
