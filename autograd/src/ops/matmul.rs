//! The matrix product.

use super::unbroadcast;
use crate::error::Result;
use crate::var::Var;
use crate::vjp::{Grads, Vjp, tensor_bytes};
use phalanx_tensor::{Shape, Tensor};

/// Backward of [`Var::matmul`].
#[derive(Debug)]
pub struct Matmul {
    shapes: [Shape; 2],
    /// For the gradient of the other.
    a: Option<Tensor>,
    b: Option<Tensor>,
}

/// A vector on the left is a row, one on the right a column.
fn as_matrix(t: &Tensor, axis: isize) -> phalanx_tensor::Result<Tensor> {
    if t.rank() == 1 {
        t.unsqueeze(axis)
    } else {
        Ok(t.clone())
    }
}

/// The sum over the axes that were stretched, in the shape of the operand.
fn like(grad: Tensor, shape: &Shape, axis: isize) -> Result<Tensor> {
    match shape[..] {
        [n] => {
            let matrix = if axis == 0 { [1, n] } else { [n, 1] };
            Ok(unbroadcast(grad, &matrix.into())?.reshape(shape)?)
        }
        _ => unbroadcast(grad, shape),
    }
}

impl Vjp for Matmul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn backward(&self, grad: Tensor, needs: &[bool]) -> Result<Grads> {
        let [a_shape, b_shape] = &self.shapes;
        let mut grad = grad;
        if b_shape.len() == 1 {
            grad = grad.unsqueeze(-1)?;
        }
        if a_shape.len() == 1 {
            grad = grad.unsqueeze(-2)?;
        }
        let mut grads = Grads::new();
        grads.push(match &self.b {
            Some(b) if needs[0] => {
                let da = grad.matmul(&as_matrix(b, -1)?.t()?)?;
                Some(like(da, a_shape, 0)?)
            }
            _ => None,
        });
        grads.push(match &self.a {
            Some(a) if needs[1] => {
                let db = as_matrix(a, 0)?.t()?.matmul(&grad)?;
                Some(like(db, b_shape, 1)?)
            }
            _ => None,
        });
        Ok(grads)
    }

    fn saved_bytes(&self) -> usize {
        self.a.iter().chain(&self.b).map(tensor_bytes).sum()
    }

    fn shrink(&mut self, needs: &[bool]) {
        self.b.take_if(|_| !needs[0]);
        self.a.take_if(|_| !needs[1]);
    }
}

impl Var {
    /// The matrix product of stacks of matrices. As [`Tensor::matmul`].
    ///
    /// # Errors
    /// As the tensor's method; [`Error::TapeMismatch`](crate::Error::TapeMismatch).
    pub fn matmul(&self, rhs: &Var) -> Result<Var> {
        let (a, b) = (self.value(), rhs.value());
        let out = a.matmul(b)?;
        Var::from_vjp(self.tape(), &[self, rhs], out, |needs| Matmul {
            shapes: [a.shape().clone(), b.shape().clone()],
            a: needs[1].then(|| a.clone()),
            b: needs[0].then(|| b.clone()),
        })
    }
}
