//! Joining, cutting and padding: `cat`, `stack`, `split`, `chunk`, `pad`. Any element type; what
//! cuts is a view.

mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;

use crate::cpu::scratch::room;
use crate::layout::resolve_axis;
use crate::storage::{On, inout, on};
use crate::{Error, Layout, Number, Result, Shape, Tensor};

/// The most pieces into which [`chunk`](Tensor::chunk) cuts an empty axis.
const MOST_OF_NOTHING: usize = 1 << 16;

impl Tensor {
    /// Joins tensors along `axis`; their other extents are equal.
    ///
    /// ```
    /// # use phalanx_tensor::{DType, Device, Tensor};
    /// let a = Tensor::from_slice(&[1i64, 2], [1, 2], Device::cpu(0))?;
    /// let b = Tensor::from_slice(&[3i64, 4, 5, 6], [2, 2], Device::cpu(0))?;
    /// assert_eq!(Tensor::cat(&[&a, &b], 0)?.to_vec::<i64>()?, [1, 2, 3, 4, 5, 6]);
    /// # Ok::<(), phalanx_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an empty list, [`Error::ShapeMismatch`],
    /// [`Error::DTypeMismatch`], [`Error::DeviceMismatch`], [`Error::AxisOutOfRange`].
    pub fn cat(tensors: &[&Tensor], axis: isize) -> Result<Tensor> {
        const OP: &str = "cat";
        let first = first_of(OP, tensors)?;
        let axis = resolve_axis(OP, axis, first.rank())?;
        let mut shape = first.shape().clone();
        shape[axis] = 0;
        for tensor in tensors {
            first.expect_same_kind(OP, tensor)?;
            let mut pairs = first.dims().iter().zip(tensor.dims()).enumerate();
            if first.rank() != tensor.rank() || pairs.any(|(i, (a, b))| i != axis && a != b) {
                return Err(Error::ShapeMismatch {
                    op: OP,
                    lhs: first.shape().clone(),
                    rhs: tensor.shape().clone(),
                    reason: "all extents but that of the axis must be equal",
                });
            }
            let extent = shape[axis].checked_add(tensor.dims()[axis]);
            shape[axis] = extent.ok_or_else(|| Error::InvalidArgument {
                op: OP,
                reason: format!(
                    "{} tensors like {} are, joined along axis {axis}, longer than can be counted",
                    tensors.len(),
                    first.shape()
                ),
            })?;
        }
        let mut out = Tensor::allocate(OP, shape, first.dtype(), first.device())?;
        let mut start = 0;
        for tensor in tensors {
            let extent = tensor.dims()[axis];
            let place = out.layout().narrow(axis as isize, start, extent)?;
            copy_into(OP, tensor, &mut out, &place)?;
            start += extent;
        }
        Ok(out)
    }

    /// Joins tensors of one shape along a new axis before `axis` (`-1`: at the end).
    ///
    /// # Errors
    /// As [`cat`](Tensor::cat).
    pub fn stack(tensors: &[&Tensor], axis: isize) -> Result<Tensor> {
        const OP: &str = "stack";
        let first = first_of(OP, tensors)?;
        let axis = resolve_axis(OP, axis, first.rank() + 1)?;
        for tensor in tensors {
            first.expect_same_kind(OP, tensor)?;
            first.expect_same_shape(OP, tensor, "all must have one shape")?;
        }
        let mut shape = first.shape().clone();
        shape.insert(axis, tensors.len());
        let mut out = Tensor::allocate(OP, shape, first.dtype(), first.device())?;
        for (i, tensor) in tensors.iter().enumerate() {
            let place = out.layout().narrow(axis as isize, i, 1)?;
            copy_into(OP, tensor, &mut out, &place.squeeze(axis as isize)?)?;
        }
        Ok(out)
    }

    /// Cuts `axis` into pieces of the extents `sizes`. Views.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where the sizes do not add up to the extent,
    /// [`Error::AxisOutOfRange`].
    pub fn split(&self, sizes: &[usize], axis: isize) -> Result<Vec<Tensor>> {
        const OP: &str = "split";
        let at = resolve_axis(OP, axis, self.rank())?;
        let sum = sizes.iter().try_fold(0usize, |sum, &n| sum.checked_add(n));
        if sum != Some(self.dims()[at]) {
            return Err(Error::InvalidArgument {
                op: OP,
                reason: format!(
                    "sizes {sizes:?} do not add up to axis {axis} of shape {}",
                    self.shape()
                ),
            });
        }
        let mut pieces = room(sizes.len()).map_err(|e| e.on(OP, self.device()))?;
        let mut start = 0;
        for &size in sizes {
            pieces.push(self.narrow(axis, start, size)?);
            start += size;
        }
        Ok(pieces)
    }

