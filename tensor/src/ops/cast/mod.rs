//! Conversion between element types.

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;

use crate::storage::{On, on, out};
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
}
