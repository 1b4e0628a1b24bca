//! Pages of this process: the only place that asks the system for memory.

use std::io;
use std::ptr;

/// Bytes of a page.
pub const SIZE: u64 = 4096;

/// The next multiple of a page.
pub fn up(bytes: u64) -> u64 {
    bytes.next_multiple_of(SIZE)
}

fn map(bytes: u64, protection: i32) -> io::Result<u64> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: an anonymous mapping at an address that the system chooses takes nothing away from anybody.
    let start = unsafe { libc::mmap(ptr::null_mut(), bytes as usize, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(start as u64)
}

/// Addresses that nobody can touch until they are opened. They are never given back.
pub fn reserve(bytes: u64) -> io::Result<u64> {
    map(bytes, libc::PROT_NONE)
}

/// The whole pages that hold `len` bytes from `base` on.
fn whole(base: u64, len: u64) -> (*mut libc::c_void, usize) {
    let start = base - base % SIZE;
    (
        start as *mut libc::c_void,
        (up(base + len) - start) as usize,
    )
}

/// Opens reserved pages for reading and writing. They hold zeros.
pub fn open(base: u64, len: u64) -> io::Result<()> {
    let (start, bytes) = whole(base, len);
    // SAFETY: the pages belong to a reservation of ours, and to one allocation of it.
    if unsafe { libc::mprotect(start, bytes, libc::PROT_READ | libc::PROT_WRITE) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Closes pages that were opened, and drops what they hold.
pub fn close(base: u64, len: u64) {
    let (start, bytes) = whole(base, len);
    // SAFETY: as in `open`; the allocation is freed, and no operation that could touch it is running.
    unsafe {
        libc::madvise(start, bytes, libc::MADV_DONTNEED);
        libc::mprotect(start, bytes, libc::PROT_NONE);
    }
}

/// Fills open pages.
pub fn fill(base: u64, len: u64, value: u8) {
    // SAFETY: the bytes were opened, and nobody else knows of them yet.
    unsafe { ptr::write_bytes(base as *mut u8, value, len as usize) };
}

/// A mapping of its own, which ends with it.
#[derive(Debug)]
pub struct Pages {
    start: u64,
    bytes: u64,
}

impl Pages {
    /// Pages of which all bytes have one value.
    pub fn new(bytes: u64, value: u8) -> Option<Pages> {
        let whole = up(bytes.max(1));
        let start = map(whole, libc::PROT_READ | libc::PROT_WRITE).ok()?;
        fill(start, whole, value);
        Some(Pages {
            start,
            bytes: whole,
        })
    }

    /// The first address.
    pub fn start(&self) -> u64 {
        self.start
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and its owner says with this drop that nobody uses it.
        unsafe { libc::munmap(self.start as *mut libc::c_void, self.bytes as usize) };
    }
}
