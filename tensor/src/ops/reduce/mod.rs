//! Reductions over any set of axes: sums, means, extrema, variance.
//!
//! Sums are pairwise: of `n` elements, the error is at most `(24 + log₂ n) u Σ|x|`, where `u` is
//! half the distance between 1 and the next number of the type of computation (`f32` for the half
//! types, whose result is rounded once more). The order of the additions depends on the layout,
//! never on the number of threads.

mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;

use crate::layout::resolve_axis;
use crate::storage::{On, on, out};
use crate::{DType, Error, Layout, Result, Shape, Tensor};
use smallvec::{SmallVec, smallvec};

/// What is done with the elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reduction {
    Sum,
    Max,
    Min,
}

/// For each axis, whether it is reduced.
type Mask = SmallVec<[bool; 6]>;

fn mask(op: &'static str, axes: &[isize], rank: usize) -> Result<Mask> {
    let mut mask: Mask = smallvec![false; rank];
    for &axis in axes {
        let i = resolve_axis(op, axis, rank)?;
        if std::mem::replace(&mut mask[i], true) {
            return Err(Error::InvalidArgument {
                op,
                reason: format!("axis {i} appears twice in {axes:?}"),
            });
        }
    }
    Ok(mask)
}

impl Tensor {
    /// The sum over `axes` (none: nothing is summed). With `keepdim` they stay, with the extent
    /// 1. Integers and `bool` sum to `i64` and wrap; an empty sum is 0.
    ///
    /// ```
    /// # use phalanx_tensor::{DType, Device, Tensor};
    /// let x = Tensor::arange(6, DType::F32, Device::cpu(0))?.reshape([2, 3])?;
    /// assert_eq!(x.sum(&[0], false)?.to_vec::<f32>()?, [3.0, 5.0, 7.0]);
    /// assert_eq!(x.sum(&[-1], true)?.dims(), &[2, 1]);
    /// # Ok::<(), phalanx_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::AxisOutOfRange`]; [`Error::InvalidArgument`] where an axis appears twice;
    /// [`Error::OutOfMemory`].
    pub fn sum(&self, axes: &[isize], keepdim: bool) -> Result<Tensor> {
        self.reduce(
            "sum",
            Reduction::Sum,
            &mask("sum", axes, self.rank())?,
            keepdim,
        )
    }

    /// The mean over `axes`, as [`sum`](Tensor::sum). Floats only; the mean of nothing is NaN.
    ///
    /// # Errors
    /// As [`sum`](Tensor::sum); [`Error::UnsupportedDType`] for integers.
    pub fn mean(&self, axes: &[isize], keepdim: bool) -> Result<Tensor> {
        self.mean_over("mean", &mask("mean", axes, self.rank())?, keepdim)
    }

    /// The largest element over `axes` (PyTorch: `amax`); NaN where there is one.
    ///
    /// # Errors
    /// As [`sum`](Tensor::sum); [`Error::InvalidShape`] where there are no elements to choose from.
    pub fn max(&self, axes: &[isize], keepdim: bool) -> Result<Tensor> {
        self.reduce(
            "max",
            Reduction::Max,
            &mask("max", axes, self.rank())?,
            keepdim,
        )
    }

    /// The smallest element over `axes` (PyTorch: `amin`); NaN where there is one.
    ///
    /// # Errors
    /// As [`max`](Tensor::max).
    pub fn min(&self, axes: &[isize], keepdim: bool) -> Result<Tensor> {
        self.reduce(
            "min",
            Reduction::Min,
            &mask("min", axes, self.rank())?,
            keepdim,
        )
    }

    /// The variance over `axes`: squared distances from the mean, summed and divided by the number
    /// of elements less `correction` (1 for the unbiased estimate). Floats only. NaN or infinite
    /// where nothing remains to divide by.
    ///
    /// # Errors
    /// As [`mean`](Tensor::mean).
    pub fn var(&self, axes: &[isize], correction: usize, keepdim: bool) -> Result<Tensor> {
        let op = "var";
        let mask = mask(op, axes, self.rank())?;
        self.expect_float(op)?;
        if self.dtype().size() == 2 {
            let wide = self.cast_for(op, DType::F32)?;
            return wide
                .var(axes, correction, keepdim)?
                .cast_for(op, self.dtype());
        }
        let mean = self.mean_over(op, &mask, true)?;
        let squares = self.sub(&mean).and_then(|distance| distance.square());
        let squares = squares.map_err(|error| error.of(op))?;
        let sum = squares.reduce(op, Reduction::Sum, &mask, keepdim)?;
        let count = self.count(&mask).saturating_sub(correction);
        let var = sum.div_scalar(count as f64);
        var.map_err(|error| error.of(op))
    }

