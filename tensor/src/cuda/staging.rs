//! Pinned buffers through which transfers between the host and a card go. A buffer is handed out
//! again when the transfer that used it last is done.
#![allow(unsafe_code)]

use super::gpu::{Gpu, Issuing};
use super::lanes::Stamp;
use crate::Result;
use crate::cpu::scratch::NoMemory;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::CUresult;
use smallvec::SmallVec;
use std::ffi::c_void;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The largest piece of a transfer, in bytes.
pub(super) const PIECE: usize = 4 << 20;
/// The smallest buffer, in bytes.
const LEAST: usize = 4 << 10;
/// Buffers of `size` bytes that are in flight, at most, before a transfer waits for an earlier one: 16 MiB
/// of them, and 32 of the small ones, so that a host runs several batches ahead of the card.
fn in_flight(size: usize) -> usize {
    (4 * PIECE / size).clamp(4, 32)
}

/// A pinned buffer.
#[derive(Debug)]
pub(super) struct Pinned {
    address: *mut c_void,
    bytes: usize,
}

// SAFETY: the buffer belongs to who has this value, as the memory of a vector does; the driver lets any
// thread touch and free it.
unsafe impl Send for Pinned {}

impl Pinned {
    /// The contents. Nothing is in flight: [`Staging::take`] hands out only such buffers, and who
    /// has issued a transfer into one waits for it first.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the buffer has `bytes` bytes, was zeroed when it was made, and is borrowed for as
        // long as the slice lives.
        unsafe { std::slice::from_raw_parts_mut(self.address.cast(), self.bytes) }
    }
}

/// The pinned buffers of one card, kept for the next transfer until the cache is emptied.
#[derive(Debug, Default)]
pub(super) struct Staging(Mutex<Vec<(Pinned, Option<Stamp>)>>);

impl Staging {
    /// A buffer of at least `bytes` bytes that no transfer uses.
    pub(super) fn take(&self, op: &'static str, gpu: &'static Gpu, bytes: usize) -> Result<Pinned> {
        let size = size(bytes);
        loop {
            let done = |stamp| gpu.lock().lanes().done(stamp).unwrap_or(false);
            match self.look(size, done) {
                Found::Free(free) => return Ok(free),
                Found::Busy(n, oldest) if n >= in_flight(size) => gpu.wait(op, oldest)?,
                Found::Busy(..) | Found::None => return make(op, gpu, size),
            }
        }
    }

    /// As [`take`](Staging::take), for who holds the issue lock. What this is for is small and rare,
    /// so the host waits only where a long row of such buffers is in flight.
    pub(super) fn take_issuing(
        &self,
        op: &'static str,
        issuing: &mut Issuing,
        bytes: usize,
    ) -> Result<Pinned> {
        let (gpu, size) = (issuing.gpu(), size(bytes));
        loop {
            let done = |stamp| issuing.lanes().done(stamp).unwrap_or(false);
            match self.look(size, done) {
                Found::Free(free) => return Ok(free),
                // Of the buffers of the caller's own operation none is free before that is issued.
                Found::Busy(n, oldest)
                    if n >= in_flight(size) && issuing.lanes().is_issued(oldest) =>
                {
                    let failed = |e| gpu.failed(op, "waiting for the card", e);
                    let event = issuing.lanes().passed(oldest).map_err(failed)?;
                    event.wait().map_err(failed)?;
                }
                Found::Busy(..) | Found::None => return make(op, gpu, size),
            }
        }
    }

    /// A buffer of `size` bytes whose transfer is `done`, if there is one.
    fn look(&self, size: usize, mut done: impl FnMut(Stamp) -> bool) -> Found {
        // The lock of this list is never held while the issue lock is waited for. The buffers stay in
        // the list meanwhile: without them, another thread would make new ones each time.
        let fitting = |slot: &&(Pinned, _)| slot.0.bytes == size;
        let stamps: SmallVec<[Option<Stamp>; 32]> =
            (self.slots().iter().filter(fitting).map(|slot| slot.1)).collect();
        let mut busy: SmallVec<[Stamp; 32]> = SmallVec::new();
        for stamp in stamps {
            if let Some(stamp) = stamp.filter(|stamp| !done(*stamp)) {
                busy.push(stamp);
            } else if let Some(free) = self.pick(size, stamp) {
                return Found::Free(free); // else another thread was faster
            }
        }
        match busy.first() {
            Some(oldest) => Found::Busy(busy.len(), *oldest),
            None => Found::None,
        }
    }

