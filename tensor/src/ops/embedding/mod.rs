//! Embedding: rows of a table by index, and the gradient of the table.

mod cpu;

use crate::{DType, Element, Error, Float, Result, Shape, Tensor, dispatch_float};

impl Tensor {
    /// The rows of this table `[entries, width]` at `ids` (`I64`, any shape): `ids`' shape with
    /// `width` appended. Any element type.
    ///
    /// ```
    /// # use phalanx_tensor::{DType, Device, Tensor};
    /// let table = Tensor::arange(6, DType::F32, Device::cpu(0))?.reshape([3, 2])?;
    /// let ids = Tensor::from_slice(&[2i64, 0], [2], Device::cpu(0))?;
    /// assert_eq!(table.embedding(&ids)?.to_vec::<f32>()?, [4.0, 5.0, 0.0, 1.0]);
    /// # Ok::<(), phalanx_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::IndexOutOfRange`] names an id that is no row; [`Error::InvalidShape`] where the
    /// table is no matrix, [`Error::DTypeMismatch`], [`Error::DeviceMismatch`].
    pub fn embedding(&self, ids: &Tensor) -> Result<Tensor> {
        const OP: &str = "embedding";
        let &[entries, width] = self.dims() else {
            return Err(Error::InvalidShape {
                op: OP,
                shape: self.shape().clone(),
                reason: "a table has two axes".into(),
            });
        };
        let (table, ids) = (self.contiguous()?, checked_ids(OP, self, ids, entries)?);
        let mut shape = ids.shape().clone();
        shape.push(width);
        let mut out = Tensor::allocate(OP, shape, self.dtype(), self.device())?;
        let row_bytes = width * self.dtype().size();
        cpu::select(
            table.as_bytes()?,
            ids.as_slice()?,
            row_bytes,
            out.bytes_mut()?,
        );
        Ok(out)
    }

    /// The gradient of [`embedding`](Tensor::embedding)'s table of `entries` rows, where `self`
    /// is the gradient of its output for `ids`. Each row sums its gradients in the order of
    /// `ids`, whatever the number of threads; half types sum in `f32`.
    ///
    /// # Errors
    /// As [`embedding`](Tensor::embedding); [`Error::ShapeMismatch`] where gradient and ids do
    /// not fit, [`Error::UnsupportedDType`] for integers.
    pub fn embedding_backward(&self, ids: &Tensor, entries: usize) -> Result<Tensor> {
        const OP: &str = "embedding_backward";
        self.expect_float(OP)?;
        let width = match self.dims().split_last() {
            Some((&width, lead)) if lead == ids.dims() => width,
            _ => {
                return Err(Error::ShapeMismatch {
                    op: OP,
                    lhs: self.shape().clone(),
                    rhs: ids.shape().clone(),
                    reason: "a gradient has the ids' shape and one axis more",
                });
            }
        };
        let (grad, ids) = (self.contiguous()?, checked_ids(OP, self, ids, entries)?);
        let shape = Shape::from([entries, width]);
        dispatch_float!(OP, self.dtype(), T => {
            let compute = <<T as Float>::Compute as Element>::DTYPE;
            let mut sum = Tensor::allocate(OP, shape.clone(), compute, self.device())?;
            let total = sum.make_mut()?;
            cpu::sum_by_id::<T>(grad.as_slice()?, ids.as_slice()?, width, total);
            if compute == self.dtype() {
                return Ok(sum);
            }
            let mut out = Tensor::allocate(OP, shape, self.dtype(), self.device())?;
            cpu::narrow::<T>(total, out.make_mut()?);
            Ok(out)
        })
    }
}

/// The ids, contiguous, all in `0..entries`.
fn checked_ids(op: &'static str, table: &Tensor, ids: &Tensor, entries: usize) -> Result<Tensor> {
    table.expect_same_device(op, ids)?;
    if ids.dtype() != DType::I64 {
        return Err(Error::DTypeMismatch {
            op,
            lhs: DType::I64,
            rhs: ids.dtype(),
        });
    }
    let ids = ids.contiguous()?;
    let values = ids.as_slice::<i64>()?;
    match values
        .iter()
        .find(|&&id| !(0..entries as i64).contains(&id))
    {
        None => Ok(ids),
        Some(&index) => Err(Error::IndexOutOfRange {
            op,
            index,
            extent: entries,
        }),
    }
}
