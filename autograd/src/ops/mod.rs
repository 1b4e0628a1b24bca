//! The operations of [`Var`](crate::Var), family by family as in `phalanx_tensor::ops`: each is the
//! tensor's method of the same name, with a [`Vjp`](crate::Vjp) beside it.

use crate::error::Result;
use crate::vjp::Grads;
use phalanx_tensor::{Shape, Tensor};

pub mod binary;
pub mod conv;
pub mod index;
pub mod linear;
pub mod matmul;
pub mod norm;
pub mod pool;
pub mod random;
pub mod reduce;
pub mod shape;
pub mod softmax;
pub mod unary;

/// The gradients of a node with one input.
fn one(grad: Tensor) -> Grads {
    let mut grads = Grads::new();
    grads.push(Some(grad));
    grads
}

/// The tensor to which a gradient computed in the type of `grad` can be added without rounding, where
/// there is one.
fn sum_for<'s>(
    sums: &'s mut [Option<Tensor>],
    input: usize,
    grad: &Tensor,
) -> Option<&'s mut Tensor> {
    let sum = sums.get_mut(input)?.as_mut()?;
    (sum.dtype() == grad.dtype().compute()).then_some(sum)
}

fn zeros_like(t: &Tensor) -> phalanx_tensor::Result<Tensor> {
    Tensor::zeros(t.shape(), t.dtype(), t.device())
}

/// The gradient of an operand that was stretched: summed over what it was stretched along.
fn unbroadcast(grad: Tensor, shape: &Shape) -> Result<Tensor> {
    if grad.shape() == shape {
        Ok(grad)
    } else {
        Ok(grad.sum_to_shape(shape)?)
    }
}
