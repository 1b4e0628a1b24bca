//! [`CudaStorage`]: the memory of a tensor on a card, allocated and freed in stream order, and the
//! stamps of what last used it.
#![allow(unsafe_code)]

use super::gpu::{Gpu, Issuing, gpu};
use super::lanes::{LANES, Lane, Lanes, Stamp};
use super::staging::Staging;
use crate::memory::Account;
use crate::{DType, Device, Result};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{
    CUdeviceptr, CUmemPool_attribute as PoolAttribute, CUresult, cuMemPoolGetAttribute,
};
use std::sync::{Mutex, PoisonError};

/// Elements of one type in a card's memory.
#[derive(Debug)]
pub(crate) struct CudaStorage {
    gpu: &'static Gpu,
    dtype: DType,
    /// 0 where there is no element.
    address: CUdeviceptr,
    bytes: usize,
    uses: Mutex<Uses>,
}

/// What was last issued on a piece of memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Uses {
    /// The last write; the allocation counts as one.
    write: Stamp,
    /// The last reads since, by lane; 0 for none.
    reads: [u64; LANES],
    /// The lane of the last use.
    last: Lane,
}

const ALL: [Lane; LANES] = [Lane::Compute, Lane::Copy, Lane::Comm];

impl Uses {
    /// Of memory whose last write is the operation `write`.
    pub(super) fn new(write: Stamp) -> Uses {
        Uses {
            write,
            reads: [0; LANES],
            last: write.lane,
        }
    }

    /// Everything that the next write comes after.
    fn all(&self) -> impl Iterator<Item = Stamp> {
        let reads = ALL.into_iter().zip(self.reads);
        let reads = reads.filter(|(_, number)| *number > 0);
        let reads = reads.map(|(lane, number)| Stamp { lane, number });
        std::iter::once(self.write).chain(reads)
    }

    /// Lets `lane` wait for the last write.
    pub(super) fn before_read(&self, lanes: &mut Lanes, lane: Lane) -> Result<(), DriverError> {
        lanes.wait(lane, self.write)
    }

    /// Lets `lane` wait for the last write and for all reads since.
    pub(super) fn before_write(&self, lanes: &mut Lanes, lane: Lane) -> Result<(), DriverError> {
        self.all().try_for_each(|stamp| lanes.wait(lane, stamp))
    }

    pub(super) fn written(&mut self, stamp: Stamp) {
        *self = Uses::new(stamp);
    }

    pub(super) fn read(&mut self, stamp: Stamp) {
        self.reads[stamp.lane as usize] = stamp.number;
        self.last = stamp.lane;
    }

    /// The lane on which the memory is freed. That is one which has waited for all uses already, so that
    /// no lane waits for the sake of freeing: most often that of the last use, as the compute lane's for
    /// what it has read of an upload. Where every lane would have to wait, it is not the compute lane:
    /// memory that a collective used is freed behind that.
    fn grave(&self, lanes: &Lanes) -> Lane {
        let used = |lane: &Lane| self.all().any(|stamp| stamp.lane == *lane);
        let ready = |lane: &Lane| self.all().all(|stamp| lanes.has_seen(*lane, stamp));
        let mut first = [self.last].into_iter().chain(ALL);
        let mut others = [Lane::Comm, Lane::Copy].into_iter();
        let ready = first.find(|lane| used(lane) && ready(lane));
        ready.or_else(|| others.find(used)).unwrap_or(Lane::Compute)
    }
}

impl CudaStorage {
    /// Room for `len` elements with arbitrary contents on `cuda:ordinal`, to be used first on `lane`.
    pub(crate) fn new(
        op: &'static str,
        ordinal: usize,
        dtype: DType,
        len: usize,
        lane: Lane,
    ) -> Result<CudaStorage> {
        let gpu = gpu(op, ordinal)?;
        // Saturation fails in the allocation, as out of memory.
        let bytes = len.saturating_mul(dtype.size());
        let reservation = gpu.account().reserve(op, bytes)?;
        if isize::try_from(bytes).is_err() {
            return Err(reservation.refused(op));
        }
        let mut issuing = gpu.lock();
        let mut address = match bytes {
            0 => Ok(0),
            _ => allocate(&mut issuing, lane, bytes),
        };
        if let Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) = address {
            // Others may issue while this waits, and what died meanwhile is freed.
            drop(issuing);
            gpu.wait_for_all(op)?;
            issuing = gpu.lock();
            address = trim(gpu).and_then(|()| allocate(&mut issuing, lane, bytes));
        }
        let address = match address {
            Ok(address) => address,
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                return Err(reservation.refused(op));
            }
            Err(e) => return Err(gpu.failed(op, "allocating memory", e)),
        };
        reservation.fulfil();
        let write = issuing.lanes().next(lane);
        let storage = CudaStorage {
            gpu,
            dtype,
            address,
            bytes,
            uses: Mutex::new(Uses::new(write)),
        };
        let issued = issuing.lanes().issued(write);
        issued.map_err(|e| gpu.failed(op, "allocating memory", e))?;
        Ok(storage)
    }

    pub(crate) fn device(&self) -> Device {
        self.gpu.device()
    }

    pub(crate) fn account(&self) -> &'static Account {
        self.gpu.account()
    }

    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(super) fn gpu(&self) -> &'static Gpu {
        self.gpu
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The address of the first element.
    pub(crate) fn address(&self) -> CUdeviceptr {
        self.address
    }

    pub(super) fn uses(&self) -> Uses {
        *self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn written(&self, stamp: Stamp) {
        self.uses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .written(stamp);
    }

    pub(super) fn read(&self, stamp: Stamp) {
        self.uses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .read(stamp);
    }
}

