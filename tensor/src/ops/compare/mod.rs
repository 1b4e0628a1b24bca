//! Comparisons, which give masks of type `bool`, and the choice by a mask.

mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;

use super::binary::common_shape;
use crate::storage::{On, on, out};
use crate::{DType, Error, Result, Tensor};

/// The comparisons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

macro_rules! compare {
    ($($(#[$doc:meta])* $name:ident = $kind:expr;)*) => {
        impl Tensor {
            $(
                $(#[$doc])*
                ///
                /// The result is of type `bool`. Shapes broadcast; element types must be equal.
                /// NaN is not equal to anything, nor less or greater; false is less than true.
                ///
                /// # Errors
                /// [`Error::ShapeMismatch`], [`Error::DTypeMismatch`], [`Error::DeviceMismatch`],
                /// [`Error::OutOfMemory`].
                pub fn $name(&self, rhs: &Tensor) -> Result<Tensor> {
                    self.compare(stringify!($name), rhs, $kind)
                }
            )*
        }
    };
}

compare! {
    /// Whether `self == rhs`.
    eq = Comparison::Eq;
    /// Whether `self != rhs`.
    ne = Comparison::Ne;
    /// Whether `self < rhs`.
    ///
    /// ```
    /// # use phalanx_tensor::{Device, Tensor};
    /// let a = Tensor::from_vec(vec![1i64, 2, 3], [3], Device::cpu(0))?;
    /// let two = Tensor::scalar(2i64, Device::cpu(0))?;
    /// assert_eq!(a.lt(&two)?.to_vec::<bool>()?, [true, false, false]);
    /// # Ok::<(), phalanx_tensor::Error>(())
    /// ```
    lt = Comparison::Lt;
    /// Whether `self <= rhs`.
    le = Comparison::Le;
    /// Whether `self > rhs`.
    gt = Comparison::Gt;
    /// Whether `self >= rhs`.
    ge = Comparison::Ge;
}

impl Tensor {
    /// `a` where `cond` (of type `bool` or `u8`) is not 0, else `b`. All three shapes broadcast
    /// (PyTorch: `torch.where`).
    ///
    /// # Errors
    /// [`Error::WrongDType`] where `cond` is neither; [`Error::ShapeMismatch`],
    /// [`Error::DTypeMismatch`], [`Error::DeviceMismatch`], [`Error::OutOfMemory`].
    pub fn where_cond(cond: &Tensor, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let op = "where_cond";
        cond.expect_mask(op, "the condition")?;
        a.expect_same_kind(op, b)?;
        a.expect_same_device(op, cond)?;
        let values = common_shape(op, a, b)?;
        let shape = values
            .broadcast(cond.shape())
            .ok_or_else(|| Error::ShapeMismatch {
                op,
                lhs: cond.shape().clone(),
                rhs: values.clone(),
                reason: "the condition and the values do not broadcast",
            })?;
        let mut y = Tensor::allocate(op, shape, a.dtype(), a.device())?;
        match on(op, (cond, a, b, out(&mut y)))? {
            On::Cpu((cond, a, b, y)) => cpu::choose(op, cond, a, b, y)?,
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (cond, a, b, y)) => cuda::choose(&mut lane, cond, a, b, y)?,
        }
        Ok(y)
    }

    fn compare(&self, op: &'static str, rhs: &Tensor, kind: Comparison) -> Result<Tensor> {
        self.expect_same_kind(op, rhs)?;
        let shape = common_shape(op, self, rhs)?;
        let mut y = Tensor::allocate(op, shape, DType::Bool, self.device())?;
        match on(op, (self, rhs, out(&mut y)))? {
            On::Cpu((a, b, y)) => cpu::compare(op, kind, a, b, y)?,
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (a, b, y)) => cuda::compare(&mut lane, kind, a, b, y)?,
        }
        Ok(y)
    }
}