    /// Cuts `axis` into `count` pieces of equal extent, the last one smaller where it does not
    /// divide; fewer pieces where the extent does not reach, as in PyTorch. Views.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a count of 0, and for one beyond 65,536 where the axis is
    /// empty and so has as many pieces as asked for; [`Error::AxisOutOfRange`].
    pub fn chunk(&self, count: usize, axis: isize) -> Result<Vec<Tensor>> {
        const OP: &str = "chunk";
        let extent = self.dims()[resolve_axis(OP, axis, self.rank())?];
        if count == 0 {
            return Err(Error::InvalidArgument {
                op: OP,
                reason: "a count of 0".into(),
            });
        }
        let size = extent.div_ceil(count).max(1);
        let pieces = match extent {
            0 if count > MOST_OF_NOTHING => {
                return Err(Error::InvalidArgument {
                    op: OP,
                    reason: format!(
                        "count {count}: an empty axis is cut into at most {MOST_OF_NOTHING} pieces"
                    ),
                });
            }
            0 => count,
            _ => extent.div_ceil(size),
        };
        let mut sizes = room(pieces).map_err(|e| e.on(OP, self.device()))?;
        sizes.extend((0..pieces).map(|i| size.min(extent - (i * size).min(extent))));
        self.split(&sizes, axis)
    }

    /// Adds `widths[i] = (before, after)` elements of `value` around axis `i`: one pair for each
    /// axis, in order.
    ///
    /// `value` is an `f64`: an `i64` beyond 2⁵³ that no `f64` holds cannot be given here, but as
    /// tensors of [`full`](Tensor::full) to [`cat`](Tensor::cat).
    ///
    /// ```
    /// # use phalanx_tensor::{DType, Device, Tensor};
    /// let x = Tensor::ones([1, 2], DType::F32, Device::cpu(0))?;
    /// assert_eq!(x.pad(&[(0, 1), (1, 0)], 9.0)?.to_vec::<f32>()?, [9.0, 1.0, 1.0, 9.0, 9.0, 9.0]);
    /// # Ok::<(), phalanx_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where there is not a pair for each axis, the result would not be
    /// [addressable](Shape::is_addressable), or the integer type does not hold `value`;
    /// [`Error::OutOfMemory`].
    pub fn pad(&self, widths: &[(usize, usize)], value: f64) -> Result<Tensor> {
        const OP: &str = "pad";
        self.expect_widths(OP, widths)?;
        let grown = |(&d, &(lo, hi)): (&usize, &(usize, usize))| d.checked_add(lo)?.checked_add(hi);
        let shape: Option<Vec<usize>> = self.dims().iter().zip(widths).map(grown).collect();
        let shape = shape.map(Shape::from);
        let Some(shape) = shape.filter(|shape| shape.is_addressable(self.dtype())) else {
            return Err(Error::InvalidArgument {
                op: OP,
                reason: format!(
                    "shape {} with widths {widths:?} around it is beyond all memory",
                    self.shape()
                ),
            });
        };
        let value = Number::Float(value);
        let mut out = Tensor::full_for(OP, shape, value, self.dtype(), self.device())?;
        let mut place = out.layout().clone();
        for (axis, (&(lo, _), &extent)) in widths.iter().zip(self.dims()).enumerate() {
            place = place.narrow(axis as isize, lo, extent)?;
        }
        copy_into(OP, self, &mut out, &place)?;
        Ok(out)
    }

    /// Takes away what [`pad`](Tensor::pad) has added: the gradient of `pad`. A view.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where there is not a pair for each axis, or more is to go than
    /// there is.
    pub fn unpad(&self, widths: &[(usize, usize)]) -> Result<Tensor> {
        const OP: &str = "unpad";
        self.expect_widths(OP, widths)?;
        let mut out = self.clone();
        for (axis, (&(lo, hi), &extent)) in widths.iter().zip(self.dims()).enumerate() {
            let rest = extent.checked_sub(lo).and_then(|rest| rest.checked_sub(hi));
            let rest = rest.ok_or_else(|| Error::InvalidArgument {
                op: OP,
                reason: format!(
                    "axis {axis} of {} is shorter than {lo} + {hi}",
                    self.shape()
                ),
            })?;
            out = out.narrow(axis as isize, lo, rest)?;
        }
        Ok(out)
    }

    fn expect_widths(&self, op: &'static str, widths: &[(usize, usize)]) -> Result<()> {
        if widths.len() == self.rank() {
            return Ok(());
        }
        Err(Error::InvalidArgument {
            op,
            reason: format!("{} widths for the axes of {}", widths.len(), self.shape()),
        })
    }
}

fn first_of<'a>(op: &'static str, tensors: &[&'a Tensor]) -> Result<&'a Tensor> {
    tensors
        .first()
        .copied()
        .ok_or_else(|| Error::InvalidArgument {
            op,
            reason: "an empty list of tensors".into(),
        })
}

/// Copies all elements of `from` to the places `place` of `to`.
fn copy_into(op: &'static str, from: &Tensor, to: &mut Tensor, place: &Layout) -> Result<()> {
    match on(op, (from, inout(to)))? {
        On::Cpu((from, to)) => cpu::copy_into(op, from, to, place),
        #[cfg(feature = "cuda")]
        On::Cuda(mut lane, (from, to)) => cuda::copy_into(&mut lane, from, to, place),
    }
}
