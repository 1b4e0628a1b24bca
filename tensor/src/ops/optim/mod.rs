//! Optimizer steps over lists of tensors, and the global norm for gradient clipping.
//!
//! A step reads and writes every array once: SGD with momentum is one pass over parameter,
//! gradient and momentum. A parameter that nobody shares is changed in place; a shared one is
//! copied first, so that a holder of the old value keeps it. Parameters in a half type have their
//! state in `f32`, and their gradients in `f32` or in their own type; each step computes in `f32`
//! and rounds the parameter once.
//!
//! **A step takes place whole or not at all.** Everything that can fail (checks, copies, new
//! states) comes before the first change, so a step that has failed can be repeated.

use crate::storage::Storage;
use crate::{Error, Result, Tensor, dispatch_float};
use smallvec::SmallVec;
use std::borrow::{Borrow, BorrowMut, Cow};

/// Runs the body with the Rust types of a parameter and of its gradient, which is the parameter's
/// type or the one it is computed in.
macro_rules! dispatch_pair {
    ($op:expr, $param:expr, $grad:expr, $t:ident, $g:ident => $body:expr) => {
        dispatch_float!($op, $param.dtype(), $t => {
            if $grad.dtype() == $t::DTYPE {
                type $g = $t;
                $body
            } else {
                type $g = <$t as Float>::Compute;
                $body
            }
        })
    };
}

mod adam;
mod check;
mod cpu;
mod sgd;

pub use adam::{AdamConfig, AdamState, DecayMode, adam_step, adam_steps};
pub use check::expect_non_negative;
pub use sgd::{SgdConfig, sgd_step, sgd_steps};

/// Parameters that step with the same numbers: a part of [`sgd_steps`] or [`adam_steps`]. The lists
/// may hold tensors or references to them, states or references to them.
#[derive(Debug)]
pub struct Part<'a, P, G, S, C> {
    /// The parameters.
    pub params: &'a mut [P],
    /// Their gradients, in the same order.
    pub grads: &'a [G],
    /// What the step leaves for the next one: start with `None`s.
    pub states: &'a mut [S],
    /// The numbers.
    pub config: C,
}

/// The Euclidean norm of all elements of all tensors together, accumulated in `f64`.
///
/// The sum is taken over fixed blocks in order: the same bits whatever the number of threads.
///
/// # Errors
/// [`Error::UnsupportedDType`] for integer tensors.
pub fn global_norm<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<f64> {
    let mut total = 0.0;
    for tensor in tensors {
        total += square_sum(tensor)?;
    }
    Ok(total.sqrt())
}

fn square_sum(tensor: &Tensor) -> Result<f64> {
    const OP: &str = "global_norm";
    let tensor = dense(OP, tensor)?;
    match tensor.storage() {
        Storage::Cpu(_) => {
            dispatch_float!(OP, tensor.dtype(), T => cpu::square_sum::<T>(OP, &tensor))
        }
    }
}

/// Multiplies every element of every tensor by `factor`; in place where nobody shares a tensor.
///
/// # Errors
/// [`Error::UnsupportedDType`] for integer tensors; [`Error::OutOfMemory`]. No tensor is multiplied
/// then.
pub fn scale<'a>(tensors: impl IntoIterator<Item = &'a mut Tensor>, factor: f64) -> Result<()> {
    let mut tensors: SmallVec<[&mut Tensor; 8]> = tensors.into_iter().collect();
    for tensor in &mut tensors {
        tensor.expect_float("scale")?;
        tensor.own("scale")?;
    }
    for tensor in tensors {
        dispatch_float!("scale", tensor.dtype(), T => {
            match tensor.storage() {
                Storage::Cpu(_) => cpu::scale::<T>(tensor.make_mut()?, factor),
            }
        });
    }
    Ok(())
}

/// The tensor itself where it is contiguous, without even a clone.
fn dense<'a>(op: &'static str, tensor: &'a Tensor) -> Result<Cow<'a, Tensor>> {
    Ok(if tensor.is_contiguous() {
        Cow::Borrowed(tensor)
    } else {
        Cow::Owned(tensor.contiguous_for(op)?)
    })
}

/// Makes parameters ready to be written, and puts copies of the gradients that are not contiguous
/// into `copies`, in order. Changes no value.
fn make_ready<P: BorrowMut<Tensor>, G: Borrow<Tensor>>(
    op: &'static str,
    params: &mut [P],
    grads: &[G],
    copies: &mut Vec<Tensor>,
) -> Result<()> {
    for (param, grad) in params.iter_mut().zip(grads) {
        let param: &mut Tensor = param.borrow_mut();
        param.own(op)?;
        if let Cow::Owned(copy) = dense(op, grad.borrow())? {
            copies.push(copy);
        }
    }
    Ok(())
}

/// The gradient, or the copy that [`make_ready`] has made of it.
fn ready<'a>(grad: &'a Tensor, copies: &mut impl Iterator<Item = Tensor>) -> Cow<'a, Tensor> {
    let copy = (!grad.is_contiguous()).then(|| copies.next()).flatten();
    copy.map_or(Cow::Borrowed(grad), Cow::Owned)
}

/// A state of a parameter, in the type in which it is computed, of any values.
fn allocate_state(op: &'static str, param: &Tensor) -> Result<Tensor> {
    let dtype = param.dtype().compute();
    Tensor::allocate(op, param.shape().clone(), dtype, param.device())
}

/// One of Adam's moments at its start: zeros of the type in which a parameter is computed.
fn no_moment(op: &'static str, param: &Tensor) -> Result<Tensor> {
    let dtype = param.dtype().compute();
    Tensor::zeros_for(op, param.shape().clone(), dtype, param.device())
}

fn check_pairs<P: Borrow<Tensor>, G: Borrow<Tensor>>(
    op: &'static str,
    params: &[P],
    grads: &[G],
) -> Result<()> {
    expect_equal_lengths(op, params.len(), "gradients", grads.len())?;
    for (param, grad) in params.iter().zip(grads) {
        let (param, grad): (&Tensor, &Tensor) = (param.borrow(), grad.borrow());
        param.expect_float(op)?;
        match grad.dtype() == param.dtype().compute() {
            true => param.expect_same_device(op, grad)?,
            false => param.expect_same_kind(op, grad)?,
        }
        param.expect_same_shape(op, grad, "a gradient must have its parameter's shape")?;
    }
    Ok(())
}

fn check_state(op: &'static str, param: &Tensor, state: &Tensor) -> Result<()> {
    param.expect_same_device(op, state)?;
    param.expect_same_shape(op, state, "a state must have its parameter's shape")?;
    let wanted = param.dtype().compute();
    if state.dtype() == wanted {
        Ok(())
    } else {
        Err(Error::DTypeMismatch {
            op,
            lhs: wanted,
            rhs: state.dtype(),
        })
    }
}

fn expect_equal_lengths(op: &'static str, params: usize, what: &str, n: usize) -> Result<()> {
    if params == n {
        Ok(())
    } else {
        Err(invalid(op, format!("{params} parameters and {n} {what}")))
    }
}

fn invalid(op: &'static str, reason: String) -> Error {
    Error::InvalidArgument { op, reason }
}
