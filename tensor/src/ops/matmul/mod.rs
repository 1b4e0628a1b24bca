//! Products of matrices and of stacks of matrices.

pub(super) mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use crate::storage::{On, inout, on, out};
use crate::{Error, Result, Shape, Tensor};

impl Tensor {
    /// The matrix product, as PyTorch's `matmul`: `[…, m, k]` by `[…, k, n]` gives `[…, m, n]`,
    /// where leading axes broadcast. A vector on the left counts as one row, a vector on the right
    /// as one column, and the result lacks that axis.
    ///
    /// Views of any strides are read where they stand. Half types accumulate in `f32` and are
    /// rounded once. The result is the same bit for bit whatever the number of threads. It may differ
    /// in its last bits with the shape: on a processor with a matrix unit the size of the product
    /// decides whether that computes it, so that a row of a larger batch need not have the bits of
    /// the same row alone.
    ///
    /// ```
    /// # use phalanx_tensor::{Device, Tensor};
    /// let a = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0], [2, 2], Device::cpu(0))?;
    /// let product = a.matmul(&a.transpose(0, 1)?)?;
    /// assert_eq!(product.to_vec::<f32>()?, [5.0, 11.0, 11.0, 25.0]);
    /// # Ok::<(), phalanx_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] where the inner extents differ or the leading axes do not
    /// broadcast, [`Error::InvalidShape`] for a scalar; [`Error::DTypeMismatch`],
    /// [`Error::DeviceMismatch`], [`Error::UnsupportedDType`] for integers;
    /// [`Error::OutOfMemory`].
    pub fn matmul(&self, rhs: &Tensor) -> Result<Tensor> {
        const OP: &str = "matmul";
        self.expect_same_kind(OP, rhs)?;
        self.expect_float(OP)?;
        for t in [self, rhs] {
            if t.rank() == 0 {
                return Err(Error::InvalidShape {
                    op: OP,
                    shape: t.shape().clone(),
                    reason: "a scalar is no matrix; multiply by it with `mul`".into(),
                });
            }
        }
        let mismatch = |reason| Error::ShapeMismatch {
            op: OP,
            lhs: self.shape().clone(),
            rhs: rhs.shape().clone(),
            reason,
        };
        let a = if self.rank() == 1 {
            self.unsqueeze(0)?
        } else {
            self.clone()
        };
        let b = if rhs.rank() == 1 {
            rhs.unsqueeze(-1)?
        } else {
            rhs.clone()
        };
        let (a_lead, &[m, k]) = split(&a) else {
            unreachable!("rank at least two")
        };
        let (b_lead, &[inner, n]) = split(&b) else {
            unreachable!("rank at least two")
        };
        if k != inner {
            return Err(mismatch(
                "the last axis of the first must be as long as the last but one of the second",
            ));
        }
        let lead = a_lead
            .broadcast(&b_lead)
            .ok_or_else(|| mismatch("the leading axes broadcast"))?;
        let mut shape = lead.clone();
        shape.push(m);
        shape.push(n);
        let mut y = Tensor::allocate(OP, shape, self.dtype(), self.device())?;
        let stretched = |t: &Tensor, rows: usize, cols: usize| {
            let mut shape = lead.clone();
            shape.push(rows);
            shape.push(cols);
            Ok(t.with_layout(t.layout().broadcast_to(OP, &shape)?))
        };
        let (a, b) = (stretched(&a, m, k)?, stretched(&b, k, n)?);
        match on(OP, (&a, &b, out(&mut y)))? {
            On::Cpu((a, b, y)) => cpu::matmul(OP, a, b, y)?,
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (a, b, y)) => cuda::matmul(&mut lane, a, b, y)?,
        }
        if rhs.rank() == 1 {
            y = y.squeeze(-1)?;
        }
        if self.rank() == 1 {
            y = y.squeeze(if rhs.rank() == 1 { -1 } else { -2 })?;
        }
        Ok(y)
    }

    /// Adds the product of the matrices `a` `[m, k]` and `b` `[k, n]` to `self` `[m, n]`, in place
    /// where nobody shares it (PyTorch: `addmm_`). No memory is asked for the product. For operands
    /// of a half type `self` is `f32`, and nothing is rounded to the half type.
    ///
    /// ```
    /// # use phalanx_tensor::{Device, Tensor};
    /// let a = Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0], [2, 2], Device::cpu(0))?;
    /// let mut sum = Tensor::from_slice(&[1.0f32, 1.0, 1.0, 1.0], [2, 2], Device::cpu(0))?;
    /// sum.addmm(&a, &a.t()?)?;
    /// assert_eq!(sum.to_vec::<f32>()?, [6.0, 12.0, 12.0, 26.0]);
    /// # Ok::<(), phalanx_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidShape`] where one is no matrix, [`Error::ShapeMismatch`];
    /// [`Error::DTypeMismatch`], [`Error::WrongDType`] where `self` has not the type of computation of
    /// the operands, [`Error::DeviceMismatch`], [`Error::UnsupportedDType`] for integers;
    /// [`Error::OutOfMemory`]: where that is for scratch memory, `self` holds arbitrary elements.
    pub fn addmm(&mut self, a: &Tensor, b: &Tensor) -> Result<()> {
        const OP: &str = "addmm";
        a.expect_same_kind(OP, b)?;
        a.expect_float(OP)?;
        a.expect_same_device(OP, self)?;
        self.expect_operand(OP, "the sum", a.dtype().compute())?;
        for t in [&*self, a, b] {
            if t.rank() != 2 {
                return Err(Error::InvalidShape {
                    op: OP,
                    shape: t.shape().clone(),
                    reason: "it must be a matrix".into(),
                });
            }
        }
        let mismatch = |lhs: &Tensor, rhs: &Tensor, reason| Error::ShapeMismatch {
            op: OP,
            lhs: lhs.shape().clone(),
            rhs: rhs.shape().clone(),
            reason,
        };
        if a.dims()[1] != b.dims()[0] {
            let reason = "the second axis of the first must be as long as the first of the second";
            return Err(mismatch(a, b, reason));
        }
        for (axis, operand) in [a, b].into_iter().enumerate() {
            if self.dims()[axis] != operand.dims()[axis] {
                return Err(mismatch(self, operand, "the sum must be like the product"));
            }
        }
        match on(OP, (a, b, inout(self)))? {
            On::Cpu((a, b, sum)) => cpu::addmm(OP, a, b, sum),
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (a, b, sum)) => cuda::addmm(&mut lane, a, b, sum),
        }
    }
}

/// The leading axes, and the last two.
fn split(t: &Tensor) -> (Shape, &[usize]) {
    let (lead, matrix) = t.dims().split_at(t.rank() - 2);
    (Shape::from(lead), matrix)
}
