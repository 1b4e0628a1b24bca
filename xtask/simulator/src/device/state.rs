//! What the simulator's lock guards: contexts, streams, events, modules, pools, and who has used which memory.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::clock::Clock;
use super::code::{Code, Result};
use super::history::{Access, History, What};
use super::memory::Block;
use super::modules::{Function, Module};
use super::operation::{Operation, Work};
use super::pool::Pool;
use super::trace::Trace;

/// The primary context of a GPU; there is no other kind.
pub struct Context {
    /// How often it was retained and not released.
    pub retained: u32,
    /// The number of its default stream; it means nothing while the context is not retained.
    pub default_stream: usize,
    /// What every call returns, since something went wrong.
    pub error: Option<Code>,
    /// GPUs to whose contexts peer access is enabled, a bit for each.
    pub peers: u64,
    /// Bytes of memory that belongs to no pool.
    pub plain: u64,
    /// The pool that `cuMemAllocAsync` takes from.
    pub pool: usize,
    /// Bytes that are freed, and whose free has not run.
    pub pending: u64,
}

/// How a stream stands to the default stream of its context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It is the default stream.
    Default,
    /// Its operations wait for those of the default stream, and the other way round.
    Blocking,
    /// It has nothing to do with the default stream.
    NonBlocking,
}

/// A stream. Its number is its place in [`State::streams`]; numbers are never used again.
pub struct Stream {
    /// The GPU of its context.
    pub gpu: usize,
    /// How it stands to the default stream.
    pub kind: Kind,
    /// The priority that the program asked for; it changes nothing.
    pub priority: i32,
    /// Whether the program still has it.
    pub alive: bool,
    /// What is ordered before an operation that is enqueued next, but for the host's waits.
    pub clock: Clock,
    /// What has not begun to run.
    pub queue: VecDeque<Operation>,
    /// How many operations were enqueued.
    pub enqueued: u32,
    /// How many have run.
    pub done: u32,
    /// Whether one is running.
    pub busy: bool,
}

/// The last recording of an event.
#[derive(Clone)]
pub struct Recorded {
    /// The stream.
    pub stream: usize,
    /// The place of the recording in the stream.
    pub sequence: u32,
    /// What is ordered before it.
    pub clock: Arc<Clock>,
}

/// An event.
pub struct Event {
    /// The GPU of its context.
    pub gpu: usize,
    /// Whether it takes times.
    pub timing: bool,
    /// Its last recording, if there is one.
    pub recorded: Option<Recorded>,
    /// When that recording ran.
    pub at: Option<Instant>,
}

/// All that the lock guards.
pub struct State {
    /// The context of each GPU.
    pub contexts: Vec<Context>,
    /// All streams that ever were.
    pub streams: Vec<Stream>,
    /// The events that are.
    pub events: HashMap<u64, Event>,
    /// The modules that are loaded.
    pub modules: HashMap<u64, Module>,
    /// All functions that ever were; `None` after their module was unloaded.
    pub functions: Vec<Option<Arc<Function>>>,
    /// All pools that ever were. The first ones are the default pools of the GPUs.
    pub pools: Vec<Pool>,
    /// What the host has waited for.
    pub host: Clock,
    /// The accesses of each block that is alive.
    pub histories: HashMap<u64, History>,
    /// The streams that have operations in their queues.
    pub active: Vec<usize>,
    /// The operations that are running, by the number of their start.
    pub running: BTreeSet<u64>,
    /// How many operations were started.
    pub started: u64,
    /// Freed blocks whose pages an operation may still be touching: those that started before this number.
    pub closing: Vec<(u64, Block)>,
    /// Grows with everything that happens.
    pub progress: u64,
    /// How many host threads wait for something to happen.
    pub waiting: usize,
    /// The number of the next event or module.
    pub next: u64,
    /// What a test has asked to see.
    pub trace: Trace,
    random: u64,
}