    /// The sum of all elements, of rank 0.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn sum_all(&self) -> Result<Tensor> {
        self.reduce(
            "sum_all",
            Reduction::Sum,
            &smallvec![true; self.rank()],
            false,
        )
    }

    /// The mean of all elements, of rank 0. Floats only; the mean of nothing is NaN.
    ///
    /// # Errors
    /// [`Error::UnsupportedDType`] for integers; [`Error::OutOfMemory`].
    pub fn mean_all(&self) -> Result<Tensor> {
        self.mean_over("mean_all", &smallvec![true; self.rank()], false)
    }

    /// Sums to `shape`, from which `self` could have been stretched: the backward operation of
    /// broadcasting.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] where `shape` does not broadcast to that of `self`;
    /// [`Error::OutOfMemory`].
    pub fn sum_to_shape(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        let (op, shape) = ("sum_to_shape", shape.into());
        if *self.shape() == shape {
            return Ok(self.clone());
        }
        let fits = Layout::contiguous(op, shape.clone())?.broadcast_to(op, self.shape());
        fits.map_err(|_| Error::ShapeMismatch {
            op,
            lhs: self.shape().clone(),
            rhs: shape.clone(),
            reason: "the second does not broadcast to the first",
        })?;
        let lead = self.rank() - shape.len();
        let mask: Mask = (self.dims().iter().enumerate())
            .map(|(i, &d)| i < lead || shape[i - lead] != d)
            .collect();
        self.reduce(op, Reduction::Sum, &mask, true)?.reshape(shape)
    }

    /// The index, of type `i64`, of the largest element along `axis`, which is dropped. The first
    /// one where several are equal; NaN counts as largest.
    ///
    /// ```
    /// # use phalanx_tensor::{Device, Tensor};
    /// let scores = Tensor::from_vec(vec![0.1f32, 0.7, 0.2, 0.5, 0.2, 0.3], [2, 3], Device::cpu(0))?;
    /// assert_eq!(scores.argmax(-1)?.to_vec::<i64>()?, [1, 0]);
    /// # Ok::<(), phalanx_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::AxisOutOfRange`]; [`Error::InvalidShape`] where the axis is empty;
    /// [`Error::OutOfMemory`].
    pub fn argmax(&self, axis: isize) -> Result<Tensor> {
        self.arg_reduce("argmax", Reduction::Max, axis)
    }

    /// The index of the smallest element along `axis`, as [`argmax`](Tensor::argmax); NaN counts
    /// as smallest.
    ///
    /// # Errors
    /// As [`argmax`](Tensor::argmax).
    pub fn argmin(&self, axis: isize) -> Result<Tensor> {
        self.arg_reduce("argmin", Reduction::Min, axis)
    }

    /// How many elements fall together in each element of the result.
    fn count(&self, mask: &[bool]) -> usize {
        let reduced = self.dims().iter().zip(mask).filter(|(_, m)| **m);
        reduced.map(|(d, _)| d).product()
    }

    fn mean_over(&self, op: &'static str, mask: &Mask, keepdim: bool) -> Result<Tensor> {
        self.expect_float(op)?;
        if self.dtype().size() == 2 {
            let wide = self.cast_for(op, DType::F32)?;
            return wide
                .mean_over(op, mask, keepdim)?
                .cast_for(op, self.dtype());
        }
        let sum = self.reduce(op, Reduction::Sum, mask, keepdim)?;
        let mean = sum.div_scalar(self.count(mask) as f64);
        mean.map_err(|error| error.of(op))
    }

    fn reduce(
        &self,
        op: &'static str,
        kind: Reduction,
        mask: &Mask,
        keepdim: bool,
    ) -> Result<Tensor> {
        let extents = self.dims().iter().zip(mask);
        let kept: Shape = extents
            .filter(|(_, reduced)| keepdim || !**reduced)
            .map(|(&d, &reduced)| if reduced { 1 } else { d })
            .collect();
        self.expect_choice(op, kind, self.count(mask), &kept)?;
        let dtype = match (self.dtype(), kind) {
            (DType::I32 | DType::U8 | DType::Bool, Reduction::Sum) => DType::I64,
            (dtype, _) => dtype,
        };
        let mut y = Tensor::allocate(op, kept, dtype, self.device())?;
        match on(op, (self, out(&mut y)))? {
            On::Cpu((x, y)) => cpu::reduce(op, kind, x, mask, y)?,
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (x, y)) => cuda::reduce(&mut lane, kind, x, mask, y)?,
        }
        Ok(y)
    }

    /// There is a largest (smallest) element of `count` elements, or no result to hold one.
    fn expect_choice(
        &self,
        op: &'static str,
        kind: Reduction,
        count: usize,
        out: &Shape,
    ) -> Result<()> {
        if kind == Reduction::Sum || count > 0 || out.numel() == 0 {
            return Ok(());
        }
        Err(Error::InvalidShape {
            op,
            shape: self.shape().clone(),
            reason: "there are no elements to choose from".into(),
        })
    }

    fn arg_reduce(&self, op: &'static str, kind: Reduction, axis: isize) -> Result<Tensor> {
        let axis = resolve_axis(op, axis, self.rank())?;
        let mut shape = self.shape().clone();
        let extent = shape.remove(axis);
        self.expect_choice(op, kind, extent, &shape)?;
        let mut y = Tensor::allocate(op, shape, DType::I64, self.device())?;
        match on(op, (self, out(&mut y)))? {
            On::Cpu((x, y)) => cpu::arg_reduce(op, kind, x, axis, y)?,
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (x, y)) => cuda::arg_reduce(&mut lane, kind, x, axis, y)?,
        }
        Ok(y)
    }
}
