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

use crate::storage::{Memory, On, inouts, on};
use crate::{Device, Error, Result, Tensor, dispatch_float};
use smallvec::SmallVec;
use std::borrow::{Borrow, BorrowMut, Cow};

mod adam;
mod check;
mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
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
    match tensor.storage().memory() {
        #[cfg(feature = "cuda")]
        Memory::Cuda(s) => return Err(s.unsupported(OP)),
        Memory::Cpu(_) => {
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
            match tensor.storage().memory() {
                #[cfg(feature = "cuda")]
                Memory::Cuda(s) => return Err(s.unsupported("scale")),
                Memory::Cpu(_) => cpu::scale::<T>(tensor.make_mut()?, factor),
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

/// The parameters of one device, with all that their step needs.
struct Batch<'a, C> {
    params: List<&'a mut Tensor>,
    /// Contiguous.
    grads: List<&'a Tensor>,
    /// The states of each parameter that has some, one after another.
    states: List<&'a mut Tensor>,
    items: List<Item<'a, C>>,
}

/// What one parameter steps with, beside its tensors.
struct Item<'a, C> {
    config: &'a C,
    /// How many tensors of the batch's states are this parameter's.
    states: usize,
    /// Counted from 1, or from where the states started.
    step: u64,
}

type List<T> = SmallVec<[T; 8]>;

/// The batches of a step, by device.
struct Batches<'a, C>(SmallVec<[(Device, Batch<'a, C>); 1]>);

impl<'a, C> Batches<'a, C> {
    fn new() -> Batches<'a, C> {
        Batches(SmallVec::new())
    }

    /// The batch of `device`. They are in the order of devices, so that threads which lock several
    /// cards lock them in one order.
    fn of(&mut self, device: Device) -> &mut Batch<'a, C> {
        let at = self.0.partition_point(|(other, _)| *other < device);
        if self.0.get(at).is_none_or(|(other, _)| *other != device) {
            let batch = Batch {
                params: List::new(),
                grads: List::new(),
                states: List::new(),
                items: List::new(),
            };
            self.0.insert(at, (device, batch));
        }
        &mut self.0[at].1
    }

    /// Makes all batches ready, and then runs the kernels of each: where a device gives an error,
    /// nothing has been changed on any.
    fn run(
        mut self,
        op: &'static str,
        mut kernel: impl FnMut(On<Lists<'_, 'a>>, &[Item<'a, C>]) -> Result<()>,
    ) -> Result<()> {
        let mut ready: SmallVec<[_; 1]> = SmallVec::new();
        for (_, batch) in &mut self.0 {
            let Batch {
                params,
                grads,
                states,
                items,
            } = batch;
            let operands = (inouts(params), &grads[..], inouts(states));
            ready.push((on(op, operands)?, &items[..]));
        }
        ready
            .into_iter()
            .try_for_each(|(on, items)| kernel(on, items))
    }
}

/// Parameters, gradients and states of a batch.
type Lists<'b, 'a> = (
    &'b mut [&'a mut Tensor],
    &'b [&'a Tensor],
    &'b mut [&'a mut Tensor],
);

/// Makes parameters ready to be written, and returns a contiguous copy of each gradient that has
/// gaps. Changes no value.
fn make_ready<P: BorrowMut<Tensor>, G: Borrow<Tensor>>(
    op: &'static str,
    params: &mut [P],
    grads: &[G],
    copies: &mut Vec<Tensor>,
) -> Result<()> {
    for (param, grad) in params.iter_mut().zip(grads) {
        let (param, grad): (&mut Tensor, &Tensor) = (param.borrow_mut(), grad.borrow());
        param.own(op)?;
        if !grad.is_contiguous() {
            copies.push(grad.contiguous_for(op)?);
        }
    }
    Ok(())
}

/// The gradient, or the copy that [`make_ready`] has made of it.
fn ready<'a>(grad: &'a Tensor, copies: &mut std::slice::Iter<'a, Tensor>) -> &'a Tensor {
    match grad.is_contiguous() {
        true => grad,
        false => copies.next().unwrap_or(grad), // there is a copy for each
    }
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
