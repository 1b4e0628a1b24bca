//! The memory of the GPUs and the pinned memory of the host: where it lies, who may touch it, and what is at an address.
//!
//! Each GPU has a range of addresses that nothing else uses. An allocation gets pages of its own with a page behind it
//! that nobody can touch, and its addresses are never given out again. Its bytes start as `0xff`; behind them stands one
//! more byte for each, which says whether the byte was ever written.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Mutex, PoisonError, RwLock};

use super::code::{Code, Result};
use super::pages;

/// Bytes of addresses of one GPU.
const SPAN: u64 = 1 << 40;

/// What becomes of an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It may be used.
    Live,
    /// Its free was enqueued on this stream and has not run.
    FreeQueued(usize),
    /// Its free has run; on this stream, if the free was ordered by one.
    Freed(Option<usize>),
}

/// Who asked for an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// `cuMemAlloc`.
    Plain,
    /// A pool, by its number.
    Pool(usize),
    /// A variable of this module.
    Module(u64),
    /// The program, as pinned memory of the host.
    Host,
}

/// A range of memory that was given out.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// The number of the block in the whole process.
    pub id: u64,
    /// The first address, of the device and of this process alike.
    pub base: u64,
    /// Bytes.
    pub len: u64,
    /// The GPU; `None` for pinned memory of the host.
    pub gpu: Option<usize>,
    /// Who asked for it.
    pub owner: Owner,
    /// What has become of it.
    pub life: Life,
    /// Whether kernels may write it.
    pub writable: bool,
    /// Whether it may be alive when the process ends.
    pub keep: bool,
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = (self.id & 0xffff_ffff) + 1;
        match (self.gpu, self.owner) {
            (Some(gpu), Owner::Module(_)) => {
                write!(f, "a module's variable of {} bytes on GPU {gpu}", self.len)
            }
            (Some(gpu), _) => write!(
                f,
                "the allocation of {} bytes made as number {number} on GPU {gpu}",
                self.len
            ),
            (None, _) => write!(
                f,
                "the pinned buffer of {} bytes made as number {number}",
                self.len
            ),
        }
    }
}

/// What the numbers of pinned buffers begin with; those of device memory begin with the GPU's number.
const PINNED: u64 = 0xff << 32;

#[derive(Clone, Copy, Debug)]
struct Allocation {
    base: u64,
    len: u64,
    owner: Owner,
    life: Life,
    writable: bool,
    keep: bool,
}

#[derive(Debug)]
struct Gpu {
    start: u64,
    /// In the order of their addresses, which is the order in which they were made.
    allocations: RwLock<Vec<Allocation>>,
    spare: Mutex<Spare>,
}

/// Pages of freed blocks, for blocks of the same length: to move pages is much quicker than to get new ones.
#[derive(Debug, Default)]
struct Spare {
    bytes: u64,
    /// The freed blocks by the bytes of their pages.
    blocks: HashMap<u64, Vec<u64>>,
}

/// From how many bytes on it is quicker to move pages than to get new ones.
const WORTH: u64 = 64 << 10;

/// How many bytes of freed blocks a GPU keeps.
const SPARE: u64 = 256 << 20;

/// Pinned memory of the host.
#[derive(Debug)]
struct Pinned {
    number: u64,
    len: u64,
    /// The memory, if it was made here; `None` if it was registered.
    memory: Option<pages::Pages>,
}

#[derive(Debug, Default)]
struct Pins {
    made: u64,
    blocks: BTreeMap<u64, Pinned>,
}

/// All memory that the simulator knows of.
#[derive(Debug)]
pub struct Space {
    gpus: Vec<Gpu>,
    pins: RwLock<Pins>,
}

impl Space {
    /// Addresses for so many GPUs.
    ///
    /// # Errors
    /// A sentence: the process may not have so many addresses.
    pub fn new(gpus: usize) -> std::result::Result<Space, String> {
        let gpus = (0..gpus).map(|_| {
            let start = pages::reserve(SPAN);
            start.map(|start| Gpu {
                start,
                allocations: RwLock::default(),
                spare: Mutex::default(),
            })
        });
        match gpus.collect() {
            Ok(gpus) => Ok(Space {
                gpus,
                pins: RwLock::default(),
            }),
            Err(error) => Err(format!(
                "The addresses for the simulated memory cannot be had: {error}."
            )),
        }
    }

