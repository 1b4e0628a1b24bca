//! The affine layer `act(x Wᵀ + b)` in one pass, and its gradients.

mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;

use super::unary::{self, Unary};
use crate::storage::{On, on, out};
use crate::{Error, Result, Shape, Tensor, unary_table};

macro_rules! activations {
    (|$vx:ident, $vout:ident, $vg:ident| $({
        $Name:ident $name:ident ($($arg:ident: $ty:ty)?) $values:tt $range:tt
        [[$saved:ident] $gradient:expr] $reference:tt $backward:tt $integers:tt $module:tt
        $activation:tt [$(#[$doc:meta])*] $($rest:tt)*
    })*) => {
        /// What [`Tensor::linear`] applies to its sums while they are at hand.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
        #[non_exhaustive]
        pub enum Activation {
            /// Nothing.
            #[default]
            None,
            $($(#[$doc])* $Name $(($ty))?,)*
        }

        impl Activation {
            /// The function by itself, element by element.
            ///
            /// # Errors
            /// [`Error::UnsupportedDType`] for integers; [`Error::OutOfMemory`].
            pub fn apply(self, x: &Tensor) -> Result<Tensor> {
                match self {
                    Activation::None => Ok(x.clone()),
                    $(Activation::$Name $(($arg))? => x.$name($($arg)?),)*
                }
            }

            /// Whether the derivative is read from the argument; else it follows from the result.
            pub fn saves_argument(self) -> bool {
                match self {
                    Activation::None => false,
                    $(Activation::$Name { .. } => stringify!($saved) == stringify!($vx),)*
                }
            }

            /// The gradient of the argument, given that of the result and what is saved for it.
            ///
            /// # Errors
            /// As [`relu_backward`](Tensor::relu_backward).
            pub fn backward(self, grad: &Tensor, saved: &Tensor) -> Result<Tensor> {
                match self {
                    Activation::None => Ok(grad.clone()),
                    $(Activation::$Name $(($arg))? => {
                        let ($vg, $saved) = (grad, saved);
                        $gradient
                    })*
                }
            }

            /// The function as a kernel's.
            fn function(self) -> Option<Unary> {
                match self {
                    Activation::None => None,
                    $(Activation::$Name $(($arg))? => Some(Unary::$Name $(($arg))?),)*
                }
            }
        }
    };
}

unary_table!(activations activations);

impl Tensor {
    /// `act(x Wᵀ + b)` along the last axis of `self`: `[…, in]` with a weight `[out, in]` and a
    /// bias `[out]` gives `[…, out]` (PyTorch: `nn.functional.linear`). Half types are rounded
    /// once, after the activation.
    ///
    /// ```
    /// # use phalanx_tensor::{Device, Tensor, ops::linear::Activation};
    /// let device = Device::cpu(0);
    /// let x = Tensor::from_slice(&[1.0f32, 2.0], [1, 2], device)?;
    /// let w = Tensor::from_slice(&[1.0f32, 1.0, -1.0, -1.0], [2, 2], device)?;
    /// let b = Tensor::from_slice(&[0.5f32, 0.5], [2], device)?;
    /// assert_eq!(x.linear(&w, Some(&b), Activation::Relu)?.to_vec::<f32>()?, [3.5, 0.0]);
    /// # Ok::<(), phalanx_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`], [`Error::InvalidShape`], [`Error::DTypeMismatch`],
    /// [`Error::DeviceMismatch`], [`Error::UnsupportedDType`] for integers;
    /// [`Error::OutOfMemory`].
    pub fn linear(
        &self,
        weight: &Tensor,
        bias: Option<&Tensor>,
        activation: Activation,
    ) -> Result<Tensor> {
        const OP: &str = "linear";
        let (x, shape) = affine(OP, self, weight, bias)?;
        let mut y = Tensor::allocate(OP, shape, self.dtype(), self.device())?;
        match on(OP, (&x, weight, bias, out(&mut y)))? {
            On::Cpu((x, weight, bias, y)) => cpu::forward(OP, x, weight, bias, activation, y)?,
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (x, weight, bias, y)) => {
                cuda::forward(&mut lane, x, weight, bias, activation, y)?
            }
        }
        Ok(y)
    }

    /// [`linear`](Tensor::linear), and the sums `x Wᵀ + b` from which the activation's derivative is
    /// read where it [saves its argument](Activation::saves_argument).
    ///
    /// The activation is applied to the sums as they are given, rounded. Only a product of which a
    /// card's library does all ([`Device::allow_library_activations`]) applies it to those that it has.
    ///
    /// [`Device::allow_library_activations`]: crate::Device::allow_library_activations
    ///
    /// # Errors
    /// As [`linear`](Tensor::linear).
    pub fn linear_with_sums(
        &self,
        weight: &Tensor,
        bias: Option<&Tensor>,
        activation: Activation,
    ) -> Result<(Tensor, Tensor)> {
        const OP: &str = "linear_with_sums";
        let (x, shape) = affine(OP, self, weight, bias)?;
        let allocate = || Tensor::allocate(OP, shape.clone(), self.dtype(), self.device());
        let mut sums = allocate()?;
        let function = activation.function();
        let mut y = function.map(|_| allocate()).transpose()?;
        match on(OP, (&x, weight, bias, out(&mut sums), y.as_mut().map(out)))? {
            On::Cpu((x, weight, bias, sums, y)) => {
                cpu::forward(OP, x, weight, bias, Activation::None, sums)?;
                if let (Some(function), Some(y)) = (function, y) {
                    unary::cpu::unary(OP, function, sums, y)?;
                }
            }
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (x, weight, bias, sums, y)) => {
                cuda::forward_with_sums(&mut lane, x, weight, bias, activation, sums, y)?
            }
        }
        Ok((y.unwrap_or_else(|| sums.clone()), sums))
    }

    /// The gradient of [`linear`](Tensor::linear)'s argument, where `self` is the gradient of the
    /// sums: `grad W`, `[…, out]` to `[…, in]`.
    ///
    /// # Errors
    /// As [`linear`](Tensor::linear).
    pub fn linear_input_grad(&self, weight: &Tensor) -> Result<Tensor> {
        const OP: &str = "linear_input_grad";
        let (out_features, in_features) = weight_shape(OP, self, weight)?;
        let (grad, lead) = rows(
            OP,
            self,
            out_features,
            weight,
            "the last axis must be as long as the weight's first",
        )?;
        let mut shape = lead;
        shape.push(in_features);
        let mut dx = Tensor::allocate(OP, shape, self.dtype(), self.device())?;
        product(OP, &grad, weight, &mut dx)?;
        Ok(dx)
    }

    /// The gradient of [`linear`](Tensor::linear)'s weight, where `self` is the gradient of the
    /// sums and `x` the argument: `gradᵀ x`, of shape `[out, in]`.
    ///
    /// # Errors
    /// As [`linear`](Tensor::linear).
    pub fn linear_weight_grad(&self, x: &Tensor) -> Result<Tensor> {
        const OP: &str = "linear_weight_grad";
        self.expect_same_kind(OP, x)?;
        self.expect_float(OP)?;
        let mismatch = || Error::ShapeMismatch {
            op: OP,
            lhs: self.shape().clone(),
            rhs: x.shape().clone(),
            reason: "all axes but the last must agree",
        };
        let (Some((&out_features, lead)), Some((&in_features, x_lead))) =
            (self.dims().split_last(), x.dims().split_last())
        else {
            return Err(mismatch());
        };
        if lead != x_lead {
            return Err(mismatch());
        }
        let batch = lead.iter().product::<usize>();
        let matrix = |t: &Tensor, features| {
            let matrix = t.reshape([batch, features]);
            matrix.map_err(|error| error.of(OP))
        };
        let (grad, x) = (matrix(self, out_features)?, matrix(x, in_features)?);
        let shape = [out_features, in_features].into();
        let mut dw = Tensor::allocate(OP, shape, self.dtype(), self.device())?;
        product(OP, &grad.transpose(0, 1)?, &x, &mut dw)?;
        Ok(dw)
    }

    /// The gradient of [`linear`](Tensor::linear)'s bias, where `self` is the gradient of the
    /// sums: the sum over all axes but the last.
    ///
    /// # Errors
    /// [`Error::InvalidShape`] for a scalar; as [`sum`](Tensor::sum).
    pub fn linear_bias_grad(&self) -> Result<Tensor> {
        const OP: &str = "linear_bias_grad";
        let Some((&features, lead)) = self.dims().split_last() else {
            return Err(scalar(OP, self));
        };
        let rows = self.reshape([lead.iter().product::<usize>(), features]);
        let sum = rows.and_then(|rows| rows.sum(&[0], false));
        sum.map_err(|error| error.of(OP))
    }
}

/// Checks the operands of an affine layer; its argument as a matrix, and the shape of its result.
fn affine(
    op: &'static str,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<(Tensor, Shape)> {
    let (out_features, in_features) = weight_shape(op, x, weight)?;
    let (matrix, mut shape) = rows(
        op,
        x,
        in_features,
        weight,
        "the last axis must be as long as the weight's second",
    )?;
    if let Some(bias) = bias {
        x.expect_same_kind(op, bias)?;
        if bias.dims() != [out_features] {
            return Err(Error::ShapeMismatch {
                op,
                lhs: weight.shape().clone(),
                rhs: bias.shape().clone(),
                reason: "the bias must have one element for each row of the weight",
            });
        }
    }
    shape.push(out_features);
    Ok((matrix, shape))
}

/// `c = a b` for matrices.
fn product(op: &'static str, a: &Tensor, b: &Tensor, c: &mut Tensor) -> Result<()> {
    match on(op, (a, b, out(c)))? {
        On::Cpu((a, b, c)) => cpu::product(op, a, b, c),
        #[cfg(feature = "cuda")]
        On::Cuda(mut lane, (a, b, c)) => cuda::product(&mut lane, a, b, c),
    }
}

fn scalar(op: &'static str, t: &Tensor) -> Error {
    Error::InvalidShape {
        op,
        shape: t.shape().clone(),
        reason: "needs at least one axis".into(),
    }
}

/// Checks that `weight` is a matrix of the kind of `t`; its extents.
fn weight_shape(op: &'static str, t: &Tensor, weight: &Tensor) -> Result<(usize, usize)> {
    t.expect_same_kind(op, weight)?;
    t.expect_float(op)?;
    match *weight.dims() {
        [out_features, in_features] => Ok((out_features, in_features)),
        _ => Err(Error::InvalidShape {
            op,
            shape: weight.shape().clone(),
            reason: "the weight must be a matrix, [out, in]".into(),
        }),
    }
}

/// `t` as a matrix of rows of `features`, and its leading axes.
fn rows(
    op: &'static str,
    t: &Tensor,
    features: usize,
    weight: &Tensor,
    reason: &'static str,
) -> Result<(Tensor, Shape)> {
    let (&last, lead) = t.dims().split_last().ok_or_else(|| scalar(op, t))?;
    if last != features {
        return Err(Error::ShapeMismatch {
            op,
            lhs: t.shape().clone(),
            rhs: weight.shape().clone(),
            reason,
        });
    }
    let matrix = t.reshape([lead.iter().product::<usize>(), features]);
    Ok((matrix.map_err(|error| error.of(op))?, Shape::from(lead)))
}
