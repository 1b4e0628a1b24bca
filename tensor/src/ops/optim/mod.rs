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

use crate::ops::Scalar;
use crate::storage::{On, inouts, on, out};
use crate::{DType, Device, Error, Result, Tensor};
use smallvec::SmallVec;
use std::borrow::{Borrow, BorrowMut};

mod adam;
mod batch;
mod check;
mod cpu;
#[cfg(feature = "cuda")]
pub(crate) mod cuda;
mod sgd;

use batch::{Batches, ByDevice, Item, List, Number, Ready};

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
    /// The learning rate as a multiple of the configuration's: 1, or what is on the device and changes
    /// from step to step, as a schedule does. With a configuration whose rate is 1, it is the rate.
    /// A number on a device is taken in `f64`: one of another type costs a cast.
    pub lr_scale: Scalar<'a>,
    /// The number of this step, counted from 1, for Adam's corrections of the bias; `None` for the
    /// states' own counts, which go on in either case. SGD does not look at it.
    pub step: Option<Scalar<'a>>,
}

impl<'a, P, G, S, C> Part<'a, P, G, S, C> {
    /// A part whose numbers are the configuration's.
    pub fn new(
        params: &'a mut [P],
        grads: &'a [G],
        states: &'a mut [S],
        config: C,
    ) -> Part<'a, P, G, S, C> {
        Part {
            params,
            grads,
            states,
            config,
            lr_scale: Scalar::Host(1.0),
            step: None,
        }
    }

    /// The numbers that it has beside the configuration make sense, where the host knows them.
    fn check_numbers(&self, op: &'static str) -> Result<()> {
        for number in [Some(self.lr_scale), self.step].into_iter().flatten() {
            number.expect_one(op)?;
        }
        if let Scalar::Host(scale) = self.lr_scale {
            expect_non_negative(op, "lr_scale", scale)?;
        }
        match self.step {
            Some(Scalar::Host(step)) if !(step >= 1.0 && step.is_finite()) => {
                Err(invalid(op, format!("step is {step}, must be 1 or more")))
            }
            _ => Ok(()),
        }
    }
}

/// The Euclidean norm of all elements of all tensors together, accumulated in `f64`: a tensor of rank
/// 0 and type `f64` on the first tensor's device (on `cpu:0` where there is none). It stays there:
/// nothing waits for it.
///
/// The sum is taken over fixed blocks in order: the same bits whatever the number of threads. What
/// other devices hold is summed there, and the sums are added in the order of the devices.
///
/// # Errors
/// [`Error::UnsupportedDType`] for integer tensors; [`Error::OutOfMemory`].
pub fn global_norm<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<Tensor> {
    squares("global_norm", tensors, true)
}

/// The sum of the squares of all elements of all tensors together, as [`global_norm`] takes the root of: what several
/// processes add where each has a part of the tensors. Sums of single tensors, added in order as `f64`, give on a CPU
/// the bits of the sum of them all.
///
/// # Errors
/// As [`global_norm`].
pub fn square_sum<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<Tensor> {
    squares("square_sum", tensors, false)
}

fn squares<'a>(
    op: &'static str,
    tensors: impl IntoIterator<Item = &'a Tensor>,
    root: bool,
) -> Result<Tensor> {
    let mut lists: ByDevice<List<&Tensor>> = ByDevice::new();
    let mut first = None;
    for tensor in tensors {
        tensor.expect_float(op)?;
        first.get_or_insert(tensor.device());
        lists.of(tensor.device()).push(tensor);
    }
    let first = first.unwrap_or(Device::cpu(0));
    let (mut total, mut is_root): (Option<Tensor>, bool) = (None, false);
    for (device, list) in &lists.0 {
        let mut sum = Tensor::allocate(op, ().into(), DType::F64, *device)?;
        let dense = match device {
            Device::Cpu(_) => Vec::new(), // its kernel makes one copy at a time
            Device::Cuda(_) => dense(op, list)?,
        };
        let list = match dense.is_empty() {
            true => &list[..],
            false => &dense.iter().collect::<List<&Tensor>>(),
        };
        // What has no other part needs no operation of its own for the root.
        is_root = match on(op, (list, out(&mut sum)))? {
            On::Cpu((tensors, sum)) => {
                cpu::square_sum(op, tensors, sum)?;
                false
            }
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (tensors, sum)) => {
                let is_root = root && lists.0.len() == 1;
                cuda::square_sum(&mut lane, tensors, sum, is_root)?;
                is_root
            }
        };
        let sum = sum.to_device(first).map_err(|e| e.of(op))?;
        total = Some(match total {
            None => sum,
            Some(total) => total.add_into(&sum).map_err(|e| e.of(op))?,
        });
    }
    let total = match total {
        Some(total) => total,
        None => Tensor::zeros_for(op, ().into(), DType::F64, first)?,
    };
    match is_root || !root {
        true => Ok(total),
        false => total.sqrt().map_err(|error| error.of(op)),
    }
}

