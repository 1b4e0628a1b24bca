//! Functions of one tensor, element by element, and their backward operations.
//!
//! A backward operation multiplies the incoming gradient by the derivative. It takes the forward
//! result where the derivative follows from it (as in PyTorch), else the forward argument.

pub(crate) mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;

use crate::storage::{On, on, out};
use crate::{Result, Tensor};

/// Which formula of the Gaussian error linear unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum GeluKind {
    /// x Φ(x) = x/2 · (1 + erf(x/√2)).
    #[default]
    Exact,
    /// x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))).
    Tanh,
}

/// The functions of this family.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Unary {
    Neg,
    Abs,
    Sign,
    Square,
    Sqrt,
    Rsqrt,
    Recip,
    Exp,
    Log,
    Sin,
    Cos,
    Tanh,
    Sigmoid,
    Relu,
    LeakyRelu(f64),
    Gelu(GeluKind),
    Silu,
    Softplus,
}

/// The backward operations of this family, as functions of the gradient and of the saved tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Backward {
    Abs,
    Square,
    Sqrt,
    Rsqrt,
    Recip,
    Sin,
    Cos,
    Tanh,
    Sigmoid,
    Relu,
    LeakyRelu(f64),
    Gelu(GeluKind),
    Silu,
    Softplus,
}

macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $ty:ty),*) = $kind:expr;)*) => {
        impl Tensor {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// [`UnsupportedDType`](crate::Error::UnsupportedDType) where the element type has no
                /// such function; [`OutOfMemory`](crate::Error::OutOfMemory).
                pub fn $name(&self, $($arg: $ty),*) -> Result<Tensor> {
                    self.unary(stringify!($name), $kind)
                }
            )*
        }
    };
}

unary! {
    /// −x. Also of `i64`.
    neg() = Unary::Neg;
    /// |x|. Also of `i64`.
    abs() = Unary::Abs;
    /// −1, 0 or 1; NaN for NaN. Also of `i64`.
    sign() = Unary::Sign;
    /// x². Also of `i64`.
    square() = Unary::Square;
    /// √x.
    sqrt() = Unary::Sqrt;
    /// 1 / √x.
    rsqrt() = Unary::Rsqrt;
    /// 1 / x (PyTorch: `reciprocal`).
    recip() = Unary::Recip;
    /// eˣ.
    exp() = Unary::Exp;
    /// The natural logarithm.
    log() = Unary::Log;
    /// The sine.
    sin() = Unary::Sin;
    /// The cosine.
    cos() = Unary::Cos;
    /// The hyperbolic tangent.
    tanh() = Unary::Tanh;
    /// The logistic function 1 / (1 + e⁻ˣ).
    sigmoid() = Unary::Sigmoid;
    /// The larger of x and 0; NaN stays NaN.
    ///
    /// ```
    /// # use phalanx_tensor::{Device, Tensor};
    /// let x = Tensor::from_vec(vec![-1.0f32, 0.5], [2], Device::cpu(0))?;
    /// assert_eq!(x.relu()?.to_vec::<f32>()?, [0.0, 0.5]);
    /// # Ok::<(), phalanx_tensor::Error>(())
    /// ```
    relu() = Unary::Relu;
    /// x where it is positive, else `slope` · x.
    leaky_relu(slope: f64) = Unary::LeakyRelu(slope);
    /// The Gaussian error linear unit (Hendrycks and Gimpel 2016).
    gelu(kind: GeluKind) = Unary::Gelu(kind);
    /// x · sigmoid(x), also known as swish.
    silu() = Unary::Silu;
    /// ln(1 + eˣ), without overflow.
    softplus() = Unary::Softplus;
}

macro_rules! backward {
    ($($(#[$doc:meta])* $name:ident($saved:ident $(, $arg:ident: $ty:ty)*) = $kind:expr;)*) => {
        impl Tensor {
            $(
                $(#[$doc])*
                ///
                /// `self` is the gradient of the result; both tensors have one shape.
                ///
                /// # Errors
                /// [`ShapeMismatch`](crate::Error::ShapeMismatch),
                /// [`DTypeMismatch`](crate::Error::DTypeMismatch),
                /// [`DeviceMismatch`](crate::Error::DeviceMismatch);
                /// [`UnsupportedDType`](crate::Error::UnsupportedDType) for integers;
                /// [`OutOfMemory`](crate::Error::OutOfMemory).
                pub fn $name(&self, $saved: &Tensor $(, $arg: $ty)*) -> Result<Tensor> {
                    self.unary_backward(stringify!($name), $saved, $kind)
                }
            )*
        }
    };
}

backward! {
    /// Backward of [`abs`](Tensor::abs): the subgradient at 0 is 0.
    abs_backward(x) = Backward::Abs;
    /// Backward of [`square`](Tensor::square).
    square_backward(x) = Backward::Square;
    /// Backward of [`sqrt`](Tensor::sqrt), from its result.
    sqrt_backward(out) = Backward::Sqrt;
    /// Backward of [`rsqrt`](Tensor::rsqrt), from its result.
    rsqrt_backward(out) = Backward::Rsqrt;
    /// Backward of [`recip`](Tensor::recip), from its result.
    recip_backward(out) = Backward::Recip;
    /// Backward of [`sin`](Tensor::sin).
    sin_backward(x) = Backward::Sin;
    /// Backward of [`cos`](Tensor::cos).
    cos_backward(x) = Backward::Cos;
    /// Backward of [`tanh`](Tensor::tanh), from its result.
    tanh_backward(out) = Backward::Tanh;
    /// Backward of [`sigmoid`](Tensor::sigmoid), from its result.
    sigmoid_backward(out) = Backward::Sigmoid;
    /// Backward of [`relu`](Tensor::relu), from its result; the subgradient at 0 is 0.
    relu_backward(out) = Backward::Relu;
    /// Backward of [`leaky_relu`](Tensor::leaky_relu), from its argument.
    leaky_relu_backward(x, slope: f64) = Backward::LeakyRelu(slope);
    /// Backward of [`gelu`](Tensor::gelu), from its argument.
    gelu_backward(x, kind: GeluKind) = Backward::Gelu(kind);
    /// Backward of [`silu`](Tensor::silu), from its argument.
    silu_backward(x) = Backward::Silu;
    /// Backward of [`softplus`](Tensor::softplus), from its argument.
    softplus_backward(x) = Backward::Softplus;
}

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

    fn unary_backward(&self, op: &'static str, saved: &Tensor, kind: Backward) -> Result<Tensor> {
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
