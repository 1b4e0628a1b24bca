//! The matrix product.

use super::{sum_for, unbroadcast};
use crate::error::Result;
use crate::var::Var;
use crate::vjp::{Grads, Vjp, tensor_bytes};
use phalanx_tensor::{Shape, Tensor};
use smallvec::SmallVec;

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

/// The gradient of one operand of a product: `xᵀ y`, summed over the leading axes that the operand
/// was stretched along, in its shape `own`. `x` is `[…, r, p]` and `y` is `[…, r, q]`: the other
/// operand, and the gradient of the product, which has the leading axes `lead`.
///
/// Where that takes less memory than a stack of products, the sum is part of the product: the
/// summed axes become rows. For a matrix on the right of a contiguous stack they are rows already,
/// and nothing is copied. Where the operand is one matrix, the product is added to `sum`, if there is
/// one, and nothing is given.
fn contract(
    x: &Tensor,
    y: &Tensor,
    lead: &[usize],
    own: &Shape,
    sum: Option<&mut Tensor>,
) -> Result<Option<Tensor>> {
    let extent = |shape: &[usize], i: usize| {
        let at = (i + shape.len()).checked_sub(lead.len() + 2);
        at.map_or(1, |at| shape[at])
    };
    let (kept, summed): (Axes, Axes) = (0..lead.len()).partition(|&i| extent(own, i) == lead[i]);
    if !summed.is_empty() {
        // First the kept axes, then the summed ones, then the rows and the columns.
        let columns = lead.len() + 1;
        let order = kept
            .iter()
            .chain(&summed)
            .copied()
            .chain([lead.len(), columns]);
        let order: SmallVec<[isize; 6]> = order.map(|i| i as isize).collect();
        let moved = |t: &Tensor| -> Result<(Tensor, Shape)> {
            let all: Shape = (0..=columns).map(|i| extent(t.dims(), i)).collect();
            let moved = t.reshape(all)?.permute(&order)?;
            let (stack, rows) = moved.dims().split_at(kept.len());
            let mut tall = Shape::from(stack);
            tall.push(rows[..rows.len() - 1].iter().product());
            tall.push(rows[rows.len() - 1]);
            Ok((moved, tall))
        };
        let ((x, tall_x), (y, tall_y)) = (moved(x)?, moved(y)?);
        let copied = |t: &Tensor, shape| match t.layout().reshape(shape) {
            Some(_) => 0,
            None => t.numel(),
        };
        // The forward pass has stretched the operand to this size: it does not overflow.
        let products = summed.iter().map(|&i| lead[i]).product::<usize>() * own.numel();
        if copied(&x, &tall_x) + copied(&y, &tall_y) <= products {
            let (x, y) = (x.reshape(tall_x)?, y.reshape(tall_y)?);
            return product(&x, &y, own, sum);
        }
    }
    match lead.is_empty() {
        true => product(x, y, own, sum),
        false => Ok(Some(unbroadcast(x.t()?.matmul(y)?, own)?)),
    }
}

/// `xᵀ y` in the shape `own`, or added to `sum`.
fn product(
    x: &Tensor,
    y: &Tensor,
    own: &Shape,
    sum: Option<&mut Tensor>,
) -> Result<Option<Tensor>> {
    let (&[.., columns], true) = (y.dims(), x.rank() == 2) else {
        return Ok(Some(x.t()?.matmul(y)?.reshape(own)?));
    };
    let Some(sum) = sum else {
        return Ok(Some(x.t()?.matmul(y)?.reshape(own)?));
    };
    if sum.rank() == 2 {
        sum.addmm(&x.t()?, y)?;
        return Ok(None);
    }
    let shape = sum.shape().clone();
    // One holder at a time: it is written where it is.
    let held = std::mem::replace(sum, Tensor::zeros([0], sum.dtype(), sum.device())?);
    let mut matrix = held.reshape([x.dims()[1], columns])?;
    drop(held);
    matrix.addmm(&x.t()?, y)?;
    *sum = matrix.reshape(shape)?;
    Ok(None)
}

type Axes = SmallVec<[usize; 4]>;

impl Vjp for Matmul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn backward(&self, grad: Tensor, needs: &[bool]) -> Result<Grads> {
        self.backward_into(grad, needs, &mut [])
    }

    fn backward_into(
        &self,
        grad: Tensor,
        needs: &[bool],
        sums: &mut [Option<Tensor>],
    ) -> Result<Grads> {
        let [a_shape, b_shape] = &self.shapes;
        let (mut a_own, mut b_own) = (a_shape.clone(), b_shape.clone());
        let mut grad = grad;
        if let [k] = b_shape[..] {
            grad = grad.unsqueeze(-1)?;
            b_own = [k, 1].into();
        }
        if let [k] = a_shape[..] {
            grad = grad.unsqueeze(-2)?;
            a_own = [1, k].into();
        }
        let lead = &grad.dims()[..grad.rank() - 2];
        let mut grads = Grads::new();
        grads.push(match &self.b {
            Some(b) if needs[0] => {
                let b = as_matrix(b, -1)?.t()?;
                let sum = sum_for(sums, 0, &grad);
                let made = contract(&grad.t()?, &b, lead, &a_own, sum)?;
                made.map(|made| made.reshape(a_shape)).transpose()?
            }
            _ => None,
        });
        grads.push(match &self.a {
            Some(a) if needs[1] => {
                let a = as_matrix(a, 0)?;
                let sum = sum_for(sums, 1, &grad);
                let made = contract(&a, &grad, lead, &b_own, sum)?;
                made.map(|made| made.reshape(b_shape)).transpose()?
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
