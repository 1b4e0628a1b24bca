//! Functions of one tensor, element by element, and their backward operations: a row each of
//! the table in `table.rs`.
//!
//! A backward operation multiplies the incoming gradient by the derivative. It takes the forward
//! result where the derivative follows from it (as in PyTorch), else the forward argument.

pub(super) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
mod kernel;
mod table;

#[doc(hidden)]
pub use kernel::CUDA;

use crate::storage::{On, on, out};
use crate::{Result, Tensor, unary_table};

/// Which formula of the Gaussian error linear unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum GeluKind {
    /// x Φ(x) = x/2 · (1 + erf(x/√2)).
    #[default]
    Exact,
    /// x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))).
    Tanh,
}

macro_rules! methods {
    (|$vx:ident, $vout:ident, $vg:ident| $({
        $Name:ident $name:ident ($($arg:ident: $ty:ty)?) $values:tt $range:tt $gradient:tt $reference:tt
        $backward:tt $integers:tt $module:tt $activation:tt [$(#[$doc:meta])*] [$(#[$example:meta])*] $forward:tt
    })*) => {
        /// The functions of this family.
        #[derive(Debug, Clone, Copy, PartialEq)]
        pub(crate) enum Unary {
            $($Name $(($ty))?,)*
        }

        impl Tensor {
            $(
                $(#[$doc])*
                ///
                $(#[$example])*
                ///
                /// # Errors
                /// [`UnsupportedDType`](crate::Error::UnsupportedDType) where the element type has no
                /// such function; [`OutOfMemory`](crate::Error::OutOfMemory).
                pub fn $name(&self $(, $arg: $ty)?) -> Result<Tensor> {
                    self.unary(stringify!($name), Unary::$Name $(($arg))?)
                }

                backward! { $Name $name ($($arg: $ty)?) $backward }
            )*
        }
    };
}

macro_rules! backward {
    ($Name:ident $name:ident $args:tt []) => {};
    ($Name:ident $name:ident ($($arg:ident: $ty:ty)?)
     [$back:ident [$g:ident $saved:ident] $($formulas:tt)*]) => {
        #[doc = concat!(
            "Backward of [`", stringify!($name), "`](Tensor::", stringify!($name),
            "): the gradient of its argument."
        )]
        ///
        #[doc = concat!(
            "`self` is the gradient of the result, `", stringify!($saved), "` is what `",
            stringify!($name), "` was given (`x`) or gave (`out`); both tensors have one shape."
        )]
        ///
        /// # Errors
        /// [`ShapeMismatch`](crate::Error::ShapeMismatch),
        /// [`DTypeMismatch`](crate::Error::DTypeMismatch),
        /// [`DeviceMismatch`](crate::Error::DeviceMismatch);
        /// [`UnsupportedDType`](crate::Error::UnsupportedDType) for integers;
        /// [`OutOfMemory`](crate::Error::OutOfMemory).
        pub fn $back(&self, $saved: &Tensor $(, $arg: $ty)?) -> Result<Tensor> {
            self.unary_backward(stringify!($back), $saved, Unary::$Name $(($arg))?)
        }
    };
}

unary_table!(methods);

impl Tensor {
    fn unary(&self, op: &'static str, kind: Unary) -> Result<Tensor> {
        let mut y = Tensor::allocate(op, self.shape().clone(), self.dtype(), self.device())?;
        match on(op, (self, out(&mut y)))? {
            On::Cpu((x, y)) => cpu::unary(op, kind, x, y)?,
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (x, y)) => cuda::unary(&mut lane, kind, x, y)?,
        }
        Ok(y)
    }

    fn unary_backward(&self, op: &'static str, saved: &Tensor, kind: Unary) -> Result<Tensor> {
        self.expect_same_kind(op, saved)?;
        self.expect_same_shape(op, saved, "the gradient must have the shape of the result")?;
        let mut dx = Tensor::allocate(op, self.shape().clone(), self.dtype(), self.device())?;
        match on(op, (self, saved, out(&mut dx)))? {
            On::Cpu((dy, saved, dx)) => cpu::backward(op, kind, dy, saved, dx)?,
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (dy, saved, dx)) => cuda::backward(&mut lane, kind, dy, saved, dx)?,
        }
        Ok(dx)
    }
}
