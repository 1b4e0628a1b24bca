//! What the engine shares with generated code: the structures of `ptx/device/base.h`, field by field.

use std::ffi::c_void;

/// The region that an access site met last, and what it touched there.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Site {
    pub base: u64,
    /// The last offset at which an access of this site still fits.
    pub limit: u64,
    pub host: *mut u8,
    pub valid: *mut u8,
    pub low: u64,
    pub high: u64,
    pub region: u64,
    /// `READ` and `WRITE`; 0 while the site has met no region.
    pub kind: u64,
    /// Two records for each byte, of who wrote and who read it in this launch; null where races are not looked for.
    pub cells: *mut u64,
}

impl Site {
    /// A site that has met nothing: no address fits, since the one that would is odd and of the host's kernel.
    pub const EMPTY: Site = Site {
        base: 0xdead_beef_dead_bee1,
        limit: 0,
        host: std::ptr::null_mut(),
        valid: std::ptr::null_mut(),
        low: u64::MAX,
        high: 0,
        region: 0,
        kind: 0,
        cells: std::ptr::null_mut(),
    };
}

/// The shared memory of the block that runs, and the clocks of its accesses.
#[repr(C)]
#[derive(Debug)]
pub struct Shared {
    pub memory: *mut u8,
    /// For each byte, who wrote it last: clock, thread, and whether by a strong access.
    pub wrote: *mut u32,
    /// For each byte, who read it since.
    pub read: *mut u32,
    /// For each byte, the site of the last write, and that of a read since.
    pub wrote_at: *mut u32,
    pub read_at: *mut u32,
    /// For each byte that several lanes of a warp have read, which.
    pub lanes: *mut u32,
    pub len: u32,
    /// Records from before this one come before everything that runs now: the last barrier of the whole block.
    pub ordered: u32,
    /// Records from before this one are of an earlier block.
    pub born: u32,
    /// How many barriers of a part of the block there were since the last whole one.
    pub parts: u32,
    /// Records of global memory from before this one are of an earlier launch.
    pub launch_born: u64,
    /// Those from before this one are of an earlier block.
    pub block_born: u64,
    /// Those from before this one, and of this block, come before its last whole barrier.
    pub block_ordered: u64,
}

/// The engine's functions.
#[repr(C)]
#[derive(Debug)]
pub struct Api {
    pub miss: unsafe extern "C" fn(*mut Ctx, u32, u64, u32, u32) -> u64,
    pub fail: unsafe extern "C" fn(*mut Ctx, u32, u32, u64, u32),
    pub shared: unsafe extern "C" fn(*mut Ctx, u32, u32, u32, u32),
    pub barrier: unsafe extern "C" fn(*mut Ctx, u32, u32, u32, u32),
    pub barrier_reduce: unsafe extern "C" fn(*mut Ctx, u32, u32, u32, u32, u32) -> u32,
    pub warp: unsafe extern "C" fn(*mut Ctx, u32, u32, u32, *mut c_void),
    pub print: unsafe extern "C" fn(*mut Ctx, u32, u64, u64) -> u32,
    pub tired: unsafe extern "C" fn(*mut Ctx, u32),
    pub global: unsafe extern "C" fn(*mut Ctx, u32, u64, u32, u32),
    pub fence: unsafe extern "C" fn(*mut Ctx, u32, u32),
    pub copy: unsafe extern "C" fn(*mut Ctx, u32, u32, u32, *const u8),
    pub copied: unsafe extern "C" fn(*mut Ctx, u32, u32),
}

/// A thread, as generated code sees it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Ctx {
    pub api: *const Api,
    pub block: *mut Shared,
    pub sites: *mut Site,
    pub params: *const u8,
    pub vars: *const u64,
    pub places: *const u32,
    pub local: *mut u8,
    pub local_len: u32,
    pub local_top: u32,
    /// The record that this thread leaves in shared memory: the clock of its last synchronisation, and its number.
    pub now: u32,
    pub lane: u32,
    pub warp: u32,
    pub thread: u32,
    pub tid: [u32; 3],
    pub ntid: [u32; 3],
    pub ctaid: [u32; 3],
    pub nctaid: [u32; 3],
    pub params_len: u32,
    pub dynamic_shared: u32,
    pub total_shared: u32,
    /// Jumps backwards until the thread gives way to others, and how often it has.
    pub fuel: u32,
    pub rounds: u32,
    pub unused: u32,
    pub grid: u64,
    /// The address below which functions may not use the thread's stack.
    pub stack_end: u64,
    /// The record that this thread leaves in global memory.
    pub stamp: u64,
    pub owner: *mut c_void,
}

/// A kernel's C function.
pub type Code = unsafe extern "C" fn(*mut Ctx);

pub const READ: u32 = 1;
pub const WRITE: u32 = 2;
pub const STRONG: u32 = 4;

/// The record of a byte of shared memory that `cp.async` has yet to write: it is later than all clocks, and its second
/// lowest bit is in no thread's record.
pub const PENDING: u32 = u32::MAX;

/// The addresses of functions: this, plus the number of the function.
pub const CODE_WINDOW: u64 = 0x4600_0000_0000_0000;
/// The windows of the generic address space that are not global memory.
pub const SHARED_WINDOW: u64 = 0x5300_0000_0000_0000;
pub const LOCAL_WINDOW: u64 = 0x5400_0000_0000_0000;

/// How a record is made: the clock, the thread, two bits.
pub const fn record(clock: u32, thread: u32) -> u32 {
    clock << 12 | thread << 2
}
