//! Memory that a thread keeps between products, so that a product at steady state allocates
//! nothing.

use crate::cpu::scratch::NoMemory;
use std::alloc::{Layout, alloc, dealloc};
use std::cell::Cell;
use std::ptr::NonNull;

/// A cache line, and the widest vector.
const ALIGN: usize = 64;

/// An aligned buffer of uninitialised bytes that only grows.
pub(super) struct Buffer {
    p: NonNull<u8>,
    bytes: usize,
}

impl Buffer {
    /// Aligned too: room for nothing is no null and no crooked pointer.
    const NOTHING: NonNull<u8> = NonNull::<Line>::dangling().cast();

    /// Room for `len` elements of `T`, uninitialised, aligned to [`ALIGN`]; or what the system
    /// refused.
    pub fn room<T>(&mut self, len: usize) -> Result<*mut T, NoMemory> {
        const { assert!(align_of::<T>() <= ALIGN) };
        let no_memory = || NoMemory::of::<T>(len);
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(no_memory)?;
        // For AddressSanitizer the buffer ends where the room does.
        let exact = cfg!(phalanx_asan) && bytes > 0;
        if bytes > self.bytes || exact && bytes < self.bytes {
            self.free();
            let bytes = match exact {
                true => bytes,
                false => bytes
                    .checked_next_multiple_of(1 << 16)
                    .ok_or_else(no_memory)?,
            };
            let layout = Layout::from_size_align(bytes, ALIGN).map_err(|_| no_memory())?;
            // SAFETY: the layout's size is not zero: more than `self.bytes`, or `exact`.
            let p = NonNull::new(unsafe { alloc(layout) }).ok_or_else(no_memory)?;
            (self.p, self.bytes) = (p, bytes);
        }
        Ok(self.p.as_ptr().cast())
    }

    /// What the last [`room`](Self::room) gave.
    pub fn kept<T>(&self) -> *const T {
        self.p.as_ptr().cast_const().cast()
    }

    fn free(&mut self) {
        if self.bytes > 0 {
            // SAFETY: `room` allocated this many bytes with this alignment, which it checked.
            unsafe {
                dealloc(
                    self.p.as_ptr(),
                    Layout::from_size_align_unchecked(self.bytes, ALIGN),
                );
            }
            (self.p, self.bytes) = (Buffer::NOTHING, 0);
        }
    }
}

/// Nothing, aligned to [`ALIGN`].
#[repr(align(64))]
struct Line;

impl Default for Buffer {
    fn default() -> Self {
        const { assert!(align_of::<Line>() == ALIGN) };
        Buffer {
            p: Buffer::NOTHING,
            bytes: 0,
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.free();
    }
}

/// The buffers of one task.
#[derive(Default)]
pub(super) struct Scratch {
    /// The packed block of the vectorised operand.
    pub vectors: Buffer,
    /// Packed stripes.
    pub stripes: Buffer,
    /// A widened piece of an operand in a half type.
    pub wide: Buffer,
    /// Sums of a result in a half type.
    pub sums: Buffer,
}

thread_local! {
    static SPARE: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

/// Runs `f` with this thread's buffers, or with fresh ones inside another product's epilogue.
pub(super) fn with<R>(f: impl FnOnce(&mut Scratch) -> R) -> R {
    let mut scratch = SPARE.take().unwrap_or_default();
    let result = f(&mut scratch);
    SPARE.set(Some(scratch));
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_aligned_even_for_nothing() {
        let mut buffer = Buffer::default();
        for len in [0, 1, 100_000, 0] {
            assert_eq!(buffer.room::<f32>(len).unwrap().addr() % ALIGN, 0, "{len}");
        }
    }

    #[test]
    fn room_that_nobody_has_is_an_error() {
        let mut buffer = Buffer::default();
        for len in [usize::MAX, isize::MAX as usize / 4, 1 << 60] {
            assert_eq!(buffer.room::<f32>(len), Err(NoMemory::of::<f32>(len)));
        }
        assert!(buffer.room::<f32>(100).is_ok());
    }
}
