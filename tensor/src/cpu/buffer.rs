//! [`Buffer`]: the memory of one CPU tensor, from its device's pool and back to it.
#![allow(unsafe_code)]

use super::home::{Home, home};
use super::pool::Block;
use super::slow_build;
use crate::device::Device;
use crate::error::Result;
use crate::memory::Account;
use bytemuck::Pod;
use std::fmt;
use std::mem::ManuallyDrop;

/// Bytes of a virtual CPU device, aligned to 64, always initialised. Returns to the pool on drop.
pub(crate) struct Buffer {
    block: ManuallyDrop<Block>,
    bytes: usize,
    home: &'static Home,
}

// SAFETY: a buffer owns its block; `&Buffer` gives out only `&[T]` of plain data.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// A buffer of `bytes` bytes on `cpu:index` with arbitrary (but initialised) contents.
    pub(crate) fn new(op: &'static str, index: usize, bytes: usize) -> Result<Buffer> {
        slow_build::remark_once();
        let home = home(index);
        let block = home.take(op, bytes)?;
        Ok(Buffer {
            block: ManuallyDrop::new(block),
            bytes,
            home,
        })
    }

    pub(crate) fn device(&self) -> Device {
        self.home.account().device()
    }

    /// The account of its device.
    pub(crate) fn account(&self) -> &'static Account {
        self.home.account()
    }

    /// All elements.
    pub(crate) fn as_slice<T: Pod>(&self) -> &[T] {
        const { assert!(align_of::<T>() <= super::pool::ALIGN && size_of::<T>() > 0) };
        // SAFETY: the block holds at least `bytes` initialised bytes, aligned to 64, and any bit
        // pattern is a `T: Pod`. The shared borrow of the buffer keeps writers out.
        unsafe {
            std::slice::from_raw_parts(self.block.ptr.as_ptr().cast(), self.bytes / size_of::<T>())
        }
    }

    /// All elements, for writing.
    pub(crate) fn as_mut_slice<T: Pod>(&mut self) -> &mut [T] {
        const { assert!(align_of::<T>() <= super::pool::ALIGN && size_of::<T>() > 0) };
        // SAFETY: as in `as_slice`; the exclusive borrow makes this the only view.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.block.ptr.as_ptr().cast(),
                self.bytes / size_of::<T>(),
            )
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the buffer is going away, nobody reads the field again.
        let block = unsafe { ManuallyDrop::take(&mut self.block) };
        self.home.put(block, self.bytes);
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes on {})", self.bytes, self.device())
    }
}
