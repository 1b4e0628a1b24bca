//! What operations expect of their operands, each with the error that says otherwise.

use crate::{DType, Element, Error, Result, Tensor};

impl Tensor {
    pub(crate) fn expect_dtype<T: Element>(&self, op: &'static str) -> Result<()> {
        if self.dtype() == T::DTYPE {
            Ok(())
        } else {
            Err(Error::DTypeMismatch {
                op,
                lhs: self.dtype(),
                rhs: T::DTYPE,
            })
        }
    }

    /// The tensor, as the operand called `operand`, has elements of type `wanted`.
    pub(crate) fn expect_operand(
        &self,
        op: &'static str,
        operand: &'static str,
        wanted: DType,
    ) -> Result<()> {
        if self.dtype() == wanted {
            return Ok(());
        }
        Err(Error::WrongDType {
            op,
            operand,
            wanted,
            found: self.dtype(),
        })
    }

    /// The tensor, as the operand called `operand`, is a mask: of type `bool` or `u8`.
    pub(crate) fn expect_mask(&self, op: &'static str, operand: &'static str) -> Result<()> {
        match self.dtype() {
            DType::U8 => Ok(()),
            _ => self.expect_operand(op, operand, DType::Bool),
        }
    }

    pub(crate) fn expect_contiguous(&self, op: &'static str) -> Result<()> {
        if self.is_contiguous() {
            Ok(())
        } else {
            Err(Error::NotContiguous {
                op,
                shape: self.shape().clone(),
                strides: self.layout().strides().clone(),
            })
        }
    }

    /// Both operands have one element type and live on one device.
    pub(crate) fn expect_same_kind(&self, op: &'static str, other: &Tensor) -> Result<()> {
        self.expect_same_device(op, other)?;
        if self.dtype() == other.dtype() {
            Ok(())
        } else {
            Err(Error::DTypeMismatch {
                op,
                lhs: self.dtype(),
                rhs: other.dtype(),
            })
        }
    }

    /// Both operands live on one device.
    pub(crate) fn expect_same_device(&self, op: &'static str, other: &Tensor) -> Result<()> {
        if self.device() == other.device() {
            Ok(())
        } else {
            Err(Error::DeviceMismatch {
                op,
                lhs: self.device(),
                rhs: other.device(),
            })
        }
    }

    /// Both operands have one shape.
    pub(crate) fn expect_same_shape(
        &self,
        op: &'static str,
        other: &Tensor,
        reason: &'static str,
    ) -> Result<()> {
        if self.shape() == other.shape() {
            Ok(())
        } else {
            Err(Error::ShapeMismatch {
                op,
                lhs: self.shape().clone(),
                rhs: other.shape().clone(),
                reason,
            })
        }
    }

    /// The element type has arithmetic.
    pub(crate) fn expect_arithmetic(&self, op: &'static str) -> Result<()> {
        match self.dtype() {
            dtype @ DType::Bool => Err(Error::UnsupportedDType { op, dtype }),
            _ => Ok(()),
        }
    }

    /// The element type is a float.
    pub(crate) fn expect_float(&self, op: &'static str) -> Result<()> {
        if self.dtype().is_float() {
            Ok(())
        } else {
            Err(Error::UnsupportedDType {
                op,
                dtype: self.dtype(),
            })
        }
    }
}
