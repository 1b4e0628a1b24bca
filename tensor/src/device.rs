//! [`Device`]: where a tensor lives.

use crate::cpu::home::home;
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::error::{Error, Result};
use crate::memory::{self, Account, MemoryStats};
use std::fmt;
use std::str::FromStr;

/// Where a tensor lives: `cpu:0`, `cpu:1`, …, `cuda:0`, ….
///
/// CPU devices are virtual: every index exists, with a memory account and a buffer pool of its
/// own. CUDA devices always exist as values; using one without the card is
/// [`Error::DeviceUnavailable`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Device {
    /// A virtual CPU device.
    Cpu(usize),
    /// A CUDA device by ordinal. A process that was forked from one that has used a card cannot use
    /// cards: there, it is [`Error::DeviceUnavailable`].
    Cuda(usize),
}

impl Device {
    /// The virtual CPU device `index`.
    pub const fn cpu(index: usize) -> Device {
        Device::Cpu(index)
    }

    /// The CUDA device `ordinal`.
    pub const fn cuda(ordinal: usize) -> Device {
        Device::Cuda(ordinal)
    }

    /// Whether it is a virtual CPU device, so that its memory is the host's.
    pub const fn is_cpu(self) -> bool {
        matches!(self, Device::Cpu(_))
    }

    /// Live, peak and reserved bytes of this device, and its limit.
    ///
    /// # Errors
    /// [`Error::DeviceUnavailable`] for a device that this build or machine does not have.
    pub fn memory(self) -> Result<MemoryStats> {
        Ok(self.account("memory")?.stats())
    }

    /// Sets the peak of [`memory`](Device::memory) to what is live now.
    ///
    /// # Errors
    /// As [`memory`](Device::memory).
    pub fn reset_peak(self) -> Result<()> {
        self.account("reset_peak")?.reset_peak();
        Ok(())
    }

