//! Reductions over axes.

use super::one;
use crate::error::Result;
use crate::var::Var;
use crate::vjp::{Grads, Vjp, tensor_bytes};
use phalanx_tensor::{Shape, Tensor};

/// The axes of a reduction, as the backward pass sees them.
#[derive(Debug, Clone)]
struct Reduced {
    /// The operand's shape.
    input: Shape,
    /// The same with the extent 1 on the axes that were reduced.
    kept: Shape,
}

impl Reduced {
    /// For axes that the operation has accepted.
    fn new(input: &Shape, axes: &[isize]) -> Reduced {
        let mut kept = input.clone();
        for &axis in axes {
            let from_end = if axis < 0 { input.len() as isize } else { 0 };
            kept[(axis + from_end) as usize] = 1;
        }
        Reduced {
            input: input.clone(),
            kept,
        }
    }

    fn all(input: &Shape) -> Reduced {
        Reduced {
            input: input.clone(),
            kept: input.iter().map(|_| 1).collect(),
        }
    }

    /// How many elements became one.
    fn count(&self) -> usize {
        let pairs = self.input.iter().zip(self.kept.iter());
        pairs
            .map(|(&n, &kept)| if kept == 1 { n } else { 1 })
            .product()
    }

    /// Each element of the result where its operands were: a view.
    fn spread(&self, grad: &Tensor) -> phalanx_tensor::Result<Tensor> {
        grad.reshape(&self.kept)?.broadcast_to(&self.input)
    }
}

/// Backward of [`Var::sum`] and [`Var::sum_all`].
#[derive(Debug)]
pub struct Sum {
    axes: Reduced,
}

impl Vjp for Sum {
    fn name(&self) -> &'static str {
        "sum"
    }
    fn backward(&self, grad: Tensor, _needs: &[bool]) -> Result<Grads> {
        Ok(one(self.axes.spread(&grad)?))
    }
    fn saved_bytes(&self) -> usize {
        0
    }
}

/// Backward of [`Var::mean`] and [`Var::mean_all`].
#[derive(Debug)]
pub struct Mean {
    axes: Reduced,
}

impl Vjp for Mean {
    fn name(&self) -> &'static str {
        "mean"
    }
    fn backward(&self, grad: Tensor, _needs: &[bool]) -> Result<Grads> {
        let share = grad.div_scalar(self.axes.count() as f64)?;
        Ok(one(self.axes.spread(&share)?))
    }
    fn saved_bytes(&self) -> usize {
        0
    }
}

/// Backward of [`Var::max`] and [`Var::min`]: equal extrema share the gradient, as PyTorch's
/// `amax` and `amin`.
#[derive(Debug)]
pub struct Extremum {
    name: &'static str,
    axes: Reduced,
    axis_list: Vec<isize>,
    x: Tensor,
    out: Tensor,
}

impl Vjp for Extremum {
    fn name(&self) -> &'static str {
        self.name
    }
    fn backward(&self, grad: Tensor, _needs: &[bool]) -> Result<Grads> {
        let (dtype, wide) = (grad.dtype(), grad.dtype().compute());
        let hit = self.x.eq(&self.out.reshape(&self.axes.kept)?)?.cast(wide)?;
        let share = grad
            .cast(wide)?
            .reshape(&self.axes.kept)?
            .div(&hit.sum(&self.axis_list, true)?)?;
        Ok(one(hit.mul(&share)?.cast(dtype)?))
    }
    fn saved_bytes(&self) -> usize {
        tensor_bytes(&self.x) + tensor_bytes(&self.out)
    }
}

/// Backward of [`Var::var`].
#[derive(Debug)]
pub struct Variance {
    axes: Reduced,
    axis_list: Vec<isize>,
    correction: usize,
    x: Tensor,
}

impl Vjp for Variance {
    fn name(&self) -> &'static str {
        "var"
    }
    fn backward(&self, grad: Tensor, _needs: &[bool]) -> Result<Grads> {
        let divisor = self.axes.count().saturating_sub(self.correction) as f64;
        let (dtype, wide) = (grad.dtype(), grad.dtype().compute());
        let x = self.x.cast(wide)?;
        let distance = x.sub(&x.mean(&self.axis_list, true)?)?;
        let factor = grad
            .cast(wide)?
            .reshape(&self.axes.kept)?
            .mul_scalar(2.0 / divisor)?;
        Ok(one(distance.mul(&factor)?.cast(dtype)?))
    }
    fn saved_bytes(&self) -> usize {
        tensor_bytes(&self.x)
    }
}

impl Var {
    /// The sum over `axes`. As [`Tensor::sum`].
    ///
    /// # Errors
    /// As the tensor's method.
    pub fn sum(&self, axes: &[isize], keepdim: bool) -> Result<Var> {
        let out = self.value().sum(axes, keepdim)?;
        Var::from_vjp(self.tape(), &[self], out, |_| Sum {
            axes: Reduced::new(self.shape(), axes),
        })
    }

    /// The sum of all elements. As [`Tensor::sum_all`].
    ///
    /// # Errors
    /// As the tensor's method.
    pub fn sum_all(&self) -> Result<Var> {
        let out = self.value().sum_all()?;
        let sum = Var::from_vjp(self.tape(), &[self], out, |_| Sum {
            axes: Reduced::all(self.shape()),
        });
        sum.map_err(|error| error.of("sum_all"))
    }

    /// The mean over `axes`. As [`Tensor::mean`].
    ///
    /// # Errors
    /// As the tensor's method.
    pub fn mean(&self, axes: &[isize], keepdim: bool) -> Result<Var> {
        let out = self.value().mean(axes, keepdim)?;
        Var::from_vjp(self.tape(), &[self], out, |_| Mean {
            axes: Reduced::new(self.shape(), axes),
        })
    }

    /// The mean of all elements. As [`Tensor::mean_all`].
    ///
    /// # Errors
    /// As the tensor's method.
    pub fn mean_all(&self) -> Result<Var> {
        let out = self.value().mean_all()?;
        let mean = Var::from_vjp(self.tape(), &[self], out, |_| Mean {
            axes: Reduced::all(self.shape()),
        });
        mean.map_err(|error| error.of("mean_all"))
    }

    /// The largest element over `axes`. As [`Tensor::max`].
    ///
    /// # Errors
    /// As the tensor's method.
    pub fn max(&self, axes: &[isize], keepdim: bool) -> Result<Var> {
        self.extremum("max", self.value().max(axes, keepdim)?, axes)
    }

    /// The smallest element over `axes`. As [`Tensor::min`].
    ///
    /// # Errors
    /// As the tensor's method.
    pub fn min(&self, axes: &[isize], keepdim: bool) -> Result<Var> {
        self.extremum("min", self.value().min(axes, keepdim)?, axes)
    }

    fn extremum(&self, name: &'static str, out: Tensor, axes: &[isize]) -> Result<Var> {
        Var::from_vjp(self.tape(), &[self], out.clone(), |_| Extremum {
            name,
            axes: Reduced::new(self.shape(), axes),
            axis_list: axes.to_vec(),
            x: self.value().clone(),
            out,
        })
    }

    /// The variance over `axes`. As [`Tensor::var`].
    ///
    /// # Errors
    /// As the tensor's method.
    pub fn var(&self, axes: &[isize], correction: usize, keepdim: bool) -> Result<Var> {
        let out = self.value().var(axes, correction, keepdim)?;
        Var::from_vjp(self.tape(), &[self], out, |_| Variance {
            axes: Reduced::new(self.shape(), axes),
            axis_list: axes.to_vec(),
            correction,
            x: self.value().clone(),
        })
    }
}
