//! [`Gpu`]: one card, from its first use to the end of the process.
#![allow(unsafe_code)]

use super::blas::Blas;
use super::driver::{driver, failed, forked};
use super::index::IndexFlag;
use super::issue::{MOST_BLOCKS, WAVES};
use super::lanes::Lanes;
use super::memory::Dead;
use super::modules::Modules;
use super::peers::Peers;
use super::staging::Staging;
use super::tables::Tables;
use crate::memory::{self, Account, Kept, Last};
use crate::{Device, Error, Result};
use cudarc::driver::result;
use cudarc::driver::sys::{
    self, CUdevice_attribute as Attribute, CUmemPool_attribute as PoolAttribute,
};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};

/// A handle of the driver: the name of an object that the driver keeps. Its functions take handles from
/// any thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Handle<T: DriverObject>(pub(super) T);

/// The types of the driver's handles, and no others: a pointer to memory is none.
///
/// # Safety
/// The type is a name of an object of the driver, which nobody dereferences.
pub(super) unsafe trait DriverObject: Copy {}

macro_rules! handles {
    ($($name:ident)*) => {
        $(
            // SAFETY: the CUDA driver API declares the type as an opaque handle.
            unsafe impl DriverObject for sys::$name {}
        )*
    };
}
handles!(CUcontext CUmemoryPool CUstream CUevent CUmodule CUfunction);

// SAFETY: handles are names of objects that the driver keeps; its functions may be called with them
// from any thread (CUDA driver API, "Driver API is thread-safe").
unsafe impl<T: DriverObject> Send for Handle<T> {}
// SAFETY: as above.
unsafe impl<T: DriverObject> Sync for Handle<T> {}

/// One card.
#[derive(Debug)]
pub(crate) struct Gpu {
    ordinal: usize,
    /// The driver's handle of the card.
    number: sys::CUdevice,
    context: Handle<sys::CUcontext>,
    /// Compute capability, as 90 for 9.0.
    capability: u32,
    /// Blocks that are of use in a launch.
    most_blocks: u32,
    pool: Handle<sys::CUmemoryPool>,
    account: &'static Account,
    /// The issue lock: who holds it may put work on the lanes.
    lanes: Mutex<Lanes>,
    /// Memory whose tensors died while somebody else held the issue lock.
    dead: Mutex<Vec<Dead>>,
    pub(super) modules: Modules,
    pub(super) staging: Staging,
    /// Those of tables, which the compute lane reads: a transfer that took its turn among them would wait for kernels.
    pub(super) table_staging: Staging,
    pub(super) tables: Tables,
    pub(super) index: IndexFlag,
    pub(super) blas: Blas,
    /// Whether products of `f32` may round their operands to TF32.
    tf32: AtomicBool,
    /// Whether cuBLASLt may apply its own ReLU and GELU.
    library_activations: AtomicBool,
    pub(super) peers: Peers,
}

