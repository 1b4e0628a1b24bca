//! The operations that streams hold, and what they do when they run.

use std::sync::Arc;

use super::clock::Clock;
use super::code::Code;
use super::history::What;
use super::memory::{Block, Life};
use super::modules::Function;
use super::transfer::{Copy, Place, set};
use super::view::View;
use crate::exec::{self, FindingKind, Memory, Touched};

/// Work that has its place in a stream.
pub struct Operation {
    /// Its place in the stream, counted from 1.
    pub sequence: u32,
    /// What is ordered before it.
    pub clock: Clock,
    /// Streams, and how many of their operations must have run before it.
    pub needs: Vec<(usize, u32)>,
    /// What is to be done.
    pub work: Work,
}

/// What an operation does.
pub enum Work {
    /// Runs a kernel.
    Launch(Launch),
    /// Copies bytes.
    Copy(Copy),
    /// Fills memory with the `width` bytes of `value`, again and again.
    Set {
        /// The first address.
        to: u64,
        /// Bytes.
        len: u64,
        /// The value's bytes.
        value: [u8; 4],
        /// How many of them count: 1, 2 or 4.
        width: u8,
    },
    /// The place in the stream's order at which a block begins to be.
    Allocate(Block),
    /// Frees a block.
    Free(Block),
    /// Ends an event, by its number.
    Record(u64),
    /// Nothing: its needs and its clock are what it is for.
    Wait,
    /// Calls the host.
    Host(HostCall),
    /// Work of another library that stands in for one of the vendor's.
    Custom(Box<dyn Custom>),
}

/// Work of another library.
///
/// It runs as one operation of a stream, when all that was enqueued before it has run, and when it is ready. It may touch
/// the memory of all GPUs; what it says that it has touched is judged as its stream's use. An operation of several
/// ranks is one of these for each rank, and each answers for its own rank's memory.
///
/// All but [`Custom::run`], also its drop, happens under the simulator's lock, and must not call the simulator. What
/// makes another operation ready ends with [`super::machine::Machine::notify`].
pub trait Custom: Send {
    /// What it is called in a report.
    fn name(&self) -> Arc<str>;

    /// Whether it can run now. It may look at other processes; it is asked again and again.
    fn ready(&self) -> bool {
        true
    }

    /// Whether what it waits for is up to others, who may be late: then a long wait is not yet a deadlock.
    fn waits_for_others(&self) -> bool {
        false
    }

    /// The addresses that it has been given: none of them may be in freed memory.
    fn addresses(&self) -> Vec<u64> {
        Vec::new()
    }

    /// Does the work.
    ///
    /// # Errors
    /// What is wrong; the context then fails.
    fn run(&mut self, memory: &dyn Memory) -> Result<Vec<Touched>, Failure>;
}

/// A launch of a kernel.
pub struct Launch {
    /// The kernel.
    pub function: Arc<Function>,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: usize,
    /// The block of parameters.
    pub params: Box<[u8]>,
    /// The seed of the order of threads.
    pub seed: u64,
}

/// A function of the host.
pub struct HostCall {
    /// The function.
    pub function: unsafe extern "C" fn(*mut std::ffi::c_void),
    /// Its argument, as a number.
    pub argument: usize,
}

/// What went wrong in an operation.
#[derive(Debug)]
pub struct Failure {
    /// What the context returns from now on.
    pub code: Code,
    /// What the report says.
    pub message: String,
}

impl Failure {
    /// An access where there is no memory.
    pub fn address(message: String) -> Failure {
        Failure {
            code: Code::ILLEGAL_ADDRESS,
            message,
        }
    }
}

impl Work {
    /// What it is called where accesses are kept.
    pub fn what(&self) -> What {
        match self {
            Work::Launch(launch) => What::Kernel(launch.function.name.clone()),
            Work::Copy(_) => What::Copy,
            Work::Set { .. } => What::Set,
            Work::Allocate(_) => What::Allocation,
            Work::Free(_) => What::Free,
            Work::Custom(custom) => What::Custom(custom.name()),
            Work::Record(_) | Work::Wait | Work::Host(_) => What::Custom("wait".into()),
        }
    }

