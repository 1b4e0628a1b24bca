//! Runs kernels on the CPU, thread by thread, and checks what a card does not.
//!
//! **Every access is checked**: bounds, alignment, and whether the bytes were ever written. **Races in shared memory
//! are found from the order that barriers give**, not from the order in which threads happened to run; those in global
//! memory, also between blocks, where [`Checks::Races`] asks for it. **A finding ends the launch**, and names the
//! kernel, the line of its source, the block and the thread; of a race it names both accesses.
//!
//! Threads of a block run one after another in one thread of the host, in an order that the launch's seed decides. They
//! change where they wait for each other, and in loops that go round for long, so that a thread which waits for another
//! one in a loop gets what it waits for. Blocks run one after another too.
//!
//! What it cannot find, or sees differently from a card:
//!
//! - Races in global memory between threads of one launch, and fences that are missing there, without
//!   [`Checks::Races`].
//! - With it: a strong read (volatile, atomic) that a plain write of another thread follows; and a release that a plain
//!   store to the same place has ended.
//! - Bytes of local memory that were never written: they hold `0xff`.
//! - A lock in shared memory, taken by atomics, orders nothing here: what it guards is reported as a race.
//! - `activemask` names only the lane that asks. That is always a possible answer, and seldom that of a card.
//! - Approximate functions are as exact as the C library's, and products of `mma.sync` are rounded once.

mod abi;
mod access;
mod barrier;
mod copies;
mod engine;
mod fences;
mod fiber;
mod finding;
mod global;
mod kernel;
mod limits;
mod mma;
mod order;
mod print;
mod race;
mod shadow;
mod stuck;
mod warp;
mod worker;

pub use crate::ptx::LoadError;
pub use engine::run;
pub use finding::{Finding, FindingKind};
pub use kernel::{Checks, GlobalVar, Kernel, Module, Param};

/// One launch of a kernel.
#[derive(Debug, Clone)]
pub struct Launch<'a> {
    /// Blocks of the grid.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: usize,
    /// The arguments, packed as PTX lays them out ([`Kernel::params`]).
    pub params: &'a [u8],
    /// Decides the order of blocks and threads; 0 is the order of their numbers.
    pub seed: u64,
}

/// A range of device memory.
#[derive(Debug, Clone, Copy)]
pub struct Region {
    /// What tells it from all others, as long as the device lives.
    pub id: u64,
    /// Its first address on the device.
    pub base: u64,
    /// Its length in bytes.
    pub len: u64,
    /// Whether kernels may write it.
    pub writable: bool,
    /// One byte for each byte of memory: 1 if it was written, else 0. Null if all of it counts as written.
    pub valid: *mut u8,
    /// Where `base` lies in this process.
    pub host: *mut u8,
}

/// What device memory looks like to running code.
///
/// A region that was found stays valid, at the same place, until the launch that asked has ended.
pub trait Memory: Sync {
    /// The allocation that holds `addr`.
    fn find(&self, addr: u64) -> Option<Region>;
    /// What is to say about an address that no allocation holds, or an access that leaves one: "8 bytes behind the end
    /// of the allocation of 4000 bytes".
    fn explain(&self, addr: u64) -> String;
}

/// What a launch read and wrote of a region, as the smallest range of bytes around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Touched {
    /// The region's `id`.
    pub region: u64,
    /// Bytes of the region, counted from its base.
    pub read: Option<std::ops::Range<u64>>,
    /// The same for writes; atomics count as both.
    pub written: Option<std::ops::Range<u64>>,
}