    /// Sets or lifts the limit of what may be live on this device, in bytes (PyTorch:
    /// `set_per_process_memory_fraction`). `None`, which is where every device starts, is no limit.
    ///
    /// What would make [`live`](MemoryStats::live) larger than the limit is [`Error::OutOfMemory`]:
    /// nothing is allocated then, and the same call works once tensors were dropped or the limit was
    /// raised. The check is exact to the byte, on any number of threads. A limit below what is live
    /// already frees nothing. Scratch memory inside a CPU kernel is no tensor, and is not counted.
    ///
    /// ```
    /// use phalanx_tensor::{DType, Device, Error, Tensor};
    ///
    /// let device = Device::cpu(9);
    /// device.set_memory_limit(Some(1 << 20))?;
    /// let half = Tensor::zeros([1 << 17], DType::F32, device)?;
    /// let e = Tensor::zeros([1 << 18], DType::F32, device).unwrap_err();
    /// assert_eq!(
    ///     e.to_string(),
    ///     "zeros: out of memory on cpu:9: 1048576 bytes asked for, 524288 live; \
    ///      the limit set for this device is 1048576 bytes"
    /// );
    /// device.set_memory_limit(None)?;
    /// Tensor::zeros([1 << 18], DType::F32, device)?;
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`memory`](Device::memory).
    pub fn set_memory_limit(self, limit: Option<usize>) -> Result<()> {
        self.account("set_memory_limit")?.set_limit(limit);
        Ok(())
    }

    /// Lets products of `f32` matrices on a card, and convolutions, which are made of them, round their
    /// operands to TF32, which has the 10 bits of mantissa of `f16` and the range of `f32`: several times
    /// as fast. Off at first (PyTorch: `torch.backends.cuda.matmul.allow_tf32`). It changes nothing on a
    /// CPU.
    ///
    /// # Errors
    /// As [`memory`](Device::memory).
    pub fn allow_tf32(self, allowed: bool) -> Result<()> {
        let _ = allowed;
        match self {
            Device::Cpu(_) => Ok(()),
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) => {
                cuda::gpu("allow_tf32", ordinal)?.allow_tf32(allowed);
                Ok(())
            }
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => Err(self.unavailable("allow_tf32")),
        }
    }

    /// Lets cuBLASLt apply its own ReLU and GELU (the formula with tanh) to the sums of a
    /// [`linear`](crate::Tensor::linear) of `f32` or a half type, which saves a pass over the result,
    /// also where GELU's argument is kept for its gradient. Off at first: cuBLASLt documents neither
    /// whether its ReLU lets NaN pass nor how far its GELU is from the formula (PyTorch:
    /// `_addmm_activation`). It changes nothing on a CPU.
    ///
    /// # Errors
    /// As [`memory`](Device::memory).
    pub fn allow_library_activations(self, allowed: bool) -> Result<()> {
        let _ = allowed;
        match self {
            Device::Cpu(_) => Ok(()),
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) => {
                let gpu = cuda::gpu("allow_library_activations", ordinal)?;
                gpu.allow_library_activations(allowed);
                Ok(())
            }
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => Err(self.unavailable("allow_library_activations")),
        }
    }

    /// Gives the pool's unused buffers back to the system (PyTorch: `empty_cache`).
    ///
    /// # Errors
    /// As [`memory`](Device::memory).
    pub fn empty_cache(self) -> Result<()> {
        const OP: &str = "empty_cache";
        match self {
            Device::Cpu(index) => home(index).empty_cache(),
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) => cuda::gpu(OP, ordinal)?.empty_cache(OP)?,
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => return Err(self.unavailable(OP)),
        }
        Ok(())
    }

    /// Holds the calling thread until the device has done everything that was asked of it (PyTorch:
    /// `torch.cuda.synchronize`). Reading values does that by itself. CPU devices have always done
    /// everything.
    ///
    /// # Errors
    /// [`Error::DeviceUnavailable`], [`Error::DeviceFailed`]; [`Error::IndexOutOfRange`] where an
    /// operation on a card has met such an index.
    pub fn synchronize(self) -> Result<()> {
        const OP: &str = "synchronize";
        match self {
            Device::Cpu(_) => Ok(()),
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) => cuda::gpu(OP, ordinal)?.synchronize(OP),
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => Err(self.unavailable(OP)),
        }
    }

    /// Forgets that an operation on this card has met an index out of range, so that values can be
    /// copied to the host again. What was computed on the card since is undefined. CPU devices have
    /// nothing to forget: there the operation itself gives the error.
    ///
    /// # Errors
    /// [`Error::DeviceUnavailable`], [`Error::DeviceFailed`].
    pub fn clear_index_error(self) -> Result<()> {
        const OP: &str = "clear_index_error";
        match self {
            Device::Cpu(_) => Ok(()),
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) => cuda::gpu(OP, ordinal)?.clear_index_error(OP),
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => Err(self.unavailable(OP)),
        }
    }

    /// Compiles and loads every kernel that there is for this card, so that none is loaded while
    /// others run: loading one may wait for the card, and so for a collective that waits for this
    /// program. CPU devices have nothing to load.
    ///
    /// A driver of CUDA 12.4 or later is asked to load every function. An older one that loads lazily,
    /// which is its default, still does so when a function is first used: there, start the program
    /// with `CUDA_MODULE_LOADING=EAGER`.
    ///
    /// The kernels of cuBLASLt are not among them: that library loads one when a product first needs it.
    ///
    /// # Errors
    /// [`Error::DeviceUnavailable`] where a kernel cannot be compiled or loaded.
    pub fn load_kernels(self) -> Result<()> {
        const OP: &str = "load_kernels";
        match self {
            Device::Cpu(_) => Ok(()),
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) => cuda::gpu(OP, ordinal)?.load_kernels(OP),
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => Err(self.unavailable(OP)),
        }
    }

    fn account(self, op: &'static str) -> Result<&'static Account> {
        match self {
            Device::Cpu(_) => Ok(memory::account(self)),
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) => Ok(cuda::gpu(op, ordinal)?.account()),
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => Err(self.unavailable(op)),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu(i) => write!(f, "cpu:{i}"),
            Device::Cuda(i) => write!(f, "cuda:{i}"),
        }
    }
}

impl FromStr for Device {
    type Err = Error;

    /// Reads `cpu`, `cpu:1`, `cuda`, `cuda:1`; a missing index is 0.
    fn from_str(s: &str) -> Result<Device> {
        let (kind, index) = s.split_once(':').unwrap_or((s, "0"));
        match (kind, index.parse()) {
            ("cpu", Ok(i)) => Ok(Device::Cpu(i)),
            ("cuda", Ok(i)) => Ok(Device::Cuda(i)),
            _ => Err(Error::InvalidArgument {
                op: "Device::from_str",
                reason: format!("`{s}` is no device; write cpu, cpu:1, cuda or cuda:1"),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        for d in [Device::cpu(0), Device::cpu(17), Device::cuda(3)] {
            assert_eq!(d.to_string().parse::<Device>().unwrap(), d);
        }
        assert_eq!("cuda".parse::<Device>().unwrap(), Device::cuda(0));
        assert!("tpu:0".parse::<Device>().is_err() && "cpu:x".parse::<Device>().is_err());
    }

    #[test]
    fn a_missing_card_is_an_error() {
        let e = Device::cuda(63).memory().unwrap_err();
        assert!(
            matches!(
                e,
                Error::DeviceUnavailable {
                    device: Device::Cuda(63),
                    ..
                }
            ),
            "{e}"
        );
    }
}
