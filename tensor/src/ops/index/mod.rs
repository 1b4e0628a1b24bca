//! Reading and adding by index: `gather`, `scatter_add`, `index_select`, `index_add`.
//!
//! Indices are `I64` in `0..extent`; there are no negative ones. Elements that meet at one index
//! are added in the order of the indices, whatever the number of threads; half types add in `f32`.

pub(super) mod cpu;

use crate::layout::resolve_axis;
use crate::ops::working::{rounded, working};
use crate::storage::Memory;
use crate::{DType, Error, Layout, Result, Shape, Tensor, dispatch_float};
use bytemuck::cast_slice_mut;
use std::ops::Range;

impl Tensor {
    /// The slices of `axis` at `indices` (`I64`, one axis), in their order. Any element type.
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
        let indices = self.list_of_indices(OP, axis, indices)?;
        let mut shape = self.shape().clone();
        shape[axis] = indices.numel();
        let mut out = Tensor::allocate(OP, shape, self.dtype(), self.device())?;
        let inner = self.dims()[axis + 1..].iter().product::<usize>();
        match self.storage().memory() {
            #[cfg(feature = "cuda")]
            Memory::Cuda(s) => return Err(s.unsupported(OP)),
            Memory::Cpu(_) => cpu::select(
                self.contiguous_for(OP)?.as_bytes()?,
                self.dims()[axis],
                inner * self.dtype().size(),
                indices.as_slice()?,
                out.bytes_mut()?,
            ),
        }
        Ok(out)
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
        let indices = self.list_of_indices(OP, axis, indices)?;
        let mut shape = self.shape().clone();
        shape[axis] = indices.numel();
        if shape != *source.shape() {
            return Err(Error::ShapeMismatch {
                op: OP,
                lhs: source.shape().clone(),
                rhs: shape,
                reason: "the source must have a slice for each index",
            });
        }
        let inner = self.dims()[axis + 1..].iter().product();
        let (mut sum, source) = (working(OP, self)?, source.contiguous_for(OP)?);
        sum.own(OP)?;
        match self.storage().memory() {
            #[cfg(feature = "cuda")]
            Memory::Cuda(s) => return Err(s.unsupported(OP)),
            Memory::Cpu(_) => dispatch_float!(OP, self.dtype(), T => {
                cpu::add::<T>(
                    source.as_slice()?,
                    indices.as_slice()?,
                    self.dims()[axis],
                    inner,
                    sum.make_mut()?,
                );
            }),
        }
        rounded(OP, sum, self.dtype())
    }

    /// For each place of `indices` the element of `self` at that place, but at the index on
    /// `axis`: `out[i, j] = self[indices[i, j], j]` for axis 0. Any element type.
    ///
    /// `indices` (`I64`) has as many axes as `self`, and but for `axis` no larger extents.
    ///
    /// # Errors
    /// [`Error::IndexOutOfRange`], [`Error::AxisOutOfRange`], [`Error::ShapeMismatch`],
    /// [`Error::WrongDType`], [`Error::DeviceMismatch`].
    pub fn gather(&self, axis: isize, indices: &Tensor) -> Result<Tensor> {
        const OP: &str = "gather";
        let axis = resolve_axis(OP, axis, self.rank())?;
        let indices = self.places(OP, axis, indices)?;
        let shape = indices.shape().clone();
        let mut out = Tensor::allocate(OP, shape.clone(), self.dtype(), self.device())?;
        if out.numel() == 0 {
            return Ok(out);
        }
        let lines = lines(OP, self.layout(), axis, &shape)?;
        let stride = self.layout().strides()[axis];
        match self.storage().memory() {
            #[cfg(feature = "cuda")]
            Memory::Cuda(s) => return Err(s.unsupported(OP)),
            Memory::Cpu(from) => {
                let index = (indices.as_slice()?, indices.layout());
                let (size, out) = (self.dtype().size(), out.bytes_mut()?);
                match size {
                    1 => {
                        cpu::gather::<u8>(from.as_raw(), &lines, stride, index, cast_slice_mut(out))
                    }
                    2 => cpu::gather::<u16>(
                        from.as_raw(),
                        &lines,
                        stride,
                        index,
                        cast_slice_mut(out),
                    ),
                    4 => cpu::gather::<u32>(
                        from.as_raw(),
                        &lines,
                        stride,
                        index,
                        cast_slice_mut(out),
                    ),
                    _ => cpu::gather::<u64>(
                        from.as_raw(),
                        &lines,
                        stride,
                        index,
                        cast_slice_mut(out),
                    ),
                }
            }
        }
        Ok(out)
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
        let indices = self.places(OP, axis, indices)?;
        indices.expect_same_shape(OP, source, "there must be an element for each index")?;
        let mut sum = working(OP, self)?;
        sum.own(OP)?;
        if indices.numel() > 0 {
            let source = source.contiguous_for(OP)?;
            let layout = Layout::contiguous(OP, self.shape().clone())?;
            let lines = lines(OP, &layout, axis, indices.shape())?;
            let stride = layout.strides()[axis];
            let mut layouts = [indices.layout(), source.layout(), &lines].map(Layout::at_origin);
            let mut parts = (1, sum.numel());
            if axis > 0 {
                // Each index of the first axis adds into a part of its own.
                parts = (indices.dims()[0], layout.strides()[0]);
                for layout in &mut layouts {
                    *layout = layout.narrow(0, 0, 1)?;
                }
            }
            match self.storage().memory() {
                #[cfg(feature = "cuda")]
                Memory::Cuda(s) => return Err(s.unsupported(OP)),
                Memory::Cpu(_) => dispatch_float!(OP, self.dtype(), T => {
                    let (index, source) = (indices.as_slice()?, source.as_slice()?);
                    cpu::scatter_add::<T>(index, source, &layouts, stride, parts, sum.make_mut()?);
                }),
            }
        }
        rounded(OP, sum, self.dtype())
    }

    /// Checks the indices into `axis` of [`index_select`](Tensor::index_select).
    fn list_of_indices(&self, op: &'static str, axis: usize, indices: &Tensor) -> Result<Tensor> {
        if indices.rank() != 1 {
            return Err(Error::InvalidShape {
                op,
                shape: indices.shape().clone(),
                reason: "a list of indices must have one axis".into(),
            });
        }
        checked(op, self, indices, self.dims()[axis])
    }

    /// Checks the indices into `axis` of [`gather`](Tensor::gather).
    fn places(&self, op: &'static str, axis: usize, indices: &Tensor) -> Result<Tensor> {
        let mut pairs = self.dims().iter().zip(indices.dims()).enumerate();
        if self.rank() != indices.rank() || pairs.any(|(i, (d, n))| i != axis && n > d) {
            return Err(Error::ShapeMismatch {
                op,
                lhs: self.shape().clone(),
                rhs: indices.shape().clone(),
                reason: "indices must have no larger extents, but on the axis",
            });
        }
        checked(op, self, indices, self.dims()[axis])
    }
}

/// The indices, contiguous and all in `0..extent`, on `x`'s device.
pub(super) fn checked(
    op: &'static str,
    x: &Tensor,
    indices: &Tensor,
    extent: usize,
) -> Result<Tensor> {
    x.expect_same_device(op, indices)?;
    indices.expect_operand(op, "indices", DType::I64)?;
    let indices = indices.contiguous_for(op)?;
    match first_outside(&indices, 0..extent as i64, None)? {
        None => Ok(indices),
        Some(index) => Err(Error::IndexOutOfRange {
            op,
            index,
            extent,
            late: false,
        }),
    }
}

/// The first of the indices, which are contiguous, that is neither in `range` nor `except`.
pub(super) fn first_outside(
    indices: &Tensor,
    range: Range<i64>,
    except: Option<i64>,
) -> Result<Option<i64>> {
    match indices.storage().memory() {
        #[cfg(feature = "cuda")]
        Memory::Cuda(s) => return Err(s.unsupported("first_outside")),
        Memory::Cpu(_) => cpu::first_outside(indices, range, except),
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