    /// Takes out a buffer of `size` bytes that the transfer `stamp` used last.
    fn pick(&self, size: usize, stamp: Option<Stamp>) -> Option<Pinned> {
        let mut slots = self.slots();
        let mut all = slots.iter();
        let at = all.position(|(pinned, last)| pinned.bytes == size && *last == stamp)?;
        Some(slots.remove(at).0)
    }

    fn slots(&self) -> MutexGuard<'_, Vec<(Pinned, Option<Stamp>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes out all buffers that are kept here.
    pub(super) fn drain(&self) -> Vec<(Pinned, Option<Stamp>)> {
        std::mem::take(&mut *self.slots())
    }

    /// Frees buffers that no transfer uses any more.
    pub(super) fn free(buffers: Vec<(Pinned, Option<Stamp>)>) -> Result<(), DriverError> {
        buffers.into_iter().try_for_each(|(pinned, _)| {
            // SAFETY: the buffer was allocated as pinned memory, and nobody else has it.
            unsafe { result::free_host(pinned.address) }
        })
    }

    /// Gives a buffer back, which the transfer `stamp` still uses.
    pub(super) fn put(&self, pinned: Pinned, stamp: Option<Stamp>) {
        self.slots().push((pinned, stamp));
    }
}

/// What [`Staging`] has of a size.
enum Found {
    /// A buffer that no transfer uses.
    Free(Pinned),
    /// So many buffers that transfers use, and the transfer of the one that was given back first.
    Busy(usize, Stamp),
    /// No buffer.
    None,
}

/// The size of a buffer for `bytes` bytes.
fn size(bytes: usize) -> usize {
    bytes.max(LEAST).next_power_of_two()
}

fn make(op: &'static str, gpu: &'static Gpu, size: usize) -> Result<Pinned> {
    // SAFETY: the card's context is current.
    let address = unsafe { result::malloc_host(size, 0) }.map_err(|e| match e.0 {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => NoMemory::of::<u8>(size).on(op, gpu.device()),
        _ => gpu.failed(op, "allocating a pinned buffer", e),
    })?;
    // SAFETY: the buffer was just allocated with this size.
    unsafe { address.cast::<u8>().write_bytes(0, size) };
    Ok(Pinned {
        address,
        bytes: size,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::lanes::Lane;

    fn stamp(number: u64) -> Stamp {
        let lane = Lane::Copy;
        Stamp { lane, number }
    }

    /// Who asks whether a transfer is done may have to wait for the issue lock, and others look meanwhile.
    #[test]
    fn buffers_stay_where_they_are_while_somebody_looks() {
        let staging = Staging::default();
        for number in [1, 2, 3] {
            let pinned = Pinned {
                address: std::ptr::null_mut(),
                bytes: LEAST,
            };
            staging.put(pinned, Some(stamp(number)));
        }
        let mut there = Vec::new();
        let found = staging.look(LEAST, |transfer| {
            there.push(staging.slots().len());
            transfer == stamp(2)
        });
        assert!(matches!(found, Found::Free(_)));
        assert_eq!(there, [3, 3]);
        let found = staging.look(LEAST, |_| false);
        assert!(matches!(found, Found::Busy(2, oldest) if oldest == stamp(1)));
        assert!(matches!(staging.look(2 * LEAST, |_| true), Found::None));
        // Both are taken by somebody else while this looks.
        let mut taken = 0;
        let found = staging.look(LEAST, |transfer| {
            taken += usize::from(staging.pick(LEAST, Some(transfer)).is_some());
            true
        });
        assert!(matches!(found, Found::None));
        assert_eq!(taken, 2);
    }
}
