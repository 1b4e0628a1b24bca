//! Reading and adding by index: `gather`, `scatter_add`, `index_select`, `index_add`.
//!
//! Indices are `I64` or `I32` in `0..extent`; none is negative. Elements that meet at one index
//! are added in the order of the indices, whatever the number of threads; half types add in `f32`.

pub(super) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
#[cfg(feature = "cuda")]
pub(crate) mod sort;

use crate::layout::resolve_axis;
use crate::ops::working::{rounded, working};
use crate::storage::{On, inout, on, out};
use crate::{DType, Error, Layout, Result, Shape, Tensor};

impl Tensor {
    /// The slices of `axis` at `indices` (`I64` or `I32`, one axis), in their order. Any element type.
    ///
    /// ```
    /// # use phalanx_tensor::{DType, Device, Tensor};
    /// let x = Tensor::arange(6, DType::F32, Device::cpu(0))?.reshape([2, 3])?;
    /// let last_first = Tensor::from_slice(&[2i64, 0], [2], Device::cpu(0))?;
    /// assert_eq!(x.index_select(1, &last_first)?.to_vec::<f32>()?, [2.0, 0.0, 5.0, 3.0]);
    /// # Ok::<(), phalanx_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::IndexOutOfRange`], [`Error::AxisOutOfRange`], [`Error::InvalidShape`] where
    /// `indices` has not one axis, [`Error::WrongDType`], [`Error::DeviceMismatch`].
    pub fn index_select(&self, axis: isize, indices: &Tensor) -> Result<Tensor> {
        const OP: &str = "index_select";
        let axis = resolve_axis(OP, axis, self.rank())?;
        let mut shape = self.shape().clone();
        shape[axis] = self.expect_list(OP, indices)?;
        let mut y = Tensor::allocate(OP, shape, self.dtype(), self.device())?;
        select(OP, self, axis, indices, &mut y)?;
        Ok(y)
    }

    /// A copy of `self` to whose slices of `axis` at `indices` the slices of `source` are added:
    /// with zeros for `self`, the gradient of [`index_select`](Tensor::index_select).
    ///
    /// # Errors
    /// As [`index_select`](Tensor::index_select); [`Error::ShapeMismatch`] where `source` has not
    /// the shape that `index_select` gives, [`Error::UnsupportedDType`] for integers.
    pub fn index_add(&self, axis: isize, indices: &Tensor, source: &Tensor) -> Result<Tensor> {
        const OP: &str = "index_add";
        self.expect_float(OP)?;
        self.expect_same_kind(OP, source)?;
        let axis = resolve_axis(OP, axis, self.rank())?;
        let mut shape = self.shape().clone();
        shape[axis] = self.expect_list(OP, indices)?;
        if shape != *source.shape() {
            return Err(Error::ShapeMismatch {
                op: OP,
                lhs: source.shape().clone(),
                rhs: shape,
                reason: "the source must have a slice for each index",
            });
        }
        let mut sum = working(OP, self)?;
        add(OP, source, axis, indices, &mut sum)?;
        rounded(OP, sum, self.dtype())
    }

