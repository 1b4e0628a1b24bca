//! The records of global memory: two for each byte of a region, kept from launch to launch. A record of an earlier
//! launch is told by its tick, so nothing is ever cleared. This is one of the few files with `unsafe` code.

use std::collections::HashMap;

use super::Region;

/// So many bytes of records are kept from one launch to the next; more are given back.
const MOST: usize = 2 << 30;

/// Zeros of the system's, of which only those take room that were written.
#[derive(Debug)]
struct Records {
    start: *mut u64,
    bytes: usize,
    of: u64,
}

impl Records {
    fn new(of: u64) -> std::io::Result<Records> {
        let bytes = (of as usize).max(1) * 2 * size_of::<u64>();
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh anonymous mapping touches no memory of others.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let start = start.cast();
        Ok(Records { start, bytes, of })
    }
}

impl Drop for Records {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no launch runs that uses it: its worker drops it.
        unsafe { libc::munmap(self.start.cast(), self.bytes) };
    }
}

/// The records of the regions that the launches of a worker have met, by their first address.
#[derive(Debug, Default)]
pub struct Shadows {
    all: HashMap<u64, Records>,
    bytes: usize,
}

impl Shadows {
    /// Before a launch: gives back what is too much, or all of it if ticks begin anew.
    pub fn trim(&mut self, anew: bool) {
        if self.bytes > MOST || anew {
            self.all.clear();
            self.bytes = 0;
        }
    }

    /// The records of a region; they stay where they are until the launch has ended.
    pub fn of(&mut self, region: &Region) -> std::io::Result<*mut u64> {
        if let Some(records) = self.all.get(&region.base)
            && records.of == region.len
        {
            return Ok(records.start);
        }
        let records = Records::new(region.len)?;
        let start = records.start;
        self.bytes += records.bytes;
        if let Some(old) = self.all.insert(region.base, records) {
            self.bytes -= old.bytes;
        }
        Ok(start)
    }
}