    /// Makes an allocation: its bytes are `0xff` and not valid.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`: the machine that simulates has no more memory, or the GPU no more addresses.
    pub fn allocate(&self, gpu: usize, len: u64, owner: Owner) -> Result<Block> {
        let Gpu {
            start,
            allocations,
            spare,
        } = &self.gpus[gpu];
        let mut allocations = allocations.write().unwrap_or_else(PoisonError::into_inner);
        let number = allocations.len() as u64;
        let page = match allocations.last() {
            Some(last) => {
                last.base - last.base % pages::SIZE + 2 * pages::span(last.len) + pages::SIZE
            }
            None => *start,
        };
        // The start moves within the page, as a multiple of 256 bytes, which is all that the driver promises. Were all
        // starts alike, then the caches of the processor would be used badly.
        let base = page + (number * 1792) % pages::SIZE;
        if len > SPAN || page + 2 * pages::span(len) + pages::SIZE > start + SPAN {
            return Err(Code::OUT_OF_MEMORY);
        }
        let mut spare = spare.lock().unwrap_or_else(PoisonError::into_inner);
        let old = spare.blocks.get_mut(&pages::span(len)).and_then(Vec::pop);
        let opened = match old {
            Some(old) => {
                spare.bytes -= pages::span(len);
                let moved = pages::take_over(old, base, len);
                moved.inspect(|()| pages::fill(base + pages::span(len), len, 0))
            }
            None => pages::open(base, len),
        };
        if opened.is_err() {
            pages::close(base, len);
            return Err(Code::OUT_OF_MEMORY);
        }
        pages::fill(base, len, 0xff);
        let allocation = Allocation {
            base,
            len,
            owner,
            life: Life::Live,
            writable: true,
            keep: false,
        };
        allocations.push(allocation);
        Ok(block(gpu, number as usize, &allocation))
    }

    /// Says what has become of the allocation `id`.
    pub fn set_life(&self, id: u64, life: Life) {
        self.change(id, |allocation| allocation.life = life);
    }

    /// Says that the allocation `id` may be alive when the process ends.
    pub fn keep(&self, id: u64) {
        self.change(id, |allocation| allocation.keep = true);
    }

    /// Says that kernels may not write the allocation `id`.
    pub fn protect(&self, id: u64) {
        self.change(id, |allocation| allocation.writable = false);
    }

    fn change(&self, id: u64, change: impl FnOnce(&mut Allocation)) {
        if let Some(gpu) = self.gpus.get((id >> 32) as usize) {
            let mut allocations = gpu
                .allocations
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            if let Some(allocation) = allocations.get_mut((id & 0xffff_ffff) as usize) {
                change(allocation);
            }
        }
    }

    /// Takes the pages of an allocation away, for a later one or for the system. Nobody may use it any more, and nobody
    /// can.
    pub fn give_back(&self, block: &Block) {
        let Some(gpu) = block.gpu else {
            return;
        };
        let (base, len) = (block.base, block.len);
        let mut spare = self.gpus[gpu]
            .spare
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let fits = spare.bytes + pages::span(len) <= SPARE && pages::span(len) >= WORTH;
        if fits && pages::shut(base, len).is_ok() {
            spare.bytes += pages::span(len);
            spare.blocks.entry(pages::span(len)).or_default().push(base);
        } else {
            pages::close(base, len);
        }
    }

    /// Whether `addr` is an address of some GPU, allocated or not: no number of another kind looks like one.
    pub fn gpu_of(&self, addr: u64) -> Option<usize> {
        let mut gpus = self.gpus.iter();
        gpus.position(|gpu| addr.wrapping_sub(gpu.start) < SPAN)
    }

    /// The block that holds `addr`, or lies before it if the address is within no block; freed blocks too.
    fn at_or_before(&self, addr: u64) -> Option<Block> {
        let gpu = self.gpu_of(addr)?;
        let allocations = self.gpus[gpu]
            .allocations
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let index = allocations
            .partition_point(|a| a.base <= addr)
            .checked_sub(1)?;
        Some(block(gpu, index, &allocations[index]))
    }

    /// The block that holds `addr`, on a GPU or pinned, freed or not.
    pub fn locate(&self, addr: u64) -> Option<Block> {
        if self.gpu_of(addr).is_some() {
            return self.at_or_before(addr).filter(|b| addr - b.base < b.len);
        }
        let pins = self.pins.read().unwrap_or_else(PoisonError::into_inner);
        let (base, pinned) = pins.blocks.range(..=addr).next_back()?;
        (addr - base < pinned.len).then(|| host_block(*base, pinned))
    }

