//! The operations that streams hold, and what they do when they run.

use std::ops::Range;
use std::sync::Arc;

use super::clock::Clock;
use super::code::Code;
use super::history::What;
use super::memory::{Block, Life, Owner, Space};
use super::modules::Function;
use crate::exec::{self, FindingKind, Memory, Region, Touched};

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
/// It runs as one operation of a stream, when all that was enqueued before it has run, and when it is ready.
pub trait Custom: Send {
    /// What it is called in a report.
    fn name(&self) -> Arc<str>;

    /// Whether it can run now. It may look at other processes; it is asked again and again.
    fn ready(&self) -> bool {
        true
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

/// A copy.
pub struct Copy {
    /// Where the bytes come from.
    pub from: Place,
    /// Where they go to.
    pub to: Place,
    /// Bytes.
    pub len: u64,
}

/// One side of a copy.
pub enum Place {
    /// Device memory or pinned memory.
    Known(u64),
    /// Memory of the host that is not pinned. The caller waits, so that it is there when the copy runs.
    Pageable(u64),
    /// A copy of the host's bytes that was made at the call.
    Staged(Box<[u8]>),
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

/// The memory that an operation of one GPU may touch.
pub struct View<'a> {
    /// All memory.
    pub space: &'a Space,
    /// The GPU.
    pub gpu: usize,
    /// GPUs whose `cuMemAlloc` memory it may touch, a bit for each.
    pub peers: u64,
    /// Pools whose memory it may touch, a bit for each.
    pub pools: u64,
}

impl View<'_> {
    fn reaches(&self, block: &Block) -> bool {
        match (block.gpu, block.owner) {
            (None, _) => true,
            (Some(gpu), _) if gpu == self.gpu => true,
            (Some(_), Owner::Pool(pool)) => self.pools >> pool & 1 == 1,
            (Some(gpu), _) => self.peers >> gpu & 1 == 1,
        }
    }
}

impl Memory for View<'_> {
    fn find(&self, addr: u64) -> Option<Region> {
        let block = self.space.locate(addr)?;
        let alive = !matches!(block.life, Life::Freed(_));
        if !alive || !self.reaches(&block) {
            return None;
        }
        Some(Region {
            id: block.id,
            base: block.base,
            len: block.len,
            writable: block.writable,
            valid: self.space.validity(&block),
            host: block.base as *mut u8,
        })
    }

    fn explain(&self, addr: u64) -> String {
        let text = self.space.explain(addr);
        match self.space.locate(addr) {
            Some(block) if !self.reaches(&block) => {
                format!("{text}, to which GPU {} has no peer access", self.gpu)
            }
            _ => text,
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
            Work::Custom(custom) => custom.run(view),
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
            _ => Vec::new(),
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

    /// The parameters that could be pointers: all of 8 bytes.
    pub fn pointers(&self) -> impl Iterator<Item = u64> + '_ {
        let pointers = self
            .function
            .kernel
            .params
            .iter()
            .filter(|param| param.size == 8);
        pointers.filter_map(|param| {
            let bytes = self.params.get(param.offset..param.offset + 8)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        })
    }
}

/// The region that holds `len` bytes from `addr` on, and where they begin in it.
fn span(view: &View<'_>, addr: u64, len: u64, doing: &str) -> Result<(Region, u64), Failure> {
    let region = view
        .find(addr)
        .filter(|region| len <= region.base + region.len - addr);
    let Some(region) = region else {
        let last = addr + len - 1;
        let wrong = if view.find(addr).is_none() {
            addr
        } else {
            last
        };
        return Err(Failure::address(format!(
            "A {doing} {len} bytes at {addr:#x} touches the address {wrong:#x}, {}.",
            view.explain(wrong)
        )));
    };
    Ok((region, addr - region.base))
}

/// Where it stands whether the bytes of a region are valid, from `offset` on; `None` if all are.
fn validity(region: &Region, offset: u64) -> Option<*mut u8> {
    let has = !region.valid.is_null();
    // SAFETY: the offset lies in the region, and `valid` has a byte for each byte of it.
    has.then(|| unsafe { region.valid.add(offset as usize) })
}

fn reads(region: u64, range: Range<u64>) -> Touched {
    Touched {
        region,
        read: Some(range),
        written: None,
    }
}

fn writes(region: u64, range: Range<u64>) -> Touched {
    Touched {
        region,
        read: None,
        written: Some(range),
    }
}

impl Copy {
    fn run(&self, view: &View<'_>) -> Result<Vec<Touched>, Failure> {
        // Copies between GPUs need no peer access: the driver can go through the host.
        let view = &View {
            peers: u64::MAX,
            pools: u64::MAX,
            ..*view
        };
        let len = self.len;
        let mut touched = Vec::with_capacity(2);
        let (from, valid_from) = match &self.from {
            Place::Known(addr) => {
                let (region, offset) = span(view, *addr, len, "copy that reads")?;
                touched.push(reads(region.id, offset..offset + len));
                (*addr as *const u8, validity(&region, offset))
            }
            Place::Pageable(addr) => (*addr as *const u8, None),
            Place::Staged(bytes) => (bytes.as_ptr(), None),
        };
        let (to, valid_to) = match &self.to {
            Place::Known(addr) => {
                let (region, offset) = span(view, *addr, len, "copy that writes")?;
                touched.push(writes(region.id, offset..offset + len));
                (*addr as *mut u8, validity(&region, offset))
            }
            Place::Pageable(addr) => (*addr as *mut u8, None),
            Place::Staged(_) => return Ok(Vec::new()),
        };
        let len = len as usize;
        if let (Some(valid), None) = (valid_from, valid_to) {
            // SAFETY: `len` bytes were found in the region.
            let valid = unsafe { std::slice::from_raw_parts(valid, len) };
            if let Some(first) = valid.iter().position(|valid| *valid == 0) {
                let missing = valid.iter().filter(|valid| **valid == 0).count();
                let addr = from as u64 + first as u64;
                return Err(Failure {
                    code: Code::LAUNCH_FAILED,
                    message: format!(
                        "A copy of {len} bytes to the host reads {missing} bytes that nothing has written; the first \
                         one is {}.",
                        view.space.explain(addr)
                    ),
                });
            }
        }
        // SAFETY: both sides were found to be regions of at least `len` bytes, or are the caller's memory, for which
        // the driver's interface asks the same; `copy` allows them to overlap.
        unsafe {
            std::ptr::copy(from, to, len);
            match (valid_from, valid_to) {
                (Some(from), Some(to)) => std::ptr::copy(from, to, len),
                (None, Some(to)) => std::ptr::write_bytes(to, 1, len),
                _ => {}
            }
        }
        Ok(touched)
    }
}

fn set(view: &View<'_>, to: u64, len: u64, value: &[u8]) -> Result<Vec<Touched>, Failure> {
    let (region, offset) = span(view, to, len, "filling that writes")?;
    // SAFETY: the bytes were found in the region, and `valid` has a byte for each of them.
    unsafe {
        let bytes = std::slice::from_raw_parts_mut(region.host.add(offset as usize), len as usize);
        match value {
            [one] => bytes.fill(*one),
            _ => bytes
                .chunks_exact_mut(value.len())
                .for_each(|chunk| chunk.copy_from_slice(value)),
        }
        if let Some(valid) = validity(&region, offset) {
            std::ptr::write_bytes(valid, 1, len as usize);
        }
    }
    Ok(vec![writes(region.id, offset..offset + len)])
}
