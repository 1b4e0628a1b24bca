//! Memory that a thread keeps between products, so that a product at steady state allocates
//! nothing.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
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
    /// Room for `len` elements of `T`, uninitialised, aligned to [`ALIGN`].
    pub fn room<T>(&mut self, len: usize) -> *mut T {
        const { assert!(align_of::<T>() <= ALIGN) };
        let bytes = len * size_of::<T>();
        // For AddressSanitizer the buffer ends where the room does.
        let exact = cfg!(phalanx_asan) && bytes > 0;
        if bytes > self.bytes || exact && bytes < self.bytes {
            self.free();
            let bytes = match exact {
                true => bytes,
                false => bytes.next_multiple_of(1 << 16),
            };
            let Ok(layout) = Layout::from_size_align(bytes, ALIGN) else {
                panic!("a packing buffer of {bytes} bytes")
            };
            // SAFETY: the layout's size is not zero.
            let Some(p) = NonNull::new(unsafe { alloc(layout) }) else {
                handle_alloc_error(layout)
            };
            (self.p, self.bytes) = (p, bytes);
        }
        self.p.as_ptr().cast()
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
            self.bytes = 0;
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
            // Aligned too: room for nothing is no null and no crooked pointer.
            p: NonNull::<Line>::dangling().cast(),
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
            assert_eq!(buffer.room::<f32>(len).addr() % ALIGN, 0, "{len}");
        }
    }
}