impl Drop for CudaStorage {
    fn drop(&mut self) {
        self.gpu.account().released(self.bytes);
        if self.address != 0 {
            self.gpu.bury(Dead {
                address: self.address,
                uses: self.uses(),
            });
        }
    }
}

/// Memory that no tensor holds any more.
#[derive(Debug)]
pub(super) struct Dead {
    address: CUdeviceptr,
    uses: Uses,
}

impl Dead {
    /// Frees it, in stream order behind everything that uses it.
    pub(super) fn free(self, lanes: &mut Lanes) {
        let lane = self.uses.grave(lanes);
        // A card that fails here has failed for good, and its next operation says so. Memory whose
        // users could not be waited for is not freed: better lost than handed out while in use.
        if self.uses.before_write(lanes, lane).is_ok() {
            // SAFETY: the memory was allocated on this card, no tensor holds it, and the lane waits
            // for all operations that use it.
            let _ = unsafe { result::free_async(self.address, lanes.stream(lane)) };
        }
    }
}

impl Issuing {
    /// Memory for the operation `stamp` alone. It counts as its write, and is freed in stream order
    /// behind it.
    pub(super) fn scratch(
        &mut self,
        op: &'static str,
        stamp: Stamp,
        bytes: usize,
    ) -> Result<CudaStorage> {
        let gpu = self.gpu();
        let reservation = gpu.account().reserve(op, bytes)?;
        let failed = |e| gpu.failed(op, "allocating scratch memory", e);
        let mut address = allocate(self, stamp.lane, bytes);
        if let Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) = address {
            // With the issue lock held: what is on the lanes needs nobody who would have to take it.
            for event in self.lanes().all_passed().map_err(failed)? {
                event.wait().map_err(failed)?;
            }
            address = trim(gpu).and_then(|()| allocate(self, stamp.lane, bytes));
        }
        match address {
            Ok(address) => {
                reservation.fulfil();
                Ok(CudaStorage {
                    gpu,
                    dtype: DType::U8,
                    address,
                    bytes,
                    uses: Mutex::new(Uses::new(stamp)),
                })
            }
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Err(reservation.refused(op)),
            Err(e) => Err(failed(e)),
        }
    }
}

/// Memory of the card's pool.
fn allocate(issuing: &mut Issuing, lane: Lane, bytes: usize) -> Result<CUdeviceptr, DriverError> {
    let gpu = issuing.gpu();
    let lanes = issuing.lanes();
    // SAFETY: the stream belongs to the card, whose context is current.
    let address = unsafe { result::malloc_async(lanes.stream(lane), bytes) }?;
    // What the pool says of itself is for the account's figures alone.
    if let Ok(reserved) = reserved(gpu) {
        gpu.account().reserves(reserved);
    }
    Ok(address)
}

/// The bytes that the card's pool holds from the system.
fn reserved(gpu: &Gpu) -> Result<usize, DriverError> {
    let mut bytes = 0u64;
    let which = PoolAttribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT;
    // SAFETY: the attribute's value is a u64.
    unsafe { cuMemPoolGetAttribute(gpu.pool(), which, (&raw mut bytes).cast()) }.result()?;
    Ok(usize::try_from(bytes).unwrap_or(usize::MAX))
}

fn trim(gpu: &Gpu) -> Result<(), DriverError> {
    // SAFETY: the pool is the card's default pool.
    unsafe { result::mem_pool::trim_to(gpu.pool(), 0) }
}

impl Gpu {
    /// Gives the memory that no tensor uses back to the system.
    pub(crate) fn empty_cache(&'static self, op: &'static str) -> Result<()> {
        let failed = |e| self.failed(op, "giving memory back", e);
        // Whatever uses these buffers was issued before, so that it is over after the wait.
        let idle = [&self.staging, &self.table_staging].map(Staging::drain);
        self.wait_for_all(op)?;
        idle.into_iter()
            .try_for_each(Staging::free)
            .map_err(failed)?;
        let _issuing = self.lock();
        trim(self).map_err(failed)?;
        self.account().reserves(reserved(self).map_err(failed)?);
        Ok(())
    }
}
