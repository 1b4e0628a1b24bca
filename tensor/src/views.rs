//! Views: tensors that share another's storage under a layout of their own. None copies, but
//! [`Tensor::reshape`] where no layout fits.

use crate::{Error, Result, Shape, Tensor};

impl Tensor {
    /// Exchanges two axes; negative axes count from the end. A view.
    ///
    /// # Errors
    /// [`Error::AxisOutOfRange`].
    pub fn transpose(&self, a: isize, b: isize) -> Result<Tensor> {
        Ok(self.with_layout(self.layout().transpose(a, b)?))
    }

    /// The matrix transpose: exchanges the last two axes. A view.
    ///
    /// # Errors
    /// [`Error::AxisOutOfRange`] for a tensor of rank below 2.
    pub fn t(&self) -> Result<Tensor> {
        self.transpose(-2, -1).map_err(|error| error.of("t"))
    }

    /// Reorders the axes: axis `i` of the result is axis `axes[i]` of `self`. A view.
    ///
    /// # Errors
    /// [`Error::AxisOutOfRange`], [`Error::InvalidArgument`] where `axes` is no permutation.
    pub fn permute(&self, axes: &[isize]) -> Result<Tensor> {
        Ok(self.with_layout(self.layout().permute(axes)?))
    }

    /// Keeps the `len` indices of `axis` from `start` on. A view.
    ///
    /// ```
    /// # use phalanx_tensor::{DType, Device, Tensor};
    /// let t = Tensor::arange(6, DType::I64, Device::cpu(0))?.reshape([2, 3])?;
    /// assert_eq!(t.narrow(1, 1, 2)?.to_vec::<i64>()?, [1, 2, 4, 5]);
    /// # Ok::<(), phalanx_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::AxisOutOfRange`], [`Error::InvalidArgument`] where the range does not fit.
    pub fn narrow(&self, axis: isize, start: usize, len: usize) -> Result<Tensor> {
        Ok(self.with_layout(self.layout().narrow(axis, start, len)?))
    }

    /// The indices `range` of `axis`, every `step`-th of them. A view.
    ///
    /// # Errors
    /// As [`narrow`](Tensor::narrow); [`Error::InvalidArgument`] for a step of 0.
    pub fn slice(&self, axis: isize, range: std::ops::Range<usize>, step: usize) -> Result<Tensor> {
        let len = range
            .end
            .checked_sub(range.start)
            .ok_or_else(|| Error::InvalidArgument {
                op: "slice",
                reason: format!("the range {range:?} ends before it starts"),
            })?;
        let narrowed = self.layout().narrow(axis, range.start, len);
        let layout = narrowed.and_then(|layout| layout.step(axis, step));
        Ok(self.with_layout(layout.map_err(|error| error.of("slice"))?))
    }

    /// Index `index` of `axis`, without that axis. A view.
    ///
    /// # Errors
    /// As [`narrow`](Tensor::narrow).
    pub fn select(&self, axis: isize, index: usize) -> Result<Tensor> {
        let narrowed = self.layout().narrow(axis, index, 1);
        let layout = narrowed.and_then(|layout| layout.squeeze(axis));
        Ok(self.with_layout(layout.map_err(|error| error.of("select"))?))
    }

    /// Stretches axes of extent 1 to `shape`, by NumPy's rules. A view.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`]; [`Error::InvalidShape`] where the shape is not
    /// [addressable](Shape::is_addressable).
    pub fn broadcast_to(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        const OP: &str = "broadcast_to";
        let shape = shape.into();
        let layout = self.layout().broadcast_to(OP, &shape)?;
        shape.expect_addressable(OP, self.dtype())?;
        Ok(self.with_layout(layout))
    }

    /// The same elements, in row-major order, under another shape: a view where a layout for it
    /// exists, else a copy.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] where the number of elements differs; [`Error::InvalidShape`] where
    /// there are none and the shape is not [addressable](Shape::is_addressable).
    pub fn reshape(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        if shape.numel() != self.numel() {
            return Err(Error::ShapeMismatch {
                op: "reshape",
                lhs: self.shape().clone(),
                rhs: shape,
                reason: "they have different numbers of elements",
            });
        }
        shape.expect_addressable("reshape", self.dtype())?;
        match self.layout().reshape(&shape) {
            Some(layout) => Ok(self.with_layout(layout)),
            None => {
                let copy = self.copy_to("reshape", self.device())?;
                Ok(copy.with_layout(crate::Layout::contiguous("reshape", shape)?))
            }
        }
    }

    /// Joins the axes from `first` to `last`, both included, into one.
    ///
    /// # Errors
    /// [`Error::AxisOutOfRange`], [`Error::InvalidArgument`] where `first` comes after `last`.
    pub fn flatten(&self, first: isize, last: isize) -> Result<Tensor> {
        let first = crate::layout::resolve_axis("flatten", first, self.rank())?;
        let last = crate::layout::resolve_axis("flatten", last, self.rank())?;
        if first > last {
            return Err(Error::InvalidArgument {
                op: "flatten",
                reason: format!("axis {first} comes after axis {last}"),
            });
        }
        let d = self.dims();
        let joined = d[first..=last].iter().product();
        let shape: Shape = d[..first]
            .iter()
            .copied()
            .chain([joined])
            .chain(d[last + 1..].iter().copied())
            .collect();
        self.reshape(shape).map_err(|error| error.of("flatten"))
    }

    /// Drops `axis`, which must have the extent 1. A view.
    ///
    /// # Errors
    /// [`Error::AxisOutOfRange`], [`Error::InvalidShape`].
    pub fn squeeze(&self, axis: isize) -> Result<Tensor> {
        Ok(self.with_layout(self.layout().squeeze(axis)?))
    }

    /// Inserts an axis of extent 1 before `axis` (`-1`: at the end). A view.
    ///
    /// # Errors
    /// [`Error::AxisOutOfRange`].
    pub fn unsqueeze(&self, axis: isize) -> Result<Tensor> {
        Ok(self.with_layout(self.layout().unsqueeze(axis)?))
    }
}