impl State {
    /// The state at the start.
    pub fn new(gpus: usize, seed: u64) -> State {
        let context = |gpu| Context {
            retained: 0,
            default_stream: 0,
            error: None,
            peers: 0,
            plain: 0,
            pool: gpu,
            pending: 0,
        };
        State {
            contexts: (0..gpus).map(context).collect(),
            streams: Vec::new(),
            events: HashMap::new(),
            modules: HashMap::new(),
            functions: Vec::new(),
            pools: (0..gpus).map(Pool::new).collect(),
            host: Clock::default(),
            histories: HashMap::new(),
            active: Vec::new(),
            running: BTreeSet::new(),
            started: 0,
            closing: Vec::new(),
            progress: 0,
            waiting: 0,
            next: 1,
            trace: Trace::default(),
            random: seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        }
    }

    /// A number that follows from the seed and from how often this was called.
    pub fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random >> 11
    }

    /// A number for an event or a module.
    pub fn number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// The context of a GPU, if it is retained and nothing went wrong in it.
    ///
    /// # Errors
    /// `INVALID_CONTEXT`, or the error that stays with the context.
    pub fn context(&mut self, gpu: usize) -> Result<&mut Context> {
        let context = self.contexts.get_mut(gpu).ok_or(Code::INVALID_CONTEXT)?;
        match (context.retained, context.error) {
            (0, _) => Err(Code::INVALID_CONTEXT),
            (_, Some(code)) => Err(code),
            (_, None) => Ok(context),
        }
    }

    /// Makes a stream.
    pub fn add_stream(&mut self, gpu: usize, kind: Kind, priority: i32) -> usize {
        self.streams.push(Stream {
            gpu,
            kind,
            priority,
            alive: true,
            clock: Clock::default(),
            queue: VecDeque::new(),
            enqueued: 0,
            done: 0,
            busy: false,
        });
        self.streams.len() - 1
    }

    /// What a stream is called in a report.
    pub fn name(&self, stream: usize) -> String {
        let Stream { gpu, kind, .. } = &self.streams[stream];
        match kind {
            Kind::Default => format!("the default stream of GPU {gpu}"),
            _ => format!("stream {stream} of GPU {gpu}"),
        }
    }

    /// Puts an operation at the end of a stream. It is ordered after what the stream and the host have seen, after
    /// `needs`, and after what `joined` has recorded. Its number in the stream comes back.
    pub fn enqueue(
        &mut self,
        stream: usize,
        work: Work,
        mut needs: Vec<(usize, u32)>,
        joined: Option<&Recorded>,
    ) -> u32 {
        let Stream { gpu, kind, .. } = self.streams[stream];
        let mut clock = std::mem::take(&mut self.streams[stream].clock);
        clock.join(&self.host);
        if let Some(joined) = joined {
            clock.join(&joined.clock);
        }
        let mut after = Vec::from_iter(joined.map(|j| (j.stream, j.sequence)));
        let mut follow = |number: usize, other: &Stream| {
            clock.join(&other.clock);
            after.push((number, other.enqueued));
            if other.done < other.enqueued {
                needs.push((number, other.enqueued));
            }
        };
        match kind {
            Kind::NonBlocking => {}
            Kind::Blocking => {
                let default = self.contexts[gpu].default_stream;
                follow(default, &self.streams[default]);
            }
            Kind::Default => {
                for (number, other) in self.streams.iter().enumerate() {
                    if other.gpu == gpu && other.kind == Kind::Blocking {
                        follow(number, other);
                    }
                }
            }
        }
        let own = &mut self.streams[stream];
        own.enqueued += 1;
        clock.set(stream, own.enqueued);
        self.trace.add((gpu, stream, own.enqueued), &work, after);
        own.clock = clock.clone();
        own.queue.push_back(Operation {
            sequence: own.enqueued,
            clock,
            needs,
            work,
        });
        if own.queue.len() == 1 {
            self.active.push(stream);
        }
        self.progress += 1;
        self.streams[stream].enqueued
    }

    /// Why the first operation of a stream cannot run now, as the end of a sentence; `None` if it can.
    fn obstacle(&self, stream: usize) -> Option<String> {
        let first = self.streams[stream].queue.front()?;
        for (other, sequence) in &first.needs {
            if self.streams[*other].done < *sequence {
                let name = self.name(*other);
                return Some(format!("waits for operation {sequence} of {name}"));
            }
        }
        match &first.work {
            Work::Custom(custom) if !custom.ready() => Some(format!("has {} to do", custom.name())),
            _ => None,
        }
    }

    /// Whether some stream cannot go on before others have done their part.
    pub fn waits_for_others(&self) -> bool {
        let mut firsts = self
            .active
            .iter()
            .filter_map(|stream| self.streams[*stream].queue.front());
        firsts.any(|first| match &first.work {
            Work::Custom(custom) => custom.waits_for_others() && !custom.ready(),
            _ => false,
        })
    }

    /// Orders the operation `sequence` of `stream`, and all that is ordered after it, after what `known` knows. It has
    /// not run.
    pub fn order_after(&mut self, stream: usize, sequence: u32, known: &Clock) {
        let join = |clock: &mut Clock| {
            if clock.get(stream) >= sequence {
                clock.join(known);
            }
        };
        for other in &mut self.streams {
            join(&mut other.clock);
            other
                .queue
                .iter_mut()
                .for_each(|operation| join(&mut operation.clock));
        }
        for recorded in self
            .events
            .values_mut()
            .filter_map(|event| event.recorded.as_mut())
        {
            if recorded.clock.get(stream) >= sequence {
                join(Arc::make_mut(&mut recorded.clock));
            }
        }
        self.histories
            .values_mut()
            .for_each(|history| history.join_announced(join));
    }

    /// All streams that cannot go on, and why.
    pub fn obstacles(&self) -> String {
        let active = self.active.iter();
        let blocked = active.filter_map(|stream| {
            let why = self.obstacle(*stream)?;
            Some(format!("{} {why}", self.name(*stream)))
        });
        blocked.collect::<Vec<_>>().join("; ")
    }

    fn ready(&self, stream: usize) -> bool {
        let Stream { queue, busy, .. } = &self.streams[stream];
        let Some(first) = queue.front().filter(|_| !busy) else {
            return false;
        };
        let mut needs = first.needs.iter();
        needs.all(|(other, sequence)| self.streams[*other].done >= *sequence)
            && match &first.work {
                Work::Custom(custom) => custom.ready(),
                _ => true,
            }
    }

    /// Takes an operation that can run, chosen by the seed; its stream is busy until [`State::end`].
    pub fn pick(&mut self) -> Option<(usize, Operation)> {
        let mut chosen = None;
        let mut count = 0;
        for at in 0..self.active.len() {
            if self.ready(self.active[at]) {
                count += 1;
                if count == 1 || self.random().is_multiple_of(count) {
                    chosen = Some(at);
                }
            }
        }
        let at = chosen?;
        let stream = self.active[at];
        let operation = self.streams[stream].queue.pop_front()?;
        if self.streams[stream].queue.is_empty() {
            self.active.swap_remove(at);
        }
        self.streams[stream].busy = true;
        Some((stream, operation))
    }

    /// The operation `sequence` of `stream` has run, or was dropped.
    pub fn end(&mut self, stream: usize, sequence: u32) {
        let failed = self.contexts[self.streams[stream].gpu].error.is_some();
        let own = &mut self.streams[stream];
        own.busy = false;
        own.done = if failed { own.enqueued } else { sequence };
        self.progress += 1;
    }

    /// From now on all calls of the context return `code`. What has not run is dropped.
    pub fn fail(&mut self, gpu: usize, code: Code) {
        self.contexts[gpu].error = Some(code);
        for stream in self.streams.iter_mut().filter(|stream| stream.gpu == gpu) {
            stream.queue.clear();
            if !stream.busy {
                stream.done = stream.enqueued;
            }
        }
        let streams = &self.streams;
        self.active.retain(|stream| streams[*stream].gpu != gpu);
        self.progress += 1;
    }

    /// How many kernels, copies and the like have not run.
    pub fn unfinished(&self) -> usize {
        let queued = self.streams.iter().flat_map(|stream| &stream.queue);
        queued
            .filter(|operation| !operation.work.is_short())
            .count()
    }

    /// Whether a function of the host has not run.
    pub fn has_host_call(&self) -> bool {
        let mut queued = self.streams.iter().flat_map(|stream| &stream.queue);
        queued.any(|operation| matches!(operation.work, Work::Host(_)))
    }

    /// Whether an operation that has not run was given an address of these bytes.
    pub fn is_awaited(&self, base: u64, len: u64) -> bool {
        let mut queued = self.streams.iter().flat_map(|stream| &stream.queue);
        queued.any(|operation| {
            let mut addresses = operation.work.addresses().into_iter();
            addresses.any(|address| address.wrapping_sub(base) < len)
        })
    }

    /// An operation that has not run, that was given an address of `block`, and that is not ordered after the operation
    /// `sequence` of `stream`, nor that one after it: what went wrong there may be for want of order.
    pub fn unordered(
        &self,
        stream: usize,
        sequence: u32,
        clock: &Clock,
        block: &Block,
    ) -> Option<String> {
        let others = self.streams.iter().enumerate();
        let queued =
            others.flat_map(|(number, other)| other.queue.iter().map(move |o| (number, o)));
        let unordered = queued.filter(|(other, operation)| {
            let mut addresses = operation.work.addresses().into_iter();
            *other != stream
                && operation.clock.get(stream) < sequence
                && clock.get(*other) < operation.sequence
                && addresses.any(|address| address.wrapping_sub(block.base) < block.len)
        });
        // A use of the memory says more than its allocation.
        let (other, found) =
            unordered.min_by_key(|(_, found)| matches!(found.work, Work::Allocate(_)))?;
        let name = match found.work.what() {
            What::Kernel(name) => format!("the kernel {name}"),
            What::Copy => "a copy".to_owned(),
            What::Set => "a filling".to_owned(),
            What::Allocation => "the allocation".to_owned(),
            What::Free => "the free".to_owned(),
            What::Custom(name) => name.to_string(),
        };
        Some(format!(
            "{name} (operation {} of {}) has not run, uses {block} too, and is not ordered before or after it",
            found.sequence,
            self.name(other)
        ))
    }

    /// What an access is called in a report: who did what to which bytes.
    pub fn describe(&self, access: &Access) -> String {
        let Access {
            stream,
            sequence,
            writes,
            range,
            what,
        } = access;
        let place = format!("operation {sequence} of {}", self.name(*stream));
        let verb = if *writes { "writes" } else { "reads" };
        let bytes = format!("bytes {} to {}", range.start, range.end);
        match what {
            What::Kernel(name) => format!("the kernel {name} ({place}) {verb} {bytes}"),
            What::Copy => format!("a copy ({place}) {verb} {bytes}"),
            What::Set => format!("a filling ({place}) {verb} {bytes}"),
            What::Allocation => format!("{place} allocates it"),
            What::Free => format!("{place} frees it"),
            What::Custom(name) => format!("{name} ({place}) {verb} {bytes}"),
        }
    }

    /// Keeps an access of a block, unless it conflicts with an earlier one: then the sentence says so. Of an operation
    /// that has not run yet it is only announced.
    ///
    /// # Errors
    /// The sentence.
    pub fn access(
        &mut self,
        access: Access,
        id: u64,
        clock: &Clock,
        has_run: bool,
    ) -> std::result::Result<(), String> {
        let history = self.histories.entry(id).or_default();
        let Some(earlier) = history.conflict(&access, clock) else {
            match has_run {
                true => history.add(access, clock),
                false => history.announce(access, clock),
            }
            return Ok(());
        };
        let earlier = earlier.clone();
        Err(format!(
            "{}, and {}: nothing orders the two, so a wait for an event is missing.",
            self.describe(&earlier),
            self.describe(&access)
        ))
    }
}