    /// All blocks of a GPU that were not freed.
    pub fn alive(&self, gpu: usize) -> Vec<Block> {
        let allocations = self.gpus[gpu]
            .allocations
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let all = allocations.iter().enumerate();
        let alive = all.filter(|(_, a)| !matches!(a.life, Life::Freed(_)));
        alive.map(|(index, a)| block(gpu, index, a)).collect()
    }

    /// All pinned buffers.
    pub fn pinned(&self) -> Vec<Block> {
        let pins = self.pins.read().unwrap_or_else(PoisonError::into_inner);
        pins.blocks
            .iter()
            .map(|(base, pinned)| host_block(*base, pinned))
            .collect()
    }

    /// Makes a pinned buffer, or pins the memory at `base`, which the caller owns.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`, or `HOST_MEMORY_ALREADY_REGISTERED`.
    pub fn pin(&self, base: Option<u64>, len: u64) -> Result<Block> {
        let mut pins = self.pins.write().unwrap_or_else(PoisonError::into_inner);
        let (base, memory) = match base {
            Some(base) => {
                let before = pins.blocks.range(..base + len).next_back();
                if before.is_some_and(|(other, pinned)| other + pinned.len > base) {
                    return Err(Code::HOST_MEMORY_ALREADY_REGISTERED);
                }
                (base, None)
            }
            None => {
                let memory = pages::Pages::new(len, 0xff).ok_or(Code::OUT_OF_MEMORY)?;
                (memory.start(), Some(memory))
            }
        };
        let pinned = Pinned {
            number: pins.made,
            len,
            memory,
        };
        pins.made += 1;
        let block = host_block(base, &pinned);
        pins.blocks.insert(base, pinned);
        Ok(block)
    }

    /// Ends a pinned buffer that was made here (`registered` is false), or a registration.
    ///
    /// # Errors
    /// There is none of this kind at `base`.
    pub fn unpin(&self, base: u64, registered: bool) -> Result<()> {
        let mut pins = self.pins.write().unwrap_or_else(PoisonError::into_inner);
        let there = pins.blocks.get(&base).map(|pinned| pinned.memory.is_none());
        match (there, registered) {
            (Some(is), asked) if is == asked => {
                pins.blocks.remove(&base);
                Ok(())
            }
            (_, true) => Err(Code::HOST_MEMORY_NOT_REGISTERED),
            (_, false) => Err(Code::INVALID_VALUE),
        }
    }

    /// Where the bytes stand that say whether the bytes of `block` are valid. Null for pinned memory: what the host
    /// writes is not seen, and so all of it counts as valid.
    pub fn validity(&self, block: &Block) -> *mut u8 {
        match block.gpu {
            Some(_) => (block.base + pages::span(block.len)) as *mut u8,
            None => std::ptr::null_mut(),
        }
    }

    /// What is at an address, as the end of a sentence: "in an allocation that ...".
    pub fn explain(&self, addr: u64) -> String {
        if let Some(block) = self.locate(addr) {
            let offset = addr - block.base;
            return match block.life {
                Life::Live => format!("at byte {offset} of {block}"),
                Life::FreeQueued(stream) => {
                    format!("in {block}, whose free was enqueued on stream {stream}")
                }
                Life::Freed(Some(stream)) => {
                    format!("in {block}, which was freed on stream {stream}")
                }
                Life::Freed(None) => format!("in {block}, which was freed"),
            };
        }
        let nearest = self.at_or_before(addr);
        match nearest.map(|block| (addr - block.base - block.len, block)) {
            Some((behind, block)) if behind < pages::SIZE => {
                format!("{behind} bytes behind the end of {block}")
            }
            _ => "in no allocation".to_owned(),
        }
    }
}

fn block(gpu: usize, index: usize, allocation: &Allocation) -> Block {
    Block {
        id: (gpu as u64) << 32 | index as u64,
        base: allocation.base,
        len: allocation.len,
        gpu: Some(gpu),
        owner: allocation.owner,
        life: allocation.life,
        writable: allocation.writable,
        keep: allocation.keep,
    }
}

fn host_block(base: u64, pinned: &Pinned) -> Block {
    Block {
        id: PINNED | pinned.number,
        base,
        len: pinned.len,
        gpu: None,
        owner: Owner::Host,
        life: Life::Live,
        writable: true,
        keep: false,
    }
}
