//! What the driver was asked to do: so that a test can say that nothing waits for the card, and how often kernels are
//! launched. Only simulated cards count; on a real one such a test says that it is skipped.
#![allow(unsafe_code)]
#![allow(
    dead_code,
    reason = "each test program that includes this file uses its part"
)]

use std::ffi::{CStr, CString, c_char};

/// How often the host has asked for something, in the whole process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Waits for a stream, an event or a device, and in copies to memory that is not pinned.
    pub waits: u64,
    /// Questions whether a stream or an event is done.
    pub queries: u64,
    /// Copies from or to memory of the host that is not pinned.
    pub pageable: u64,
    /// Launches of kernels.
    pub launches: u64,
    /// Allocations of memory of the card.
    pub allocations: u64,
}

/// What the simulated device counts, by its numbers.
#[derive(Debug, Clone, Copy)]
pub enum Count {
    Waits = 0,
    Queries = 1,
    PageableCopies = 2,
    Launches = 3,
    Copies = 4,
    Allocations = 6,
    Pinned = 7,
    Modules = 8,
    LazyLoads = 9,
    StreamWaits = 10,
    Loads = 11,
    Unpinned = 12,
    Trims = 13,
    Splits = 14,
}

/// How often the program has done this on the simulated device; `None` on a real one.
pub fn counted(what: Count) -> Option<u64> {
    type Counter = extern "C" fn(u32) -> u64;
    let found = of_driver(c"phalanx_simulator_count")?;
    // SAFETY: the simulator's function has this type.
    let counter = unsafe { std::mem::transmute::<*mut libc::c_void, Counter>(found) };
    Some(counter(what as u32))
}

/// As [`counted`], of the calling thread.
pub fn counted_here(what: Count) -> Option<u64> {
    type Counter = extern "C" fn(u32) -> u64;
    let found = of_driver(c"phalanx_simulator_count_here")?;
    // SAFETY: the simulator's function has this type.
    let counter = unsafe { std::mem::transmute::<*mut libc::c_void, Counter>(found) };
    Some(counter(what as u32))
}

/// How often a kernel was launched in this process, by its name in the source; `None` on a real card.
pub fn launches(kernel: &str) -> Option<u64> {
    type Launches = unsafe extern "C" fn(*const c_char) -> u64;
    let found = of_driver(c"phalanx_simulator_launches")?;
    let name = CString::new(kernel).expect("no kernel has a zero in its name");
    // SAFETY: the simulator's function has this type, and the text ends with a zero.
    unsafe {
        Some(std::mem::transmute::<*mut libc::c_void, Launches>(found)(
            name.as_ptr(),
        ))
    }
}

/// The bytes that a program has of the memory pool of `cuda:ordinal`, by the calls until now; `None` on a real card,
/// where they also tell what has not been freed yet.
pub fn pool_use(ordinal: i32) -> Option<u64> {
    type Find = extern "C" fn(*mut usize, i32) -> u32;
    type Get = extern "C" fn(usize, u32, *mut u64) -> u32;
    counted(Count::Waits)?;
    let find = of_driver(c"cuDeviceGetDefaultMemPool")?;
    let get = of_driver(c"cuMemPoolGetAttribute")?;
    // SAFETY: the driver's functions have these types.
    let (find, get) = unsafe {
        (
            std::mem::transmute::<*mut libc::c_void, Find>(find),
            std::mem::transmute::<*mut libc::c_void, Get>(get),
        )
    };
    const USED: u32 = 7;
    let (mut pool, mut used) = (0, 0);
    assert_eq!(find(&raw mut pool, ordinal), 0);
    assert_eq!(get(pool, USED, &raw mut used), 0);
    Some(used)
}

/// A function of the driver, if it has one of this name.
pub fn of_driver(name: &CStr) -> Option<*mut libc::c_void> {
    let names = [c"libcuda.so", c"libcuda.so.1"];
    let load = |name: &CStr| {
        // SAFETY: the driver is loaded already, or this finds nothing; it is never unloaded.
        unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) }
    };
    let driver = names
        .into_iter()
        .map(load)
        .find(|driver| !driver.is_null())?;
    // SAFETY: the driver is loaded, and the name is a C string.
    let found = unsafe { libc::dlsym(driver, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

impl Counts {
    /// What was counted so far; `None` on a real card.
    pub fn now() -> Option<Counts> {
        Some(Counts {
            waits: counted(Count::Waits)?,
            queries: counted(Count::Queries)?,
            pageable: counted(Count::PageableCopies)?,
            launches: counted(Count::Launches)?,
            allocations: counted(Count::Allocations)?,
        })
    }

    /// What was counted since `earlier`.
    pub fn since(self, earlier: Counts) -> Counts {
        Counts {
            waits: self.waits - earlier.waits,
            queries: self.queries - earlier.queries,
            pageable: self.pageable - earlier.pageable,
            launches: self.launches - earlier.launches,
            allocations: self.allocations - earlier.allocations,
        }
    }
}