    /// Whether it is so short that it runs while others wait for it.
    pub fn is_short(&self) -> bool {
        matches!(
            self,
            Work::Allocate(_) | Work::Free(_) | Work::Record(_) | Work::Wait
        )
    }

    /// Does the work, and says what it has touched.
    ///
    /// # Errors
    /// What was found wrong.
    pub fn run(&mut self, view: &View<'_>) -> Result<Vec<Touched>, Failure> {
        match self {
            Work::Launch(launch) => launch.run(view),
            Work::Copy(copy) => copy.run(view),
            Work::Set {
                to,
                len,
                value,
                width,
            } => set(view, *to, *len, &value[..*width as usize]),
            Work::Host(HostCall { function, argument }) => {
                // SAFETY: the program gave both to `cuLaunchHostFunc` to be called so.
                unsafe { function(*argument as *mut std::ffi::c_void) };
                Ok(Vec::new())
            }
            // It stands in for a library that arranges for access by itself.
            Work::Custom(custom) => custom.run(&View {
                peers: u64::MAX,
                pools: u64::MAX,
                ..*view
            }),
            // That memory begins and ceases to be was judged when it was enqueued.
            Work::Allocate(_) | Work::Free(_) | Work::Record(_) | Work::Wait => Ok(Vec::new()),
        }
    }

    /// The addresses that the work has been given.
    pub fn addresses(&self) -> Vec<u64> {
        let known = |place: &Place| match place {
            Place::Known(addr) => Some(*addr),
            _ => None,
        };
        match self {
            Work::Launch(launch) => launch.pointers().collect(),
            Work::Copy(copy) => [&copy.from, &copy.to]
                .into_iter()
                .filter_map(known)
                .collect(),
            Work::Set { to, .. } => vec![*to],
            Work::Allocate(block) | Work::Free(block) => vec![block.base],
            Work::Custom(custom) => custom.addresses(),
            Work::Record(_) | Work::Wait | Work::Host(_) => Vec::new(),
        }
    }
}

impl Launch {
    fn run(&self, view: &View<'_>) -> Result<Vec<Touched>, Failure> {
        for pointer in self.pointers() {
            let block = view.space.locate(pointer);
            if block.is_some_and(|block| matches!(block.life, Life::Freed(_))) {
                return Err(Failure::address(format!(
                    "The kernel {} runs with the pointer {pointer:#x}, {}: use after free.",
                    self.function.name,
                    view.space.explain(pointer)
                )));
            }
        }
        let launch = exec::Launch {
            grid: self.grid,
            block: self.block,
            dynamic_shared: self.dynamic_shared,
            params: &self.params,
            seed: self.seed,
        };
        exec::run(&self.function.kernel, &launch, view).map_err(|finding| Failure {
            code: match finding.kind {
                FindingKind::OutOfBounds
                | FindingKind::ReadOnly
                | FindingKind::SharedOutOfBounds
                | FindingKind::LocalOutOfBounds => Code::ILLEGAL_ADDRESS,
                FindingKind::Misaligned => Code::MISALIGNED_ADDRESS,
                _ => Code::LAUNCH_FAILED,
            },
            message: finding.message,
        })
    }

    /// What could be pointers in the parameters: each 8 bytes at a multiple of 8, also within structures.
    pub fn pointers(&self) -> impl Iterator<Item = u64> + '_ {
        let params = self.function.kernel.params.iter();
        let wide = params.filter(|param| param.align == 8 || param.size == 8);
        wide.flat_map(|param| {
            let bytes = self.params.get(param.offset..param.offset + param.size);
            let words = bytes.unwrap_or_default().chunks_exact(8);
            words.filter_map(|word| Some(u64::from_le_bytes(word.try_into().ok()?)))
        })
    }
}
