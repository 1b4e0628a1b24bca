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

/// The pages of a block: those of its bytes, and as many behind them for what is to be known of each byte. They are as
/// many for each block of a length, wherever in a page it starts: that is at a multiple of 256 bytes.
fn whole(base: u64, len: u64) -> (u64, u64) {
    (base - base % SIZE, 2 * span(len))
}

/// Bytes of the pages of a block's bytes.
pub fn span(len: u64) -> u64 {
    up(len + SIZE - 256)
}

fn protect(base: u64, len: u64, protection: i32) -> io::Result<()> {
    let (start, bytes) = whole(base, len);
    // SAFETY: the pages belong to a reservation of ours, and to one block of it, which nobody uses while they change.
    let changed = unsafe { libc::mprotect(start as *mut libc::c_void, bytes as usize, protection) };
    if changed != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Opens the reserved pages of a block for reading and writing. They hold zeros.
pub fn open(base: u64, len: u64) -> io::Result<()> {
    protect(base, len, libc::PROT_READ | libc::PROT_WRITE)
}

/// Closes the pages of a block, and keeps what they hold: they can be moved.
pub fn shut(base: u64, len: u64) -> io::Result<()> {
    protect(base, len, libc::PROT_NONE)
}

/// Closes the pages of a block, and drops what they hold.
pub fn close(base: u64, len: u64) {
    let (start, bytes) = whole(base, len);
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: the pages belong to a reservation of ours, and to one block of it, which nobody uses any more. A new
    // mapping in their place becomes one with its neighbours, so that the process does not run out of mappings.
    unsafe {
        let start = start as *mut libc::c_void;
        libc::mmap(start, bytes as usize, libc::PROT_NONE, flags, -1, 0);
    }
}

/// Moves the pages of a block that were shut to another block of the same length, and opens them there. What they hold
/// comes with them. The first block is closed.
pub fn take_over(from: u64, to: u64, len: u64) -> io::Result<()> {
    let ((old, bytes), (new, _)) = (whole(from, len), whole(to, len));
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
    let size = bytes as usize;
    // SAFETY: both ranges belong to reservations of ours and to one block each, of which one is not used any more and
    // the other one not yet. The old range stays mapped, so that its addresses go to nobody else.
    let moved = unsafe {
        let (old, new) = (old as *mut libc::c_void, new as *mut libc::c_void);
        libc::mremap(old, size, size, flags, new)
    };
    if moved == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    close(from, len);
    open(to, len)
}

/// Fills bytes of open pages.
pub fn fill(base: u64, len: u64, value: u8) {
    // SAFETY: the bytes were opened and nobody else knows of them yet, or they are a pinned buffer that the program has
    // given away until its copy has run.
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
