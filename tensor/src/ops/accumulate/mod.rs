//! Addition in place: how gradients that meet at one node are summed.

mod cpu;

use crate::storage::Storage;
use crate::{Error, Result, Tensor, dispatch_float};

impl Tensor {
    /// Adds a tensor of the same shape to this one, in place where nobody shares it.
    ///
    /// ```
    /// # use phalanx_tensor::{Device, Tensor};
    /// let mut a = Tensor::from_slice(&[1.0f32, 2.0], [2], Device::cpu(0))?;
    /// a.add_assign(&Tensor::from_slice(&[10.0f32, 20.0], [2], Device::cpu(0))?)?;
    /// assert_eq!(a.to_vec::<f32>()?, [11.0, 22.0]);
    /// # Ok::<(), phalanx_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`], [`Error::DTypeMismatch`], [`Error::DeviceMismatch`];
    /// [`Error::UnsupportedDType`] for integers.
    pub fn add_assign(&mut self, other: &Tensor) -> Result<()> {
        const OP: &str = "add_assign";
        self.expect_same_kind(OP, other)?;
        if self.shape() != other.shape() {
            return Err(Error::ShapeMismatch {
                op: OP,
                lhs: self.shape().clone(),
                rhs: other.shape().clone(),
                reason: "a sum in place takes no broadcasting",
            });
        }
        let other = other.contiguous()?;
        match other.storage() {
            Storage::Cpu(_) => dispatch_float!(OP, other.dtype(), T => {
                cpu::add::<T>(self.make_mut()?, other.as_slice()?);
            }),
        }
        Ok(())
    }
}
