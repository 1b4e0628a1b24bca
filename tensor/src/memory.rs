//! The memory account of a device: what is live, its peak and its limit, whatever kind of device it
//! is. What hands the memory out, and books it here, stands with each kind of device.

use crate::{Device, Error};
use std::cell::Cell;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{LazyLock, RwLock};
use std::thread::LocalKey;

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
    /// The largest `live` that is allowed, where there is a limit.
    pub limit: Option<usize>,
    /// Bytes held from the system.
    pub reserved: usize,
    /// How often the system was asked for memory. Constant in a training loop at steady state.
    pub system_allocations: u64,
    /// How often a write in place had to copy first, because another tensor shared the storage.
    /// Such a copy costs time and memory, and the tensor that is written moves to a new address.
    pub copies: u64,
}

/// No limit. Nothing can reach it, because `live` counts what can be addressed.
const UNLIMITED: usize = usize::MAX;

/// The account of one device.
///
/// Each figure is an atomic of its own, and none of them guards other memory: relaxed order is
/// enough.
#[derive(Debug)]
pub(crate) struct Account {
    device: Device,
    live: AtomicUsize,
    peak: AtomicUsize,
    limit: AtomicUsize,
    reserved: AtomicUsize,
    system_allocations: AtomicU64,
    copies: AtomicU64,
}

/// Bytes that are live before the memory itself is had. Dropped, they are live no more.
#[derive(Debug)]
#[must_use]
pub(crate) struct Reservation {
    account: &'static Account,
    bytes: usize,
    /// What was live with them.
    live: usize,
}

impl Reservation {
    /// The memory is had: what follows is a buffer that is alive, until
    /// [`released`](Account::released).
    pub(crate) fn fulfil(self) {
        self.account.peak.fetch_max(self.live, Relaxed);
        std::mem::forget(self);
    }

    /// The system has no memory for them.
    pub(crate) fn refused(self, op: &'static str) -> Error {
        Error::OutOfMemory {
            op,
            device: self.account.device,
            bytes: self.bytes,
            live: self.live - self.bytes,
            limit: None,
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.account.released(self.bytes);
    }
}

impl Account {
    fn new(device: Device) -> Account {
        Account {
            device,
            live: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            limit: AtomicUsize::new(UNLIMITED),
            reserved: AtomicUsize::new(0),
            system_allocations: AtomicU64::new(0),
            copies: AtomicU64::new(0),
        }
    }

    pub(crate) fn device(&self) -> Device {
        self.device
    }

    pub(crate) fn stats(&self) -> MemoryStats {
        let limit = self.limit.load(Relaxed);
        MemoryStats {
            live: self.live.load(Relaxed),
            peak: self.peak.load(Relaxed),
            limit: (limit != UNLIMITED).then_some(limit),
            reserved: self.reserved.load(Relaxed),
            system_allocations: self.system_allocations.load(Relaxed),
            copies: self.copies.load(Relaxed),
        }
    }

    pub(crate) fn reset_peak(&self) {
        self.peak.store(self.live.load(Relaxed), Relaxed);
    }

    pub(crate) fn set_limit(&self, limit: Option<usize>) {
        self.limit.store(limit.unwrap_or(UNLIMITED), Relaxed);
    }

    /// Books `bytes` that are about to be allocated, unless the limit is in the way.
    ///
    /// Compare and exchange, and not an addition that is taken back: what is refused was live at no
    /// time, so that it cannot stand in the way of another thread's smaller request.
    pub(crate) fn reserve(
        &'static self,
        op: &'static str,
        bytes: usize,
    ) -> Result<Reservation, Error> {
        let limit = self.limit.load(Relaxed);
        let with = |live: usize| {
            let sum = live.checked_add(bytes)?;
            (sum <= limit || bytes == 0).then_some(sum)
        };
        match self.live.fetch_update(Relaxed, Relaxed, with) {
            Ok(live) => Ok(Reservation {
                account: self,
                bytes,
                live: live + bytes,
            }),
            Err(live) => Err(Error::OutOfMemory {
                op,
                device: self.device,
                bytes,
                live,
                limit: (limit != UNLIMITED).then_some(limit),
            }),
        }
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

    /// Books what a pool that the system keeps says of itself.
    #[cfg(feature = "cuda")]
    pub(crate) fn reserves(&self, bytes: usize) {
        if self.reserved.swap(bytes, Relaxed) < bytes {
            self.system_allocations.fetch_add(1, Relaxed);
        }
    }

    /// Books a write in place that had to copy a shared storage first.
    pub(crate) fn copied(&self) {
        self.copies.fetch_add(1, Relaxed);
    }
}

/// The account of `device`; made at its first use, and kept for good.
pub(crate) fn account(device: Device) -> &'static Account {
    static ACCOUNTS: Kept<Device, Account> = Kept::new();
    thread_local! {
        static LAST: Last<Device, Account> = const { Cell::new(None) };
    }
    ACCOUNTS.get(&LAST, device, Account::new)
}

/// The value that a thread has asked for last. A rank works on one device: the map is read once per
/// thread.
pub(crate) type Last<K, T> = Cell<Option<(K, &'static T)>>;

/// One value per key (per device), made at its first use and kept for good.
pub(crate) struct Kept<K, T: 'static>(LazyLock<RwLock<HashMap<K, &'static T>>>);

impl<K: Copy + Eq + Hash, T> Kept<K, T> {
    pub(crate) const fn new() -> Self {
        Kept(LazyLock::new(Default::default))
    }

    /// The value of `key`, which `make` makes if there is none yet.
    pub(crate) fn get(
        &self,
        last: &'static LocalKey<Last<K, T>>,
        key: K,
        make: impl FnOnce(K) -> T,
    ) -> &'static T {
        if let Some((known, value)) = last.get()
            && known == key
        {
            return value;
        }
        // A panic while the lock was held cannot leave the map half-changed.
        let map = self.0.read().unwrap_or_else(|e| e.into_inner());
        let known = map.get(&key).copied();
        drop(map);
        let value = known.unwrap_or_else(|| {
            let mut map = self.0.write().unwrap_or_else(|e| e.into_inner());
            map.entry(key)
                .or_insert_with(|| Box::leak(Box::new(make(key))))
        });
        last.set(Some((key, value)));
        value
    }
}
