//! [`Storage`]: the memory behind tensors, one variant per kind of device.

use crate::cpu::buffer::Buffer;
use crate::{DType, Device, Element, Error, Result};

/// The memory behind one or more tensors.
#[derive(Debug)]
pub(crate) enum Storage {
    /// Memory of a virtual CPU device.
    Cpu(CpuStorage),
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

    /// All elements, for writing.
    ///
    /// # Panics
    /// As [`as_slice`](CpuStorage::as_slice).
    pub(crate) fn as_mut_slice<T: Element>(&mut self) -> &mut [T] {
        assert_eq!(T::DTYPE, self.dtype);
        self.buffer.as_mut_slice()
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

impl Storage {
    /// Room for `len` elements with arbitrary contents on `device`.
    pub(crate) fn new(
        op: &'static str,
        device: Device,
        dtype: DType,
        len: usize,
    ) -> Result<Storage> {
        match device {
            Device::Cpu(index) => CpuStorage::new(op, index, dtype, len).map(Storage::Cpu),
            Device::Cuda(_) => Err(Error::DeviceUnavailable {
                op,
                device,
                reason: "this build has no CUDA backend".into(),
            }),
        }
    }

    pub(crate) fn device(&self) -> Device {
        match self {
            Storage::Cpu(s) => s.buffer.device(),
        }
    }

    pub(crate) fn dtype(&self) -> DType {
        match self {
            Storage::Cpu(s) => s.dtype,
        }
    }
}
