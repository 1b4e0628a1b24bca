//! Copies that are meant: into a storage of its own, and into one that is there and keeps its
//! address.

use crate::storage::{Source, Target, across};
use crate::{Error, Result, Tensor};

impl Tensor {
    /// The same elements, contiguous, in a storage of its own (PyTorch: `clone`). Rust's `clone`
    /// shares the storage, and costs no copy.
    ///
    /// ```
    /// # use phalanx_tensor::{Device, Tensor};
    /// let t = Tensor::from_slice(&[1.0f32, 2.0], [2], Device::cpu(0))?;
    /// assert!(t.copy()?.is_unique() && t.is_unique());
    /// # Ok::<(), phalanx_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`empty`](Tensor::empty).
    pub fn copy(&self) -> Result<Tensor> {
        self.copy_to("copy", self.device())
    }

    /// Writes the elements of `other`, which may lie on another device, over the tensor's own
    /// (PyTorch: `copy_`). The tensor keeps its storage, and so its address, where nobody shares it;
    /// a shared one is left to the others, and the tensor gets a new one, which
    /// [`MemoryStats::copies`](crate::MemoryStats::copies) counts.
    ///
    /// ```
    /// # use phalanx_tensor::{DType, Device, Tensor};
    /// let mut t = Tensor::zeros([2], DType::F32, Device::cpu(0))?;
    /// t.copy_from(&Tensor::from_slice(&[1.0f32, 2.0], [2], Device::cpu(1))?)?;
    /// assert_eq!(t.to_vec::<f32>()?, [1.0, 2.0]);
    /// assert_eq!(t.device(), Device::cpu(0));
    /// # Ok::<(), phalanx_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`], [`Error::DTypeMismatch`]; [`Error::OutOfMemory`] where the storage
    /// is shared or the view has gaps; those of the devices. Where a copy between devices broke off, the
    /// tensor's last write is lost; else the tensor is as it was then.
    pub fn copy_from(&mut self, other: &Tensor) -> Result<()> {
        const OP: &str = "copy_from";
        self.expect_same_shape(
            OP,
            other,
            "a copy has the shape of the tensor that it replaces",
        )?;
        if self.dtype() != other.dtype() {
            return Err(Error::DTypeMismatch {
                op: OP,
                lhs: self.dtype(),
                rhs: other.dtype(),
            });
        }
        if !self.is_unique() || !self.is_contiguous() {
            // What would be overwritten need not be copied.
            let copy = other.copy_to(OP, self.device())?;
            self.replace(copy);
            return Ok(());
        }
        // What cannot be read is refused before the old contents are given up.
        other.storage().expect_written(OP)?;
        self.storage().rewritten();
        let copied = across(OP, Source::Tensor(other), Target::Tensor(self, 0));
        if copied.is_err() {
            self.storage().broke_off(OP);
        }
        copied
    }

    /// Writes the elements of `other`, in row-major order, over those of the tensor from the one at
    /// `start` on, counted in row-major order; the rest stays (PyTorch:
    /// `t.view(-1)[start..][..n].copy_(other)`). `other` may lie on another device. Where somebody
    /// shares the storage it is copied first, as [`make_unique`](Tensor::make_unique) has it.
    ///
    /// ```
    /// # use phalanx_tensor::{DType, Device, Tensor};
    /// let mut flat = Tensor::zeros([4], DType::F32, Device::cpu(0))?;
    /// flat.write_at(1, &Tensor::from_slice(&[1.0f32, 2.0], [2, 1], Device::cpu(0))?)?;
    /// assert_eq!(flat.to_vec::<f32>()?, [0.0, 1.0, 2.0, 0.0]);
    /// # Ok::<(), phalanx_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] where the elements do not fit behind `start`,
    /// [`Error::DTypeMismatch`]; [`Error::OutOfMemory`]; those of the devices. Where a copy between devices
    /// broke off, the tensor's last write is lost; else the tensor is as it was then.
    pub fn write_at(&mut self, start: usize, other: &Tensor) -> Result<()> {
        const OP: &str = "write_at";
        if self.dtype() != other.dtype() {
            return Err(Error::DTypeMismatch {
                op: OP,
                lhs: self.dtype(),
                rhs: other.dtype(),
            });
        }
        self.expect_room_at(OP, start, other)?;
        other.storage().expect_written(OP)?;
        self.own(OP)?;
        self.storage().expect_written(OP)?;
        let copied = across(OP, Source::Tensor(other), Target::Tensor(self, start));
        if copied.is_err() {
            self.storage().broke_off(OP);
        }
        copied
    }

    /// The elements of `other` fit into the tensor from the one at `start` on.
    pub(crate) fn expect_room_at(
        &self,
        op: &'static str,
        start: usize,
        other: &Tensor,
    ) -> Result<()> {
        let end = start.checked_add(other.numel());
        if end.is_some_and(|end| end <= self.numel()) {
            return Ok(());
        }
        Err(Error::ShapeMismatch {
            op,
            lhs: self.shape().clone(),
            rhs: other.shape().clone(),
            reason: "the second does not fit into the first from there on",
        })
    }

    /// Makes the tensor contiguous and the only holder of its storage, by a copy where it is not.
    /// Writing in place needs no memory afterwards, and so cannot fail for want of it.
    ///
    /// # Errors
    /// As [`empty`](Tensor::empty).
    pub fn make_unique(&mut self) -> Result<()> {
        self.own("make_unique")
    }
}
