//! Products of matrices and of stacks of matrices.

pub(super) mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use crate::storage::{On, on, out};
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
}

/// The leading axes, and the last two.
fn split(t: &Tensor) -> (Shape, &[usize]) {
    let (lead, matrix) = t.dims().split_at(t.rank() - 2);
    (Shape::from(lead), matrix)
}
