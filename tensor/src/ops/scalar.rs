//! [`Scalar`]: a number that an operation takes beside its tensors, from the host or from the device.

use crate::{DType, Device, Error, Result, Tensor};

/// A number for an operation, from the program or from a device.
///
/// One that is on the device already costs no wait: the host issues the operation and never learns
/// the number.
///
/// ```
/// use phalanx_tensor::ops::optim::{global_norm, scale};
/// use phalanx_tensor::{DType, Device, Tensor};
///
/// let mut grads = [Tensor::full([4], 3.0, DType::F32, Device::cpu(0))?];
/// let norm = global_norm(&grads)?;
/// scale(&mut grads, &norm.recip()?)?;
/// assert_eq!(grads[0].to_vec::<f32>()?, [0.5; 4]);
/// scale(&mut grads, 2.0)?;
/// assert_eq!(grads[0].to_vec::<f32>()?, [1.0; 4]);
/// # Ok::<(), phalanx_tensor::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub enum Scalar<'a> {
    /// A number of the program.
    Host(f64),
    /// The one element of a tensor of any float type.
    Device(&'a Tensor),
}

impl From<f64> for Scalar<'_> {
    fn from(value: f64) -> Self {
        Scalar::Host(value)
    }
}

impl<'a> From<&'a Tensor> for Scalar<'a> {
    fn from(value: &'a Tensor) -> Self {
        Scalar::Device(value)
    }
}

impl<'a> Scalar<'a> {
    /// It is a number, or a tensor with one float.
    pub(crate) fn expect_one(self, op: &'static str) -> Result<()> {
        let Scalar::Device(tensor) = self else {
            return Ok(());
        };
        tensor.expect_float(op)?;
        if tensor.numel() == 1 {
            return Ok(());
        }
        Err(Error::InvalidShape {
            op,
            shape: tensor.shape().clone(),
            reason: "a number must have exactly one element".into(),
        })
    }

    /// As kernels on `device` take it: a tensor is there, and of type `f64`, which holds every float.
    pub(crate) fn copy_for(self, op: &'static str, device: Device) -> Result<Option<Tensor>> {
        let Scalar::Device(tensor) = self else {
            return Ok(None);
        };
        let wide = tensor.cast_for(op, DType::F64)?;
        match wide.device() == device {
            true => Ok(Some(wide)),
            false => wide.copy_to(op, device).map(Some),
        }
    }

    /// The copy, where there is one.
    pub(crate) fn or<'b>(self, copy: Option<&'b Tensor>) -> Scalar<'b>
    where
        'a: 'b,
    {
        copy.map_or(self, Scalar::Device)
    }
}
