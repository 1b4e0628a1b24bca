//! Pinned buffers through which transfers between the host and a card go. A buffer is handed out
//! again when the transfer that used it last is done.
#![allow(unsafe_code)]

use super::gpu::{Gpu, Handle};
use super::lanes::Stamp;
use crate::Result;
use cudarc::driver::result::{self, DriverError};
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

/// The largest piece of a transfer, in bytes.
pub(super) const PIECE: usize = 4 << 20;
/// The smallest buffer, in bytes.
const LEAST: usize = 4 << 10;
/// Buffers that are in flight, at most, before a transfer waits for an earlier one.
const IN_FLIGHT: usize = 4;

/// A pinned buffer.
#[derive(Debug)]
pub(super) struct Pinned {
    address: Handle<*mut c_void>,
    bytes: usize,
}

impl Pinned {
    /// The contents. Nothing is in flight: [`Staging::take`] hands out only such buffers, and who
    /// has issued a transfer into one waits for it first.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the buffer has `bytes` bytes, was zeroed when it was made, and is borrowed for as
        // long as the slice lives.
        unsafe { std::slice::from_raw_parts_mut(self.address.0.cast(), self.bytes) }
    }
}

/// The pinned buffers of one card, kept for the next transfer until the cache is emptied.
#[derive(Debug, Default)]
pub(super) struct Staging(Mutex<Vec<(Pinned, Option<Stamp>)>>);

impl Staging {
    /// A buffer of at least `bytes` bytes that no transfer uses.
    pub(super) fn take(&self, op: &'static str, gpu: &'static Gpu, bytes: usize) -> Result<Pinned> {
        let size = bytes.max(LEAST).next_power_of_two();
        loop {
            let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let fits = |(pinned, _): &&(Pinned, Option<Stamp>)| pinned.bytes == size;
            let busy = slots.iter().filter(fits).count();
            let free = slots.iter().position(|(pinned, stamp)| {
                pinned.bytes == size && stamp.is_none_or(|stamp| is_done(gpu, stamp))
            });
            if let Some(free) = free {
                return Ok(slots.swap_remove(free).0);
            }
            if busy < IN_FLIGHT {
                drop(slots);
                return make(op, gpu, size);
            }
            let oldest = slots.iter().filter(fits).find_map(|(_, stamp)| *stamp);
            drop(slots);
            if let Some(oldest) = oldest {
                gpu.wait(op, oldest)?;
            }
        }
    }

    /// Frees the buffers that no transfer uses. Nothing is in flight on the card.
    pub(super) fn empty(&self) -> Result<(), DriverError> {
        let slots = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        slots.into_iter().try_for_each(|(pinned, _)| {
            // SAFETY: the buffer was allocated as pinned memory, and nobody else has it.
            unsafe { result::free_host(pinned.address.0) }
        })
    }

    /// Gives a buffer back, which the transfer `stamp` still uses.
    pub(super) fn put(&self, pinned: Pinned, stamp: Option<Stamp>) {
        let mut slots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slots.push((pinned, stamp));
    }
}

fn is_done(gpu: &'static Gpu, stamp: Stamp) -> bool {
    gpu.lock().lanes().done(stamp).unwrap_or(false)
}

fn make(op: &'static str, gpu: &'static Gpu, size: usize) -> Result<Pinned> {
    // SAFETY: the card's context is current.
    let address = unsafe { result::malloc_host(size, 0) }
        .map_err(|e| gpu.failed(op, "allocating a pinned buffer", e))?;
    // SAFETY: the buffer was just allocated with this size.
    unsafe { address.cast::<u8>().write_bytes(0, size) };
    Ok(Pinned {
        address: Handle(address),
        bytes: size,
    })
}