/// The card `ordinal`, made ready at its first use. A failure is kept: a card that did not start
/// once is not tried again.
pub(crate) fn gpu(op: &'static str, ordinal: usize) -> Result<&'static Gpu> {
    static GPUS: Kept<usize, OnceLock<Result<Gpu>>> = Kept::new();
    thread_local! {
        static LAST: Last<usize, OnceLock<Result<Gpu>>> = const { Cell::new(None) };
    }
    let slot = GPUS.get(&LAST, ordinal, |_| OnceLock::new());
    match slot.get_or_init(|| Gpu::start(op, ordinal)) {
        Ok(gpu) => gpu.enter(op).map(|()| gpu),
        Err(e) => Err(e.clone().of(op)),
    }
}

impl Gpu {
    fn start(op: &'static str, ordinal: usize) -> Result<Gpu> {
        let device = Device::Cuda(ordinal);
        let unavailable = |reason: String| Error::DeviceUnavailable { op, device, reason };
        let driver = driver().map_err(|reason| unavailable(reason.into()))?;
        if let Some(reason) = forked() {
            return Err(unavailable(reason));
        }
        if ordinal >= driver.cards {
            let reason = match driver.cards {
                0 => "the CUDA driver found no card".into(),
                1 => "there is one card, cuda:0".into(),
                n => format!("there are {n} cards, cuda:0 to cuda:{}", n - 1),
            };
            return Err(unavailable(reason));
        }
        let failed = |what: &'static str| move |e| failed(op, device, what, e);
        let number = i32::try_from(ordinal).map_err(|_| unavailable("no such card".into()))?;
        let card = result::device::get(number).map_err(failed("finding the card"))?;
        let attribute = |which| {
            // SAFETY: `card` is a card's handle.
            unsafe { result::device::get_attribute(card, which) }
                .map_err(failed("asking the card for its properties"))
        };
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        if major < 8 {
            return Err(unavailable(format!(
                "its compute capability is {major}.{minor}, and 8.0 or later is needed"
            )));
        }
        let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let each = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR)?;
        let at_once = i64::from(multiprocessors) * i64::from(each);
        if attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? == 0 {
            return Err(unavailable("it has no memory pools".into()));
        }
        // SAFETY: `card` is a card's handle. The context is kept for the life of the process.
        let context =
            unsafe { result::primary_ctx::retain(card) }.map_err(failed("making a context"))?;
        // SAFETY: the context was just retained.
        unsafe { result::ctx::set_current(context) }.map_err(failed("entering the context"))?;
        // SAFETY: `card` is a card's handle.
        let pool = unsafe { result::device::get_default_mem_pool(card) }
            .map_err(failed("finding the memory pool"))?;
        set_up(pool).map_err(failed("setting up the memory pool"))?;
        let lanes = Lanes::new().map_err(failed("making the lanes"))?;
        Ok(Gpu {
            ordinal,
            number: card,
            context: Handle(context),
            capability: (major * 10 + minor).unsigned_abs(),
            most_blocks: (at_once.saturating_mul(WAVES)).clamp(1, MOST_BLOCKS as i64) as u32,
            pool: Handle(pool),
            account: memory::account(device),
            lanes: Mutex::new(lanes),
            dead: Mutex::default(),
            modules: Modules::default(),
            staging: Staging::default(),
            table_staging: Staging::default(),
            tables: Tables::default(),
            index: IndexFlag::default(),
            blas: Blas::default(),
            tf32: AtomicBool::new(false),
            library_activations: AtomicBool::new(false),
            peers: Peers::default(),
        })
    }

    /// Makes the card's context the calling thread's. Everything that uses the card or a lock of it does
    /// so first.
    pub(super) fn enter(&self, op: &'static str) -> Result<()> {
        if let Some(reason) = forked() {
            let device = self.device();
            return Err(Error::DeviceUnavailable { op, device, reason });
        }
        // Each time: other cards and other libraries make other contexts current.
        // SAFETY: the context lives as long as the process.
        unsafe { result::ctx::set_current(self.context.0) }
            .map_err(|e| self.failed(op, "entering the context", e))
    }

    pub(crate) fn device(&self) -> Device {
        Device::Cuda(self.ordinal)
    }

    pub(crate) fn account(&self) -> &'static Account {
        self.account
    }

    pub(super) fn capability(&self) -> u32 {
        self.capability
    }

    /// Blocks of a launch that keep the card busy: more would only queue.
    pub(super) fn most_blocks(&self) -> u32 {
        self.most_blocks
    }

    /// Whether products of `f32` may round their operands to TF32.
    pub(super) fn tf32(&self) -> bool {
        self.tf32.load(Relaxed)
    }

    pub(crate) fn allow_tf32(&self, allowed: bool) {
        self.tf32.store(allowed, Relaxed);
    }

    /// Whether cuBLASLt may apply its own ReLU and GELU.
    pub(crate) fn library_activations(&self) -> bool {
        self.library_activations.load(Relaxed)
    }

    pub(crate) fn allow_library_activations(&self, allowed: bool) {
        self.library_activations.store(allowed, Relaxed);
    }

    pub(super) fn ordinal(&self) -> usize {
        self.ordinal
    }

    pub(super) fn number(&self) -> sys::CUdevice {
        self.number
    }

    pub(super) fn context(&self) -> sys::CUcontext {
        self.context.0
    }

    pub(super) fn pool(&self) -> sys::CUmemoryPool {
        self.pool.0
    }

    pub(super) fn failed(
        &self,
        op: &'static str,
        what: &str,
        e: cudarc::driver::result::DriverError,
    ) -> Error {
        failed(op, self.device(), what, e)
    }

    /// The issue lock.
    pub(super) fn lock(&'static self) -> Issuing {
        // A panic while the lock was held leaves the lanes usable: each step of theirs is one call.
        let lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        Issuing {
            gpu: self,
            lanes: Some(lanes),
        }
    }

    /// Frees the memory of a storage that died, now or when the issue lock is free.
    pub(super) fn bury(&'static self, dead: Dead) {
        if forked().is_some() {
            return; // the memory is the parent's
        }
        self.dead().push(dead);
        self.bury_all();
    }

    /// Frees what has died, unless somebody holds the issue lock, who then does it.
    fn bury_all(&'static self) {
        while !self.dead().is_empty() {
            let mut lanes = match self.lanes.try_lock() {
                Ok(lanes) => lanes,
                Err(TryLockError::Poisoned(lanes)) => lanes.into_inner(),
                // Who holds the lock looks at the list after letting go of it.
                Err(TryLockError::WouldBlock) => return,
            };
            self.bury_in(&mut lanes);
        }
    }

    fn dead(&self) -> MutexGuard<'_, Vec<Dead>> {
        // A panic while the lock was held cannot leave the list half-changed.
        self.dead.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frees what has died.
    fn bury_in(&self, lanes: &mut Lanes) {
        let dead = std::mem::take(&mut *self.dead());
        if self.enter("drop").is_ok() {
            dead.into_iter().for_each(|dead| dead.free(lanes));
        }
    }
}

