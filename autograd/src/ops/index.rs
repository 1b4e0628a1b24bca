//! Lookups: embedding, gather and scatter.

use super::{one, sum_for};
use crate::error::Result;
use crate::var::Var;
use crate::vjp::{Grads, Vjp, tensor_bytes};
use phalanx_tensor::{Shape, Tensor};

/// Backward of [`Var::embedding`].
#[derive(Debug)]
pub struct Embedding {
    ids: Tensor,
    entries: usize,
}

impl Vjp for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }
    fn backward(&self, grad: Tensor, _needs: &[bool]) -> Result<Grads> {
        Ok(one(grad.embedding_backward(&self.ids, self.entries)?))
    }
    fn backward_into(
        &self,
        grad: Tensor,
        needs: &[bool],
        sums: &mut [Option<Tensor>],
    ) -> Result<Grads> {
        let Some(sum) = sum_for(sums, 0, &grad) else {
            return self.backward(grad, needs);
        };
        grad.embedding_backward_into(&self.ids, sum)?;
        Ok(Grads::from_iter([None]))
    }
    fn saved_bytes(&self) -> usize {
        tensor_bytes(&self.ids)
    }
}

/// Backward of [`Var::gather`].
#[derive(Debug)]
pub struct Gather {
    axis: isize,
    indices: Tensor,
    from: Shape,
}

impl Vjp for Gather {
    fn name(&self) -> &'static str {
        "gather"
    }
    fn backward(&self, grad: Tensor, _needs: &[bool]) -> Result<Grads> {
        let zeros = Tensor::zeros(&self.from, grad.dtype(), grad.device())?;
        Ok(one(zeros.scatter_add(self.axis, &self.indices, &grad)?))
    }
    fn saved_bytes(&self) -> usize {
        tensor_bytes(&self.indices)
    }
}

/// Backward of [`Var::scatter_add`].
#[derive(Debug)]
pub struct ScatterAdd {
    axis: isize,
    indices: Tensor,
}

impl Vjp for ScatterAdd {
    fn name(&self) -> &'static str {
        "scatter_add"
    }
    fn backward(&self, grad: Tensor, needs: &[bool]) -> Result<Grads> {
        let source = match needs[1] {
            true => Some(grad.gather(self.axis, &self.indices)?),
            false => None,
        };
        Ok(Grads::from_buf([Some(grad), source]))
    }
    fn saved_bytes(&self) -> usize {
        tensor_bytes(&self.indices)
    }
}

/// Backward of [`Var::index_select`].
#[derive(Debug)]
pub struct IndexSelect {
    axis: isize,
    indices: Tensor,
    from: Shape,
}

impl Vjp for IndexSelect {
    fn name(&self) -> &'static str {
        "index_select"
    }
    fn backward(&self, grad: Tensor, _needs: &[bool]) -> Result<Grads> {
        let zeros = Tensor::zeros(&self.from, grad.dtype(), grad.device())?;
        Ok(one(zeros.index_add(self.axis, &self.indices, &grad)?))
    }
    fn saved_bytes(&self) -> usize {
        tensor_bytes(&self.indices)
    }
}

impl Var {
    /// The rows of this table at `ids`. As [`Tensor::embedding`].
    ///
    /// # Errors
    /// As the tensor's method.
    pub fn embedding(&self, ids: &Tensor) -> Result<Var> {
        let out = self.value().embedding(ids)?;
        Var::from_vjp(self.tape(), &[self], out, |_| Embedding {
            ids: ids.clone(),
            entries: self.dims()[0],
        })
    }

    /// For each index the element at its place, but at the index on `axis`. As
    /// [`Tensor::gather`].
    ///
    /// # Errors
    /// As the tensor's method.
    pub fn gather(&self, axis: isize, indices: &Tensor) -> Result<Var> {
        let out = self.value().gather(axis, indices)?;
        Var::from_vjp(self.tape(), &[self], out, |_| Gather {
            axis,
            indices: indices.clone(),
            from: self.shape().clone(),
        })
    }

    /// Adds each element of `source` at its own place, but at the index on `axis`. As
    /// [`Tensor::scatter_add`].
    ///
    /// # Errors
    /// As the tensor's method; [`Error::TapeMismatch`](crate::Error::TapeMismatch).
    pub fn scatter_add(&self, axis: isize, indices: &Tensor, source: &Var) -> Result<Var> {
        let out = self.value().scatter_add(axis, indices, source.value())?;
        Var::from_vjp(self.tape(), &[self, source], out, |_| ScatterAdd {
            axis,
            indices: indices.clone(),
        })
    }

    /// The slices of `axis` at `indices`. As [`Tensor::index_select`].
    ///
    /// # Errors
    /// As the tensor's method.
    pub fn index_select(&self, axis: isize, indices: &Tensor) -> Result<Var> {
        let out = self.value().index_select(axis, indices)?;
        Var::from_vjp(self.tape(), &[self], out, |_| IndexSelect {
            axis,
            indices: indices.clone(),
            from: self.shape().clone(),
        })
    }
}
