//! The pool of one device: buffers that died are kept by size class and handed out again, so a
//! training loop at steady state asks the system for nothing.
//!
//! Classes grow by an eighth of a power of two, so a buffer is at most 12.5 % larger than what was
//! asked for (and at least [`MIN_BYTES`]).
//!
//! Under `--cfg phalanx_asan` nothing is kept and no block is larger than what was asked for:
//! AddressSanitizer, which marks what the system has not handed out, would see neither a read
//! behind the end of a buffer nor one of a buffer that died.
#![allow(unsafe_code)]

use crate::cpu::lock::Lock;
use std::alloc;
use std::fmt;
use std::ptr::NonNull;

/// Alignment of every buffer: a cache line, and a full AVX-512 register.
pub(crate) const ALIGN: usize = 64;
/// The smallest size class.
const MIN_BYTES: usize = 64;
/// Blocks from this size on are asked for in huge pages.
const HUGE: usize = 2 << 20;

/// A block of memory: `ptr` is aligned to [`ALIGN`], and its `bytes` bytes are initialised.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) ptr: NonNull<u8>,
    pub(crate) bytes: usize,
}

// SAFETY: a block owns its memory, which no thread is tied to.
unsafe impl Send for Block {}

impl Block {
    fn layout(bytes: usize) -> Option<alloc::Layout> {
        alloc::Layout::from_size_align(bytes, if bytes >= HUGE { HUGE } else { ALIGN }).ok()
    }

    /// Takes zeroed memory from the system; `None` where it has none.
    pub(crate) fn from_system(bytes: usize) -> Option<Block> {
        let layout = Block::layout(bytes)?;
        // SAFETY: a size class is never zero.
        let ptr = NonNull::new(unsafe { alloc::alloc(layout) })?;
        if bytes >= HUGE {
            #[cfg(target_os = "linux")]
            // SAFETY: the range was just allocated and is aligned to a page; the advice changes
            // how it is backed, not what it holds. A refusal costs only speed.
            unsafe {
                libc::madvise(ptr.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE);
            }
        }
        // SAFETY: the block is `bytes` long. After this every byte is initialised, for good: blocks
        // are only ever overwritten with plain data.
        unsafe { ptr.write_bytes(0, bytes) };
        Some(Block { ptr, bytes })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(layout) = Block::layout(self.bytes) {
            // SAFETY: allocated in `from_system` with the layout of the same size.
            unsafe { alloc::dealloc(self.ptr.as_ptr(), layout) };
        }
    }
}

/// Index and size of the class that serves `bytes`; `None` beyond what can be addressed.
fn class_of(bytes: usize) -> Option<(usize, usize)> {
    let bytes = bytes.max(MIN_BYTES);
    if bytes > isize::MAX as usize / 2 {
        return None;
    }
    let power = (bytes - 1).max(MIN_BYTES / 2).ilog2(); // 2^power < bytes <= 2^(power + 1)
    let step = ((1usize << power) / 8).max(8);
    let eighths = (bytes - (1 << power)).div_ceil(step);
    Some((
        power as usize * 8 + eighths - 1,
        (1 << power) + eighths * step,
    ))
}

/// Free blocks by size class.
#[derive(Default)]
pub(crate) struct Pool {
    free: Lock<Vec<Vec<Block>>>,
}

impl Pool {
    /// A free block that serves `bytes`, if there is one.
    pub(crate) fn take(&self, bytes: usize) -> Option<Block> {
        if cfg!(phalanx_asan) {
            return None;
        }
        let (class, _) = class_of(bytes)?;
        self.free.with(|free| free.get_mut(class)?.pop())
    }

    /// The size of the block that serves `bytes`; `None` beyond what can be addressed.
    pub(crate) fn block_bytes(bytes: usize) -> Option<usize> {
        class_of(bytes).map(|(_, size)| match cfg!(phalanx_asan) {
            true => bytes.max(1),
            false => size,
        })
    }

    /// Keeps a block for the next request of its class; hands it back where there is no memory to
    /// keep account of it.
    pub(crate) fn put(&self, block: Block) -> Option<Block> {
        let class = class_of(block.bytes).filter(|_| !cfg!(phalanx_asan));
        let Some((class, _)) = class else {
            return Some(block);
        };
        self.free.with(|free| {
            if free.len() <= class {
                let more = class + 1 - free.len();
                if free.try_reserve(more).is_err() {
                    return Some(block);
                }
                free.resize_with(class + 1, Vec::new);
            }
            if free[class].try_reserve(1).is_err() {
                return Some(block);
            }
            free[class].push(block);
            None
        })
    }

    /// Returns all free blocks to the system; `f` hears the size of each.
    pub(crate) fn drain(&self, mut f: impl FnMut(usize)) {
        let lists = self.free.with(std::mem::take);
        lists.into_iter().flatten().for_each(|block| f(block.bytes));
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let blocks = self
            .free
            .with(|free| free.iter().map(Vec::len).sum::<usize>());
        write!(f, "Pool {{ free blocks: {blocks} }}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_tight_and_ordered() {
        let mut last = (0, 0);
        for bytes in (0..5000).chain((5000..50_000_000).step_by(9973)) {
            let (class, size) = class_of(bytes).unwrap();
            assert!(size >= bytes && size >= MIN_BYTES);
            assert!(
                size <= MIN_BYTES || size - bytes <= (bytes / 8).max(8),
                "{bytes} -> {size}"
            );
            assert!(
                class >= last.0 && (class == last.0) == (size == last.1),
                "{bytes}"
            );
            assert_eq!(
                class_of(size).unwrap(),
                (class, size),
                "a class serves its own size"
            );
            last = (class, size);
        }
        assert!(class_of(usize::MAX).is_none());
    }
}