    /// For each place of `indices` the element of `self` at that place, but at the index on
    /// `axis`: `out[i, j] = self[indices[i, j], j]` for axis 0. Any element type.
    ///
    /// `indices` (`I64` or `I32`) has as many axes as `self`, and but for `axis` no larger extents.
    ///
    /// # Errors
    /// [`Error::IndexOutOfRange`], [`Error::AxisOutOfRange`], [`Error::ShapeMismatch`],
    /// [`Error::WrongDType`], [`Error::DeviceMismatch`].
    pub fn gather(&self, axis: isize, indices: &Tensor) -> Result<Tensor> {
        const OP: &str = "gather";
        let axis = resolve_axis(OP, axis, self.rank())?;
        self.expect_places(OP, axis, indices)?;
        let shape = indices.shape().clone();
        let mut y = Tensor::allocate(OP, shape, self.dtype(), self.device())?;
        match on(OP, (self, indices, out(&mut y)))? {
            On::Cpu((x, indices, y)) => cpu::gather(OP, x, axis, indices, y)?,
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (x, indices, y)) => cuda::gather(&mut lane, x, axis, indices, y)?,
        }
        Ok(y)
    }

    /// A copy of `self` to which each element of `source` is added at its own place, but at the
    /// index on `axis`: with zeros for `self`, the gradient of [`gather`](Tensor::gather).
    ///
    /// ```
    /// # use phalanx_tensor::{DType, Device, Tensor};
    /// let bins = Tensor::zeros([3], DType::F32, Device::cpu(0))?;
    /// let at = Tensor::from_slice(&[2i64, 0, 2], [3], Device::cpu(0))?;
    /// let x = Tensor::from_slice(&[1.0f32, 2.0, 4.0], [3], Device::cpu(0))?;
    /// assert_eq!(bins.scatter_add(0, &at, &x)?.to_vec::<f32>()?, [2.0, 0.0, 5.0]);
    /// # Ok::<(), phalanx_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`gather`](Tensor::gather); `source` has the indices' shape, and floats.
    pub fn scatter_add(&self, axis: isize, indices: &Tensor, source: &Tensor) -> Result<Tensor> {
        const OP: &str = "scatter_add";
        self.expect_float(OP)?;
        self.expect_same_kind(OP, source)?;
        let axis = resolve_axis(OP, axis, self.rank())?;
        self.expect_places(OP, axis, indices)?;
        indices.expect_same_shape(OP, source, "there must be an element for each index")?;
        let mut sum = working(OP, self)?;
        match on(OP, (source, indices, inout(&mut sum)))? {
            On::Cpu((source, indices, sum)) => cpu::scatter_add(OP, source, axis, indices, sum)?,
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (source, indices, sum)) => {
                cuda::scatter_add(&mut lane, source, axis, indices, sum)?
            }
        }
        rounded(OP, sum, self.dtype())
    }

    /// The indices can be those of [`index_select`](Tensor::index_select), but for their values;
    /// their number.
    fn expect_list(&self, op: &'static str, indices: &Tensor) -> Result<usize> {
        if indices.rank() != 1 {
            return Err(Error::InvalidShape {
                op,
                shape: indices.shape().clone(),
                reason: "a list of indices must have one axis".into(),
            });
        }
        self.expect_indices(op, indices)?;
        Ok(indices.numel())
    }

    /// The indices can be those of [`gather`](Tensor::gather) into `axis`, but for their values.
    fn expect_places(&self, op: &'static str, axis: usize, indices: &Tensor) -> Result<()> {
        let mut pairs = self.dims().iter().zip(indices.dims()).enumerate();
        if self.rank() != indices.rank() || pairs.any(|(i, (d, n))| i != axis && n > d) {
            return Err(Error::ShapeMismatch {
                op,
                lhs: self.shape().clone(),
                rhs: indices.shape().clone(),
                reason: "indices must have no larger extents, but on the axis",
            });
        }
        self.expect_indices(op, indices)
    }

    /// The indices are on the tensor's device and have the type of indices. The kernels look at
    /// their values.
    pub(super) fn expect_indices(&self, op: &'static str, indices: &Tensor) -> Result<()> {
        self.expect_same_device(op, indices)?;
        match indices.dtype() {
            DType::I32 => Ok(()),
            _ => indices.expect_operand(op, "indices", DType::I64),
        }
    }
}

/// `y` = the slices of `axis` of `x` at `indices`, which in `y` may have any number of axes.
pub(super) fn select(
    op: &'static str,
    x: &Tensor,
    axis: usize,
    indices: &Tensor,
    y: &mut Tensor,
) -> Result<()> {
    match on(op, (x, indices, out(y)))? {
        On::Cpu((x, indices, y)) => cpu::select(op, x, axis, indices, y),
        #[cfg(feature = "cuda")]
        On::Cuda(mut lane, (x, indices, y)) => cuda::select(&mut lane, x, axis, indices, y),
    }
}

/// Adds the slices of `source` to the slices of `axis` of `sum` at `indices`, in the order of these;
/// in `source` they may have any number of axes. `sum` has the type in which `source` computes.
pub(super) fn add(
    op: &'static str,
    source: &Tensor,
    axis: usize,
    indices: &Tensor,
    sum: &mut Tensor,
) -> Result<()> {
    match on(op, (source, indices, inout(sum)))? {
        On::Cpu((source, indices, sum)) => cpu::add(op, source, axis, indices, sum),
        #[cfg(feature = "cuda")]
        On::Cuda(mut lane, (source, indices, sum)) => {
            cuda::add(&mut lane, source, axis, indices, sum)
        }
    }
}

/// The layout in which every place of `shape` is where its line along `axis` starts.
fn lines(op: &'static str, layout: &Layout, axis: usize, shape: &Shape) -> Result<Layout> {
    let mut out = layout.narrow(axis as isize, 0, 1)?;
    for (i, &extent) in shape.iter().enumerate().filter(|(i, _)| *i != axis) {
        out = out.narrow(i as isize, 0, extent)?;
    }
    out.broadcast_to(op, shape)
}
