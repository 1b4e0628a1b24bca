//! Scratch memory that may not be had. Its size follows from the operands, so that a refusal of the
//! system is an error of the operation, which can be called again, and never the end of the process.
#![allow(unsafe_code)]

use crate::{Device, Error};
use bytemuck::Pod;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::num::NonZero;
use std::ptr::NonNull;
use std::sync::OnceLock;

/// The system refused so many bytes of scratch memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMemory {
    pub(crate) bytes: usize,
}

impl NoMemory {
    /// For `len` elements of type `T`.
    pub(crate) fn of<T>(len: usize) -> NoMemory {
        NoMemory {
            bytes: len.saturating_mul(size_of::<T>()),
        }
    }

    /// The error of the operation `op` on `device`.
    pub(crate) fn on(self, op: &'static str, device: Device) -> Error {
        Error::OutOfMemory {
            op,
            device,
            bytes: self.bytes,
            live: device.memory().map_or(0, |memory| memory.live),
            limit: None,
        }
    }
}

/// An empty vector with room for `len` elements.
pub(crate) fn room<T>(len: usize) -> Result<Vec<T>, NoMemory> {
    let mut v = Vec::new();
    match v.try_reserve_exact(len) {
        Ok(()) => Ok(v),
        Err(_) => Err(NoMemory::of::<T>(len)),
    }
}

/// Room for `more` elements at the end of a vector.
pub(crate) fn reserve<T>(v: &mut Vec<T>, more: usize) -> Result<(), NoMemory> {
    v.try_reserve(more).map_err(|_| NoMemory::of::<T>(more))
}

/// Whether all parts of a parallel operation had their scratch memory.
#[derive(Default)]
pub(crate) struct Outcome(OnceLock<NoMemory>);

impl Outcome {
    /// Runs one part, and keeps its failure, unless there was one before.
    pub(crate) fn of(&self, part: impl FnOnce() -> Result<(), NoMemory>) {
        if let Err(e) = part() {
            _ = self.0.set(e);
        }
    }

    /// A failure of any part.
    pub(crate) fn result(self) -> Result<(), NoMemory> {
        self.0.into_inner().map_or(Ok(()), Err)
    }
}

/// A cache line, and the widest vector.
const ALIGN: usize = 64;

/// An aligned buffer that only grows. Its bytes are initialised, and hold what was last written.
pub(crate) struct Buffer {
    p: NonNull<u8>,
    bytes: usize,
}

impl Buffer {
    /// Aligned too: room for nothing is no null and no crooked pointer.
    const NOTHING: NonNull<u8> = NonNull::without_provenance(NonZero::new(ALIGN).unwrap());

    /// Room for `len` elements of `T`, aligned to [`ALIGN`]; or what the system refused.
    pub(crate) fn room<T>(&mut self, len: usize) -> Result<*mut T, NoMemory> {
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
            let p = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(no_memory)?;
            (self.p, self.bytes) = (p, bytes);
        }
        Ok(self.p.as_ptr().cast())
    }

    /// What the last [`room`](Self::room) gave.
    pub(crate) fn kept<T>(&self) -> *const T {
        self.p.as_ptr().cast_const().cast()
    }

    /// [`room`](Self::room) as a slice, with arbitrary elements.
    pub(crate) fn slice<T: Pod>(&mut self, len: usize) -> Result<&mut [T], NoMemory> {
        let p = self.room(len)?;
        // SAFETY: the room is there, aligned and initialised, and all bits are a `T: Pod`; the
        // exclusive borrow makes this the only view.
        Ok(unsafe { std::slice::from_raw_parts_mut(p, len) })
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

impl Default for Buffer {
    fn default() -> Self {
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
