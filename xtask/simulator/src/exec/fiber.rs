//! The threads of a block as fibers: stacks of their own in one thread of the host, and the switch between them. This
//! is one of the few files with `unsafe` code.

use std::arch::naked_asm;

use super::abi::{Code, Ctx};

/// The bytes of a stack, its guard page and the stagger included: an odd number of pages, since the tops of stacks that
/// lie a power of two apart would compete for the same lines of the cache.
const STACK: usize = 33 * PAGE;
/// What generated code leaves of a stack for the engine's functions.
const RESERVE: usize = 40 * 1024;
const PAGE: usize = 4096;

/// Stacks for `count` fibers, which are kept for the next launch.
#[derive(Debug)]
pub struct Stacks {
    base: *mut u8,
    count: usize,
}

// SAFETY: the memory is owned, and nothing in it is bound to a thread while no fiber runs.
unsafe impl Send for Stacks {}

impl Stacks {
    /// Reserves the stacks; memory is used only where a fiber has run.
    pub fn new(count: usize) -> std::io::Result<Stacks> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh anonymous mapping touches no memory of others.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), count * STACK, access, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let stacks = Stacks {
            base: base.cast(),
            count,
        };
        for at in 0..count {
            // SAFETY: the page lies in our mapping, and no fiber uses it: it is the lowest of a stack.
            let done = unsafe {
                libc::mprotect(stacks.base.add(at * STACK).cast(), PAGE, libc::PROT_NONE)
            };
            if done != 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(stacks)
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// The lowest address that generated code may use on stack `at`.
    pub fn end(&self, at: usize) -> u64 {
        (self.base as usize + at * STACK + RESERVE) as u64
    }

    /// Makes stack `at` ready to run `code(ctx)`, and then `end(ctx)`, which must not return. The result is what
    /// [`switch`] wants.
    pub fn prepare(&mut self, at: usize, code: Code, ctx: *mut Ctx, end: Code) -> usize {
        assert!(at < self.count, "stack {at} of {}", self.count);
        // Stacks that all start at the same offset of a page would compete for the same lines of the cache.
        let stagger = at * 13 % 64 * 64;
        let top = self.base as usize + (at + 1) * STACK - stagger;
        let words = [
            0usize,
            end as usize,
            code as usize,
            ctx as usize,
            0,
            0,
            start as *const () as usize,
        ];
        let pointer = top - size_of_val(&words);
        // SAFETY: the words lie in the upper part of stack `at`, which no fiber uses while it is prepared.
        unsafe { (pointer as *mut [usize; 7]).write(words) };
        pointer
    }
}

impl Drop for Stacks {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no fiber runs any more: fibers run within `run`, which borrows the stacks.
        unsafe { libc::munmap(self.base.cast(), self.count * STACK) };
    }
}

/// Leaves the current stack, whose pointer goes to `save`, for the one at `to`.
///
/// # Safety
///
/// `to` comes from [`Stacks::prepare`] or from an earlier switch that left it and has not been resumed since.
#[unsafe(naked)]
pub unsafe extern "C" fn switch(save: *mut usize, to: usize) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov rsp, rsi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    )
}

/// Where a prepared stack begins: r12 is the context, r13 the code, r14 what ends the fiber.
#[unsafe(naked)]
unsafe extern "C" fn start() {
    naked_asm!(
        "mov rdi, r12",
        "call r13",
        "mov rdi, r12",
        "call r14",
        "ud2"
    )
}
