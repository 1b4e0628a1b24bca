//! Views, joining and cutting, and moves between devices and element types.

use super::{one, unbroadcast};
use crate::error::Result;
use crate::tape::Tape;
use crate::var::Var;
use crate::vjp::{Grads, Vjp};
use phalanx_tensor::{DType, Device, Shape, Tensor};
use smallvec::SmallVec;

/// One row a Vjp that saves no tensor: its fields, its name, the gradient.
macro_rules! rearrangement {
    ($($(#[$doc:meta])* $vjp:ident { $($field:ident: $ty:ty),* } $name:literal |$g:ident| $back:expr;)*) => {
        $(
            $(#[$doc])*
            #[derive(Debug)]
            pub struct $vjp {
                $($field: $ty,)*
            }

            impl Vjp for $vjp {
                fn name(&self) -> &'static str {
                    $name
                }
                fn backward(&self, $g: Tensor, _needs: &[bool]) -> Result<Grads> {
                    let Self { $($field,)* } = self;
                    Ok(one($back?))
                }
                fn saved_bytes(&self) -> usize {
                    0
                }
            }
        )*
    };
}

rearrangement! {
    /// Backward of [`Var::reshape`], [`Var::flatten`], [`Var::squeeze`] and [`Var::unsqueeze`].
    Reshape { from: Shape } "reshape" |g| g.reshape(from);
    /// Backward of [`Var::transpose`].
    Transpose { a: isize, b: isize } "transpose" |g| g.transpose(*a, *b);
    /// Backward of [`Var::permute`].
    Permute { back: SmallVec<[isize; 6]> } "permute" |g| g.permute(back);
    /// Backward of [`Var::narrow`].
    Narrow { widths: SmallVec<[(usize, usize); 4]> } "narrow" |g| g.pad(widths, 0.0);
    /// Backward of [`Var::pad`].
    Pad { widths: SmallVec<[(usize, usize); 4]> } "pad" |g| g.unpad(widths);
    /// Backward of [`Var::broadcast_to`].
    BroadcastTo { from: Shape } "broadcast_to" |g| unbroadcast(g, from);
    /// Backward of [`Var::to_device`]: the gradient goes back where the value came from.
    ToDevice { from: Device } "to_device" |g| g.to_device(*from);
    /// Backward of [`Var::cast`].
    Cast { from: DType } "cast" |g| g.cast(*from);
    /// Backward of [`Var::contiguous`].
    Contiguous {} "contiguous" |g| Ok::<_, crate::Error>(g);
}

/// Backward of [`Var::cat`].
#[derive(Debug)]
pub struct Cat {
    axis: isize,
    sizes: SmallVec<[usize; 4]>,
}

impl Vjp for Cat {
    fn name(&self) -> &'static str {
        "cat"
    }
    fn backward(&self, grad: Tensor, needs: &[bool]) -> Result<Grads> {
        let mut start = 0;
        let mut grads = Grads::new();
        for (&size, &need) in self.sizes.iter().zip(needs) {
            grads.push(match need {
                true => Some(grad.narrow(self.axis, start, size)?),
                false => None,
            });
            start += size;
        }
        Ok(grads)
    }
    fn saved_bytes(&self) -> usize {
        0
    }
}

impl Var {
    /// The same elements under another shape. As [`Tensor::reshape`].
    ///
    /// # Errors
    /// As the tensor's method.
    pub fn reshape(&self, shape: impl Into<Shape>) -> Result<Var> {
        self.reshaped("reshape", self.value().reshape(shape)?)
    }

    /// Joins the axes from `first` to `last`. As [`Tensor::flatten`].
    ///
    /// # Errors
    /// As the tensor's method.
    pub fn flatten(&self, first: isize, last: isize) -> Result<Var> {
        self.reshaped("flatten", self.value().flatten(first, last)?)
    }

    /// Drops an axis of extent 1. As [`Tensor::squeeze`].
    ///
    /// # Errors
    /// As the tensor's method.
    pub fn squeeze(&self, axis: isize) -> Result<Var> {
        self.reshaped("squeeze", self.value().squeeze(axis)?)
    }

    /// Inserts an axis of extent 1. As [`Tensor::unsqueeze`].
    ///
    /// # Errors
    /// As the tensor's method.
    pub fn unsqueeze(&self, axis: isize) -> Result<Var> {
        self.reshaped("unsqueeze", self.value().unsqueeze(axis)?)
    }

    fn reshaped(&self, op: &'static str, out: Tensor) -> Result<Var> {
        let reshaped = Var::from_vjp(self.tape(), &[self], out, |_| Reshape {
            from: self.shape().clone(),
        });
        reshaped.map_err(|error| error.of(op))
    }

    /// Exchanges two axes. As [`Tensor::transpose`].
    ///
    /// # Errors
    /// As the tensor's method.
    pub fn transpose(&self, a: isize, b: isize) -> Result<Var> {
        let out = self.value().transpose(a, b)?;
        Var::from_vjp(self.tape(), &[self], out, |_| Transpose { a, b })
    }

    /// Exchanges the last two axes. As [`Tensor::t`].
    ///
    /// # Errors
    /// As the tensor's method.
    pub fn t(&self) -> Result<Var> {
        self.transpose(-2, -1).map_err(|error| error.of("t"))
    }

    /// Reorders the axes. As [`Tensor::permute`].
    ///
    /// # Errors
    /// As the tensor's method.
    pub fn permute(&self, axes: &[isize]) -> Result<Var> {
        let out = self.value().permute(axes)?;
        Var::from_vjp(self.tape(), &[self], out, |_| {
            let rank = axes.len() as isize;
            let mut back: SmallVec<[isize; 6]> = SmallVec::from_elem(0, axes.len());
            for (i, &axis) in axes.iter().enumerate() {
                back[axis.rem_euclid(rank) as usize] = i as isize;
            }
            Permute { back }
        })
    }

    /// Keeps `len` indices of `axis`. As [`Tensor::narrow`].
    ///
    /// # Errors
    /// As the tensor's method.
    pub fn narrow(&self, axis: isize, start: usize, len: usize) -> Result<Var> {
        let out = self.value().narrow(axis, start, len)?;
        Var::from_vjp(self.tape(), &[self], out, |_| {
            let axis = axis.rem_euclid(self.rank() as isize) as usize;
            let mut widths = SmallVec::from_elem((0, 0), self.rank());
            widths[axis] = (start, self.dims()[axis] - start - len);
            Narrow { widths }
        })
    }

    /// Index `index` of `axis`, without that axis. As [`Tensor::select`].
    ///
    /// # Errors
    /// As the tensor's method.
    pub fn select(&self, axis: isize, index: usize) -> Result<Var> {
        let narrowed = self.narrow(axis, index, 1);
        let selected = narrowed.and_then(|one| one.squeeze(axis));
        selected.map_err(|error| error.of("select"))
    }

    /// Cuts `axis` into pieces. As [`Tensor::split`].
    ///
    /// # Errors
    /// As the tensor's method.
    pub fn split(&self, sizes: &[usize], axis: isize) -> Result<Vec<Var>> {
        let pieces = self.value().split(sizes, axis)?;
        self.pieces("split", pieces, axis)
    }

    /// Cuts `axis` into `count` pieces. As [`Tensor::chunk`].
    ///
    /// # Errors
    /// As the tensor's method.
    pub fn chunk(&self, count: usize, axis: isize) -> Result<Vec<Var>> {
        let pieces = self.value().chunk(count, axis)?;
        self.pieces("chunk", pieces, axis)
    }

    fn pieces(&self, op: &'static str, pieces: Vec<Tensor>, axis: isize) -> Result<Vec<Var>> {
        let mut start = 0;
        let at = axis.rem_euclid(self.rank() as isize) as usize;
        let mut piece = |piece: Tensor| {
            let len = piece.dims()[at];
            start += len;
            self.narrow(axis, start - len, len)
        };
        let pieces: Result<Vec<Var>> = pieces.into_iter().map(&mut piece).collect();
        pieces.map_err(|error| error.of(op))
    }

    /// Joins variables along `axis`. As [`Tensor::cat`].
    ///
    /// # Errors
    /// As the tensor's method; [`Error::TapeMismatch`](crate::Error::TapeMismatch).
    pub fn cat(tape: &Tape, vars: &[&Var], axis: isize) -> Result<Var> {
        let tensors: SmallVec<[&Tensor; 8]> = vars.iter().map(|v| v.value()).collect();
        let out = Tensor::cat(&tensors, axis)?;
        let at = axis.rem_euclid(out.rank() as isize) as usize;
        Var::from_vjp(tape, vars, out, |_| Cat {
            axis,
            sizes: vars.iter().map(|v| v.dims()[at]).collect(),
        })
    }

    /// Joins variables of one shape along a new axis. As [`Tensor::stack`].
    ///
    /// # Errors
    /// As the tensor's method; [`Error::TapeMismatch`](crate::Error::TapeMismatch).
    pub fn stack(tape: &Tape, vars: &[&Var], axis: isize) -> Result<Var> {
        let rank = vars.first().map_or(0, |v| v.rank()) as isize;
        let at = if axis < 0 { axis + rank + 1 } else { axis };
        let rows: Result<Vec<Var>> = vars.iter().map(|v| v.unsqueeze(at)).collect();
        let stacked = rows.and_then(|rows| Var::cat(tape, &rows.iter().collect::<Vec<_>>(), at));
        stacked.map_err(|error| error.of("stack"))
    }

    /// Adds a frame of `value`. As [`Tensor::pad`].
    ///
    /// # Errors
    /// As the tensor's method.
    pub fn pad(&self, widths: &[(usize, usize)], value: f64) -> Result<Var> {
        let out = self.value().pad(widths, value)?;
        Var::from_vjp(self.tape(), &[self], out, |_| Pad {
            widths: SmallVec::from_slice(widths),
        })
    }

    /// Stretches axes of extent 1. As [`Tensor::broadcast_to`].
    ///
    /// # Errors
    /// As the tensor's method.
    pub fn broadcast_to(&self, shape: impl Into<Shape>) -> Result<Var> {
        let out = self.value().broadcast_to(shape)?;
        Var::from_vjp(self.tape(), &[self], out, |_| BroadcastTo {
            from: self.shape().clone(),
        })
    }

    /// The same elements in row-major order without gaps. As [`Tensor::contiguous`].
    ///
    /// # Errors
    /// As the tensor's method.
    pub fn contiguous(&self) -> Result<Var> {
        let out = self.value().contiguous()?;
        Var::from_vjp(self.tape(), &[self], out, |_| Contiguous {})
    }

    /// The same elements on another device; the gradient travels back. As [`Tensor::to_device`].
    ///
    /// # Errors
    /// As the tensor's method.
    pub fn to_device(&self, device: Device) -> Result<Var> {
        if self.device() == device {
            return Ok(self.clone());
        }
        let out = self.value().to_device(device)?;
        Var::from_vjp(self.tape(), &[self], out, |_| ToDevice {
            from: self.device(),
        })
    }

    /// The same values as another float type. As [`Tensor::cast`]. A cast to integers is a
    /// constant.
    ///
    /// # Errors
    /// As the tensor's method.
    pub fn cast(&self, dtype: DType) -> Result<Var> {
        let out = self.value().cast(dtype)?;
        if !dtype.is_float() {
            return Ok(self.tape().constant(out));
        }
        Var::from_vjp(self.tape(), &[self], out, |_| Cast { from: self.dtype() })
    }
}
