//! Working copies for the kernels that compute in `f32` or `f64` only: half types are widened before
//! and rounded once after.

use crate::ops::cast::cpu::cast;
use crate::{DType, Element, Result, Tensor};

/// Runs the body with the Rust type of a working tensor, which is `f32` or `f64`.
macro_rules! on_real {
    ($x:expr, $t:ident => $body:expr) => {
        if $x.dtype() == $crate::DType::F64 {
            type $t = f64;
            $body
        } else {
            type $t = f32;
            $body
        }
    };
}
pub(crate) use on_real;

/// Runs the body with the Rust types of two tensors, the second of the first one's type or of that
/// in which it computes.
macro_rules! dispatch_pair {
    ($op:expr, $first:expr, $second:expr, $t:ident, $u:ident => $body:expr) => {
        $crate::dispatch_float!($op, $first.dtype(), $t => {
            if $second.dtype() == <$t as $crate::Element>::DTYPE {
                type $u = $t;
                $body
            } else {
                type $u = <$t as $crate::Float>::Compute;
                $body
            }
        })
    };
}
pub(crate) use dispatch_pair;

/// The tensor as the kernels want it: contiguous, half types widened to `f32`.
pub(crate) fn working(op: &'static str, t: &Tensor) -> Result<Tensor> {
    match t.dtype() {
        DType::BF16 | DType::F16 => t.cast_for(op, DType::F32),
        _ => t.contiguous_for(op),
    }
}

/// As [`working`], where there is a tensor.
pub(crate) fn working_if(op: &'static str, t: Option<&Tensor>) -> Result<Option<Tensor>> {
    t.map(|t| working(op, t)).transpose()
}

/// The elements, where there is a tensor.
pub(crate) fn slice_if<T: Element>(t: &Option<Tensor>) -> Result<Option<&[T]>> {
    t.as_ref().map(Tensor::as_slice).transpose()
}

/// A result as the kernels write it: its own elements or, where it is of a half type, scratch.
pub(crate) struct Wide<'a> {
    op: &'static str,
    out: &'a mut Tensor,
    scratch: Option<Tensor>,
}

impl<'a> Wide<'a> {
    /// # Errors
    /// [`OutOfMemory`](crate::Error::OutOfMemory); nothing has been written then.
    pub(crate) fn new(op: &'static str, out: &'a mut Tensor) -> Result<Wide<'a>> {
        let (dtype, wide) = (out.dtype(), out.dtype().compute());
        let scratch = (dtype != wide)
            .then(|| Tensor::allocate(op, out.shape().clone(), wide, out.device()))
            .transpose()?;
        Ok(Wide { op, out, scratch })
    }

    /// The elements to write.
    pub(crate) fn slice<T: Element>(&mut self) -> Result<&mut [T]> {
        self.scratch.as_mut().unwrap_or(self.out).make_mut()
    }

    /// Rounds what has been written, if it is not the result itself.
    pub(crate) fn round(self) -> Result<()> {
        match self.scratch {
            Some(scratch) => cast(self.op, &scratch, self.out),
            None => Ok(()),
        }
    }
}
