//! [`Storage`]: the memory behind tensors, one variant for each kind of device, and the two doors to
//! it: [`on`] for computation, [`across`] for transfers. There is no third.

mod across;
mod fault;
mod on;
mod operand;

pub(crate) use across::{Source, Target, across};
pub use fault::WriteFault;
pub(crate) use on::{On, on};
#[cfg(feature = "cuda")]
pub(crate) use operand::{Operand, Use};
pub(crate) use operand::{inout, inouts, out};

use crate::cpu::buffer::Buffer;
#[cfg(feature = "cuda")]
use crate::cuda::{CudaStorage, Lane};
use crate::memory::Account;
use crate::{DType, Device, Element, Result};
use fault::Attached;

/// The memory behind one or more tensors, and what may have become of its last write.
#[derive(Debug)]
pub(crate) struct Storage {
    memory: Memory,
    fault: Attached,
}

/// One variant for each kind of device.
#[derive(Debug)]
pub(crate) enum Memory {
    /// Memory of a virtual CPU device.
    Cpu(CpuStorage),
    /// Memory of a CUDA device.
    #[cfg(feature = "cuda")]
    Cuda(CudaStorage),
}

/// Elements of one type in a CPU buffer.
#[derive(Debug)]
pub(crate) struct CpuStorage {
    buffer: Buffer,
    dtype: DType,
}

impl CpuStorage {
    /// Room for `len` elements with arbitrary contents on `cpu:index`.
    pub(crate) fn new(
        op: &'static str,
        index: usize,
        dtype: DType,
        len: usize,
    ) -> Result<CpuStorage> {
        // Saturation fails in the allocation, as out of memory.
        let buffer = Buffer::new(op, index, len.saturating_mul(dtype.size()))?;
        Ok(CpuStorage { buffer, dtype })
    }

    /// All elements.
    ///
    /// # Panics
    /// If `T` is not the storage's element type: the dispatch above has chosen it.
    pub(crate) fn as_slice<T: Element>(&self) -> &[T] {
        assert_eq!(T::DTYPE, self.dtype);
        self.buffer.as_slice()
    }

    /// All elements as unsigned integers of their size: `U` is as large as an element.
    pub(crate) fn as_raw<U: bytemuck::Pod>(&self) -> &[U] {
        self.buffer.as_slice()
    }

    /// As [`as_raw`](CpuStorage::as_raw), for writing.
    pub(crate) fn as_raw_mut<U: bytemuck::Pod>(&mut self) -> &mut [U] {
        self.buffer.as_mut_slice()
    }
}

/// Who writes a storage first, and so in whose order a card hands out its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writer {
    /// A kernel.
    Kernel,
    /// A transfer from another device or from the host, which then waits for no kernel.
    Transfer,
}

impl Storage {
    /// Room for `len` elements with arbitrary contents on `device`.
    pub(crate) fn new(
        op: &'static str,
        device: Device,
        dtype: DType,
        len: usize,
        writer: Writer,
    ) -> Result<Storage> {
        let memory = match device {
            Device::Cpu(index) => {
                _ = writer; // the host does one thing after another
                Memory::Cpu(CpuStorage::new(op, index, dtype, len)?)
            }
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) => {
                let lane = match writer {
                    Writer::Kernel => Lane::Compute,
                    Writer::Transfer => Lane::Copy,
                };
                Memory::Cuda(CudaStorage::new(op, ordinal, dtype, len, lane)?)
            }
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => return Err(device.unavailable(op)),
        };
        Ok(Storage {
            memory,
            fault: Attached::default(),
        })
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    pub(crate) fn device(&self) -> Device {
        match &self.memory {
            Memory::Cpu(s) => s.buffer.device(),
            #[cfg(feature = "cuda")]
            Memory::Cuda(s) => s.device(),
        }
    }

    /// The account of its device.
    pub(crate) fn account(&self) -> &'static Account {
        match &self.memory {
            Memory::Cpu(s) => s.buffer.account(),
            #[cfg(feature = "cuda")]
            Memory::Cuda(s) => s.account(),
        }
    }

    pub(crate) fn dtype(&self) -> DType {
        match &self.memory {
            Memory::Cpu(s) => s.dtype,
            #[cfg(feature = "cuda")]
            Memory::Cuda(s) => s.dtype(),
        }
    }

    /// Where its bytes start in its device's memory.
    pub(crate) fn address(&self) -> u64 {
        match &self.memory {
            Memory::Cpu(s) => s.as_raw::<u8>().as_ptr().addr() as u64,
            #[cfg(feature = "cuda")]
            Memory::Cuda(s) => s.address(),
        }
    }

    /// The elements in the host's memory, which the operation `op` wants to read as they lie.
    ///
    /// # Errors
    /// [`Error::DeviceUnavailable`](crate::Error::DeviceUnavailable) where they are on a card,
    /// [`Error::LostWrite`](crate::Error::LostWrite).
    pub(crate) fn on_host(&self, op: &'static str) -> Result<&CpuStorage> {
        self.expect_told(op)?;
        match &self.memory {
            Memory::Cpu(s) => Ok(s),
            #[cfg(feature = "cuda")]
            Memory::Cuda(s) => Err(not_on_host(op, s.device())),
        }
    }

    /// As [`on_host`](Storage::on_host), for writing.
    pub(crate) fn on_host_mut(&mut self, op: &'static str) -> Result<&mut CpuStorage> {
        self.expect_told(op)?;
        match &mut self.memory {
            Memory::Cpu(s) => Ok(s),
            #[cfg(feature = "cuda")]
            Memory::Cuda(s) => Err(not_on_host(op, s.device())),
        }
    }

    /// The storage of a CPU kernel's operand.
    ///
    /// # Panics
    /// If it is not on a CPU device: [`on`] has chosen the kernel.
    pub(crate) fn cpu(&self) -> &CpuStorage {
        match &self.memory {
            Memory::Cpu(s) => s,
            #[cfg(feature = "cuda")]
            Memory::Cuda(_) => unreachable!("a CPU kernel was given an operand on a card"),
        }
    }
}

#[cfg(feature = "cuda")]
fn not_on_host(op: &'static str, device: Device) -> crate::Error {
    crate::Error::DeviceUnavailable {
        op,
        device,
        reason: "its memory is not the host's; copy the elements with to_vec or to_device".into(),
    }
}
