//! Tensors that are filled with one number, or with one after the other.

mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;

use crate::storage::{On, on, out};
use crate::{DType, Device, Error, Number, Result, Shape, Tensor};

/// A number of elements that an argument gives fits the rule for shapes; the error names it.
pub(super) fn expect_len(op: &'static str, argument: &str, len: usize, dtype: DType) -> Result<()> {
    if Shape::from(len).is_addressable(dtype) {
        return Ok(());
    }
    Err(Error::InvalidArgument {
        op,
        reason: format!("{argument} is {len}: so many elements of {dtype} cannot be addressed"),
    })
}

impl Tensor {
    /// A tensor whose elements are all `value`, a float or an integer. A float type takes the nearest
    /// number that it has; an integer type takes what it holds exactly, and
    /// `bool` takes 0 and 1, and `true` and `false`.
    ///
    /// ```
    /// # use phalanx_tensor::{DType, Device, Tensor};
    /// let t = Tensor::full([2, 2], 0.5, DType::F64, Device::cpu(0))?;
    /// assert_eq!(t.to_vec::<f64>()?, [0.5; 4]);
    /// let t = Tensor::full([1], i64::MAX, DType::I64, Device::cpu(0))?;
    /// assert_eq!(t.to_vec::<i64>()?, [i64::MAX]);
    /// let e = Tensor::full([1], -1, DType::U8, Device::cpu(0)).unwrap_err();
    /// assert_eq!(e.to_string(), "full: -1 is no u8");
    /// let t = Tensor::full([2], true, DType::Bool, Device::cpu(0))?;
    /// assert_eq!(t.to_vec::<bool>()?, [true; 2]);
    /// # Ok::<(), phalanx_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for a number that the integer type
    /// does not hold; as [`empty`](Tensor::empty).
    pub fn full(
        shape: impl Into<Shape>,
        value: impl Into<Number>,
        dtype: DType,
        device: Device,
    ) -> Result<Tensor> {
        Tensor::full_for("full", shape.into(), value.into(), dtype, device)
    }

    /// As [`full`](Tensor::full), on behalf of the operation `op`.
    pub(crate) fn full_for(
        op: &'static str,
        shape: Shape,
        value: Number,
        dtype: DType,
        device: Device,
    ) -> Result<Tensor> {
        let element = value.bytes(op, dtype)?;
        let mut y = Tensor::allocate(op, shape, dtype, device)?;
        match on(op, out(&mut y))? {
            On::Cpu(y) => cpu::full(op, element, y)?,
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, y) => cuda::full(&mut lane, element, y)?,
        }
        Ok(y)
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
        Tensor::full_for(op, shape, Number::Int(0), dtype, device)
    }

    /// A tensor of ones.
    ///
    /// # Errors
    /// As [`empty`](Tensor::empty).
    pub fn ones(shape: impl Into<Shape>, dtype: DType, device: Device) -> Result<Tensor> {
        Tensor::full(shape, 1.0, dtype, device).map_err(|error| error.of("ones"))
    }

    /// The numbers `0, 1, …, len - 1`, rounded to what a float type has.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where `len` elements cannot be addressed, or for a number that the
    /// integer type does not hold; as [`empty`](Tensor::empty).
    pub fn arange(len: usize, dtype: DType, device: Device) -> Result<Tensor> {
        const OP: &str = "arange";
        expect_len(OP, "len", len, dtype)?;
        if let Some(last) = len.checked_sub(1) {
            // The others are smaller.
            Number::Int(last as i64).bytes(OP, dtype)?;
        }
        let mut y = Tensor::allocate(OP, len.into(), dtype, device)?;
        match on(OP, out(&mut y))? {
            On::Cpu(y) => cpu::arange(OP, y)?,
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, y) => cuda::arange(&mut lane, y)?,
        }
        Ok(y)
    }
}
