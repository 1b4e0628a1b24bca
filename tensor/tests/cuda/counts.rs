//! What the driver was asked to do: so that a test can say that nothing waits for the card, and how often kernels are
//! launched. Only simulated cards count; on a real one such a test says that it is skipped.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char};
use std::sync::OnceLock;

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

type Count = unsafe extern "C" fn(u32) -> u64;
type Launches = unsafe extern "C" fn(*const c_char) -> u64;

/// The simulated driver's functions that count.
fn functions() -> Option<(Count, Launches)> {
    static FOUND: OnceLock<Option<(Count, Launches)>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        // SAFETY: the driver is loaded already, so this runs no code; the functions of these names have these types.
        unsafe {
            let driver = libc::dlopen(c"libcuda.so".as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD);
            if driver.is_null() {
                return None;
            }
            let find = |name: &CStr| {
                let found = libc::dlsym(driver, name.as_ptr());
                (!found.is_null()).then_some(found)
            };
            Some((
                std::mem::transmute::<*mut libc::c_void, Count>(find(c"phalanx_simulator_count")?),
                std::mem::transmute::<*mut libc::c_void, Launches>(find(
                    c"phalanx_simulator_launches",
                )?),
            ))
        }
    })
}

impl Counts {
    /// What was counted so far; `None` on a real card.
    pub fn now() -> Option<Counts> {
        let (count, _) = functions()?;
        // SAFETY: the function takes any number.
        let count = |kind| unsafe { count(kind) };
        Some(Counts {
            waits: count(0),
            queries: count(1),
            pageable: count(2),
            launches: count(3),
            allocations: count(6),
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

/// How often a kernel was launched in this process, by its name in the source; `None` on a real card.
pub fn launches(kernel: &str) -> Option<u64> {
    let (_, launches) = functions()?;
    let name = CString::new(kernel).expect("no kernel has a zero in its name");
    // SAFETY: the text ends with a zero.
    Some(unsafe { launches(name.as_ptr()) })
}
