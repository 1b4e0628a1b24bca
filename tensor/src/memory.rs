//! Memory accounts: what each device has live, its peak, and the buffer pool behind it.

use crate::cpu::pool::Pool;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{LazyLock, RwLock};

/// What a device's memory is doing, in bytes.
///
/// `live` counts what tensors asked for, exactly, so that claims about memory can be tested;
/// `reserved` is what the pool holds from the system, in use or kept for the next request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryStats {
    /// Bytes of all storages alive now.
    pub live: usize,
    /// The largest `live` since the start or the last `reset_peak`.
    pub peak: usize,
    /// Bytes held from the system.
    pub reserved: usize,
    /// How often the system was asked for memory. Constant in a training loop at steady state.
    pub system_allocations: u64,
}

/// The account and the pool of one virtual CPU device.
#[derive(Debug, Default)]
pub(crate) struct DeviceMemory {
    pub(crate) index: usize,
    live: AtomicUsize,
    peak: AtomicUsize,
    reserved: AtomicUsize,
    system_allocations: AtomicU64,
    pub(crate) pool: Pool,
}

impl DeviceMemory {
    pub(crate) fn stats(&self) -> MemoryStats {
        MemoryStats {
            live: self.live.load(Relaxed),
            peak: self.peak.load(Relaxed),
            reserved: self.reserved.load(Relaxed),
            system_allocations: self.system_allocations.load(Relaxed),
        }
    }

    pub(crate) fn reset_peak(&self) {
        self.peak.store(self.live.load(Relaxed), Relaxed);
    }

    pub(crate) fn empty_cache(&self) {
        self.pool.drain(|bytes| {
            self.reserved.fetch_sub(bytes, Relaxed);
        });
    }

    /// Books a buffer that came alive.
    pub(crate) fn acquired(&self, bytes: usize) {
        let live = self.live.fetch_add(bytes, Relaxed) + bytes;
        self.peak.fetch_max(live, Relaxed);
    }

    /// Books a buffer that died.
    pub(crate) fn released(&self, bytes: usize) {
        self.live.fetch_sub(bytes, Relaxed);
    }

    /// Books memory that goes back to the system.
    pub(crate) fn shrunk(&self, bytes: usize) {
        self.reserved.fetch_sub(bytes, Relaxed);
    }

    /// Books memory that came from the system.
    pub(crate) fn grown(&self, bytes: usize) {
        self.reserved.fetch_add(bytes, Relaxed);
        self.system_allocations.fetch_add(1, Relaxed);
    }
}

/// The account of virtual CPU device `index`; made at its first use, and kept for good.
pub(crate) fn cpu(index: usize) -> &'static DeviceMemory {
    static ACCOUNTS: LazyLock<RwLock<HashMap<usize, &'static DeviceMemory>>> =
        LazyLock::new(Default::default);
    thread_local! {
        // A rank works on one device: the map is read once per thread.
        static LAST: std::cell::Cell<Option<&'static DeviceMemory>> = const { std::cell::Cell::new(None) };
    }
    if let Some(last) = LAST.get()
        && last.index == index
    {
        return last;
    }
    // A panic while the lock was held cannot leave the map half-changed.
    let known = ACCOUNTS
        .read()
        .unwrap_or_else(|e| e.into_inner())
        .get(&index)
        .copied();
    let account = known.unwrap_or_else(|| {
        let mut accounts = ACCOUNTS.write().unwrap_or_else(|e| e.into_inner());
        accounts.entry(index).or_insert_with(|| {
            Box::leak(Box::new(DeviceMemory {
                index,
                ..Default::default()
            }))
        })
    });
    LAST.set(Some(account));
    account
}