/// Settings of a card's memory pool.
fn set_up(pool: sys::CUmemoryPool) -> std::result::Result<(), result::DriverError> {
    let (mut threshold, mut dependencies) = (u64::MAX, 0i32);
    let attributes = [
        // The pool keeps what is freed.
        (
            PoolAttribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
            (&raw mut threshold).cast(),
        ),
        // By default the pool may hand memory that was freed on one lane to another one, and let that
        // one wait for the free. Nobody would see that wait: it would tie kernels to transfers and
        // collectives that they have nothing to do with, and the memory that it saves is that of one
        // step, once. Memory whose free is done, or that the lane has waited for, is still handed over.
        (
            PoolAttribute::CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES,
            (&raw mut dependencies).cast(),
        ),
    ];
    attributes.into_iter().try_for_each(|(attribute, value)| {
        // SAFETY: the pool is a card's; the value is a u64 for the threshold, and an int for the other.
        unsafe { sys::cuMemPoolSetAttribute(pool, attribute, value) }.result()
    })
}

/// The issue lock of a card, held.
#[derive(Debug)]
pub(crate) struct Issuing {
    gpu: &'static Gpu,
    /// There until the drop.
    lanes: Option<MutexGuard<'static, Lanes>>,
}

impl Issuing {
    pub(super) fn gpu(&self) -> &'static Gpu {
        self.gpu
    }

    pub(super) fn lanes(&mut self) -> &mut Lanes {
        match &mut self.lanes {
            Some(lanes) => lanes,
            None => unreachable!("the issue lock is held until the drop"),
        }
    }
}

impl Drop for Issuing {
    fn drop(&mut self) {
        self.lanes = None;
        // What has died while the lock was held, in this thread or in another one.
        self.gpu.bury_all();
    }
}
