//! Embedding: rows of a table by index, and the gradient of the table.

use super::index::{add, select};
use super::working::rounded;
use crate::{Error, Result, Shape, Tensor};

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
    /// table is no matrix, [`Error::WrongDType`], [`Error::DeviceMismatch`].
    pub fn embedding(&self, ids: &Tensor) -> Result<Tensor> {
        const OP: &str = "embedding";
        let &[_, width] = self.dims() else {
            return Err(Error::InvalidShape {
                op: OP,
                shape: self.shape().clone(),
                reason: "a table must have two axes".into(),
            });
        };
        self.expect_indices(OP, ids)?;
        let mut shape = ids.shape().clone();
        shape.push(width);
        let mut y = Tensor::allocate(OP, shape, self.dtype(), self.device())?;
        select(OP, self, 0, ids, &mut y)?;
        Ok(y)
    }

    /// The gradient of [`embedding`](Tensor::embedding)'s table of `entries` rows, where `self`
    /// is the gradient of its output for `ids`. Each row sums its gradients in the order of
    /// `ids`, whatever the number of threads; half types sum in `f32`.
    ///
    /// # Errors
    /// As [`embedding`](Tensor::embedding); [`Error::ShapeMismatch`] where gradient and ids do
    /// not fit, [`Error::InvalidArgument`] where the table would not be
    /// [addressable](Shape::is_addressable), [`Error::UnsupportedDType`] for integers.
    pub fn embedding_backward(&self, ids: &Tensor, entries: usize) -> Result<Tensor> {
        const OP: &str = "embedding_backward";
        self.expect_float(OP)?;
        let width = self.width_of(OP, ids)?;
        let (shape, dtype) = (Shape::from([entries, width]), self.dtype().compute());
        if !shape.is_addressable(dtype) {
            return Err(Error::InvalidArgument {
                op: OP,
                reason: format!(
                    "entries is {entries}: so many rows of {width} elements of {dtype} cannot be \
                     addressed"
                ),
            });
        }
        self.expect_indices(OP, ids)?;
        let mut sum = Tensor::zeros_for(OP, shape, dtype, self.device())?;
        add(OP, self, 0, ids, &mut sum)?;
        rounded(OP, sum, self.dtype())
    }

    /// Adds [`embedding_backward`](Tensor::embedding_backward) to `sum` `[entries, width]`, gradient by
    /// gradient in the order of `ids`, in place where nobody shares it. It reads and writes the rows
    /// at `ids` alone. Of a gradient of a half type the sum is `f32`.
    ///
    /// # Errors
    /// As [`embedding_backward`](Tensor::embedding_backward); [`Error::WrongDType`] where `sum` has not
    /// the type of computation of the gradient, [`Error::ShapeMismatch`] where its rows are of another
    /// width.
    pub fn embedding_backward_into(&self, ids: &Tensor, sum: &mut Tensor) -> Result<()> {
        const OP: &str = "embedding_backward_into";
        self.expect_float(OP)?;
        let width = self.width_of(OP, ids)?;
        self.expect_same_device(OP, sum)?;
        sum.expect_operand(OP, "the sum", self.dtype().compute())?;
        if sum.rank() != 2 || sum.dims()[1] != width {
            return Err(Error::ShapeMismatch {
                op: OP,
                lhs: self.shape().clone(),
                rhs: sum.shape().clone(),
                reason: "the sum must have two axes, and rows like the gradient's",
            });
        }
        self.expect_indices(OP, ids)?;
        add(OP, self, 0, ids, sum)
    }

    /// The width of a table of which this is the gradient for `ids`.
    fn width_of(&self, op: &'static str, ids: &Tensor) -> Result<usize> {
        match self.dims().split_last() {
            Some((&width, lead)) if lead == ids.dims() => Ok(width),
            _ => Err(Error::ShapeMismatch {
                op,
                lhs: self.shape().clone(),
                rhs: ids.shape().clone(),
                reason: "the gradient must have the ids' shape and one axis more",
            }),
        }
    }
}
