//! Conversion between element types, alone, and scaled into a place that is there.

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;

use crate::ops::Scalar;
use crate::storage::{On, inout, on, out};
use crate::{DType, Result, Tensor};

impl Tensor {
    /// The same values as `dtype`: `self` where it is so already, else a copy.
    ///
    /// To floats, values round to nearest even, and what is too large becomes an infinity
    /// (`i64` to a half type rounds to `f32` on the way). From floats to integers they truncate
    /// towards zero and saturate, and NaN becomes 0. Between integers the low bytes remain.
    /// To `bool`, what is not 0 is true, NaN too; from `bool` come 0 and 1.
    ///
    /// ```
    /// # use phalanx_tensor::{DType, Device, Tensor};
    /// let x = Tensor::from_vec(vec![-1.5f32, 300.0, f32::NAN], [3], Device::cpu(0))?;
    /// assert_eq!(x.cast(DType::I64)?.to_vec::<i64>()?, [-1, 300, 0]);
    /// assert_eq!(x.cast(DType::U8)?.to_vec::<u8>()?, [0, 255, 0]);
    /// assert_eq!(x.cast(DType::Bool)?.to_vec::<bool>()?, [true, true, true]);
    /// # Ok::<(), phalanx_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub fn cast(&self, dtype: DType) -> Result<Tensor> {
        self.cast_for("cast", dtype)
    }

    /// As [`cast`](Tensor::cast), on behalf of the operation `op`.
    pub(crate) fn cast_for(&self, op: &'static str, dtype: DType) -> Result<Tensor> {
        if self.dtype() == dtype {
            return Ok(self.clone());
        }
        let mut y = Tensor::allocate(op, self.shape().clone(), dtype, self.device())?;
        match on(op, (self, out(&mut y)))? {
            On::Cpu((x, y)) => cpu::cast(op, x, y)?,
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (x, y)) => cuda::cast(&mut lane, x, y)?,
        }
        Ok(y)
    }

    /// Writes `factor` times the elements of `other`, in row-major order and converted to the tensor's
    /// element type, over those of the tensor from the one at `start` on, as
    /// [`write_at`](Tensor::write_at): one pass, where a scaled copy, its conversion and a copy are three.
    /// Float types. The product is computed in the wider of the two types of computation, and rounded
    /// once. The factor may be a number, or a tensor with one float on any device.
    ///
    /// ```
    /// # use phalanx_tensor::{DType, Device, Tensor};
    /// let mut flat = Tensor::zeros([4], DType::F32, Device::cpu(0))?;
    /// let gradient = Tensor::full([2], 3.0, DType::BF16, Device::cpu(0))?;
    /// flat.write_scaled_at(1, &gradient, 0.5)?;
    /// assert_eq!(flat.to_vec::<f32>()?, [0.0, 1.5, 1.5, 0.0]);
    /// # Ok::<(), phalanx_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`write_at`](Tensor::write_at), but for the types: [`UnsupportedDType`](crate::Error::UnsupportedDType)
    /// for one that is no float; [`DeviceMismatch`](crate::Error::DeviceMismatch) where `other` lies on another
    /// device; [`InvalidShape`](crate::Error::InvalidShape) for a factor that has not one element. The tensor is
    /// as it was then.
    pub fn write_scaled_at<'f>(
        &mut self,
        start: usize,
        other: &Tensor,
        factor: impl Into<Scalar<'f>>,
    ) -> Result<()> {
        const OP: &str = "write_scaled_at";
        let factor = factor.into();
        self.expect_float(OP)?;
        other.expect_float(OP)?;
        factor.expect_one(OP)?;
        self.expect_room_at(OP, start, other)?;
        self.expect_same_device(OP, other)?;
        let copy = factor.copy_for(OP, self.device())?;
        match on(OP, (inout(self), other, factor.or(copy.as_ref())))? {
            On::Cpu((y, x, factor)) => cpu::write_scaled(OP, y, start, x, factor)?,
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (y, x, factor)) => {
                cuda::write_scaled(&mut lane, y, start, x, factor)?;
            }
        }
        Ok(())
    }
}
