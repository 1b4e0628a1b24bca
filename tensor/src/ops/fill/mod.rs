//! Tensors that are filled with one number, or with one after the other.

mod cpu;

use crate::storage::Storage;
use crate::{DType, Device, Result, Shape, Tensor};

impl Tensor {
    /// A tensor whose elements are all `value`.
    ///
    /// ```
    /// # use phalanx_tensor::{DType, Device, Tensor};
    /// let t = Tensor::full([2, 2], 0.5, DType::F64, Device::cpu(0))?;
    /// assert_eq!(t.to_vec::<f64>()?, [0.5; 4]);
    /// # Ok::<(), phalanx_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`empty`](Tensor::empty).
    pub fn full(
        shape: impl Into<Shape>,
        value: f64,
        dtype: DType,
        device: Device,
    ) -> Result<Tensor> {
        let mut out = Tensor::allocate("full", shape.into(), dtype, device)?;
        match out.storage() {
            Storage::Cpu(_) => cpu::full(value, &mut out)?,
        }
        Ok(out)
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// As [`empty`](Tensor::empty).
    pub fn zeros(shape: impl Into<Shape>, dtype: DType, device: Device) -> Result<Tensor> {
        Tensor::zeros_for("zeros", shape.into(), dtype, device)
    }

    /// As [`zeros`](Tensor::zeros), on behalf of the operation `op`.
    pub(crate) fn zeros_for(
        op: &'static str,
        shape: Shape,
        dtype: DType,
        device: Device,
    ) -> Result<Tensor> {
        let mut out = Tensor::allocate(op, shape, dtype, device)?;
        match out.storage() {
            Storage::Cpu(_) => cpu::zeros(&mut out)?,
        }
        Ok(out)
    }

    /// A tensor of ones.
    ///
    /// # Errors
    /// As [`empty`](Tensor::empty).
    pub fn ones(shape: impl Into<Shape>, dtype: DType, device: Device) -> Result<Tensor> {
        Tensor::full(shape, 1.0, dtype, device)
    }

    /// The numbers `0, 1, …, len - 1`.
    ///
    /// # Errors
    /// As [`empty`](Tensor::empty).
    pub fn arange(len: usize, dtype: DType, device: Device) -> Result<Tensor> {
        let mut out = Tensor::allocate("arange", len.into(), dtype, device)?;
        match out.storage() {
            Storage::Cpu(_) => cpu::arange(&mut out)?,
        }
        Ok(out)
    }
}