/// All tensors as contiguous ones, where one of them is not; else none.
fn dense(op: &'static str, tensors: &[&Tensor]) -> Result<Vec<Tensor>> {
    match tensors.iter().all(|t| t.is_contiguous()) {
        true => Ok(Vec::new()),
        false => tensors.iter().map(|t| t.contiguous_for(op)).collect(),
    }
}

/// Multiplies every element of every tensor by `factor`; in place where nobody shares a tensor. The
/// factor may be a number, or a tensor with one float on any device.
///
/// # Errors
/// [`Error::UnsupportedDType`] for integer tensors, [`Error::InvalidShape`] for a factor that has not
/// one element; [`Error::OutOfMemory`]. No tensor is multiplied then.
pub fn scale<'a, 'f>(
    tensors: impl IntoIterator<Item = &'a mut Tensor>,
    factor: impl Into<Scalar<'f>>,
) -> Result<()> {
    multiply("scale", tensors, factor.into(), Factor::Number)
}

/// Multiplies every element of every tensor by one factor, so that tensors of the common norm `norm`
/// come to have `max_norm` at most: by `max_norm / (norm + 1e-6)` where that is below 1, else by 1, and
/// by no number where it is none (PyTorch: `clip_grads_with_norm_`). The norm is that of
/// [`global_norm`], or another number; where it is on a device it stays there, and nothing waits.
///
/// # Errors
/// [`Error::InvalidArgument`] for a `max_norm` that is negative or no number; as [`scale`].
pub fn clip_by_norm<'a, 'f>(
    tensors: impl IntoIterator<Item = &'a mut Tensor>,
    norm: impl Into<Scalar<'f>>,
    max_norm: f64,
) -> Result<()> {
    const OP: &str = "clip_by_norm";
    if max_norm.is_nan() || max_norm < 0.0 {
        return Err(invalid(OP, format!("{max_norm} is no norm to clip at")));
    }
    multiply(OP, tensors, norm.into(), Factor::UpTo(max_norm))
}

/// What tensors are multiplied by.
#[derive(Debug, Clone, Copy)]
enum Factor {
    /// A number.
    Number,
    /// What makes of a norm this one, where the norm is larger.
    UpTo(f64),
}

impl Factor {
    /// The factor that a number stands for.
    fn of(self, number: f64) -> f64 {
        let Factor::UpTo(max_norm) = self else {
            return number;
        };
        let factor = max_norm / (number + 1e-6);
        if factor > 1.0 { 1.0 } else { factor }
    }
}

fn multiply<'a>(
    op: &'static str,
    tensors: impl IntoIterator<Item = &'a mut Tensor>,
    number: Scalar<'_>,
    factor: Factor,
) -> Result<()> {
    number.expect_one(op)?;
    let mut lists: ByDevice<(List<&mut Tensor>, Option<Tensor>)> = ByDevice::new();
    for tensor in tensors {
        tensor.expect_float(op)?;
        tensor.own(op)?;
        lists.of(tensor.device()).0.push(tensor);
    }
    for (device, (_, copy)) in &mut lists.0 {
        *copy = number.copy_for(op, *device)?;
    }
    let mut ready: SmallVec<[_; 1]> = SmallVec::new();
    for (_, (list, copy)) in &mut lists.0 {
        let on = on(op, (inouts(list), number.or(copy.as_ref())))?;
        ready.push(match on {
            On::Cpu(operands) => Ready::Cpu(operands),
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, (tensors, number)) => {
                let launches = cuda::scale(&mut lane, tensors, number, factor)?;
                Ready::Cuda(Box::new(lane), launches)
            }
        });
    }
    ready.into_iter().try_for_each(|ready| match ready {
        Ready::Cpu((tensors, number)) => cpu::scale(op, tensors, number, factor),
        #[cfg(feature = "cuda")]
        Ready::Cuda(mut lane, launches) => cuda::launch(&mut lane, &launches),
    })
}

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
