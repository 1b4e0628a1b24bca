//! Optimizer steps over lists of tensors, and the global norm for gradient clipping.
//!
//! A step reads and writes every array once: SGD with momentum is one pass over parameter,
//! gradient and momentum. A parameter that nobody shares is changed in place; a shared one is
//! copied first, so that a holder of the old value keeps it. Parameters in a half type have their
//! state in `f32`.

mod cpu;

use crate::ops::working::working_dtype;
use crate::storage::Storage;
use crate::{Error, Result, Tensor, dispatch_float};
use std::borrow::{Borrow, BorrowMut, Cow};

/// Stochastic gradient descent, as `torch.optim.SGD`.
///
/// With `g = grad + weight_decay · p`, the momentum becomes `m = momentum · m + (1 − dampening) · g`
/// (at the first step `m = g`), and `p ← p − lr · m`; under `nesterov`,
/// `p ← p − lr · (g + momentum · m)`; without momentum, `p ← p − lr · g`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SgdConfig {
    /// Learning rate.
    pub lr: f64,
    /// Share of the momentum that a step keeps; 0 for none.
    pub momentum: f64,
    /// How much of the gradient does not enter the momentum.
    pub dampening: f64,
    /// Factor of the L2 penalty's gradient.
    pub weight_decay: f64,
    /// Nesterov's look-ahead; needs a momentum and no dampening.
    pub nesterov: bool,
}

impl Default for SgdConfig {
    /// `lr` 0.001, all else off.
    fn default() -> Self {
        SgdConfig {
            lr: 1e-3,
            momentum: 0.0,
            dampening: 0.0,
            weight_decay: 0.0,
            nesterov: false,
        }
    }
}

/// How [`adam_step`] decays weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecayMode {
    /// The penalty's gradient enters the moments: Kingma & Ba 2015, `torch.optim.Adam`.
    Coupled,
    /// The weights shrink by `lr · weight_decay` beside the step: Loshchilov & Hutter 2019,
    /// `torch.optim.AdamW`.
    Decoupled,
}

/// Adam and AdamW, as `torch.optim.Adam` and `torch.optim.AdamW`.
///
/// With `m ← β₁m + (1 − β₁)g`, `v ← β₂v + (1 − β₂)g²` at step `t`,
/// `p ← p − lr / (1 − β₁ᵗ) · m / (√(v / (1 − β₂ᵗ)) + eps)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamConfig {
    /// Learning rate.
    pub lr: f64,
    /// Decay rates `[β₁, β₂]` of the two moments.
    pub betas: [f64; 2],
    /// Added to the denominator.
    pub eps: f64,
    /// Weight decay; what it does is [`decay`](AdamConfig::decay)'s choice.
    pub weight_decay: f64,
    /// Adam or AdamW.
    pub decay: DecayMode,
}

impl AdamConfig {
    /// PyTorch's defaults for Adam: `lr` 0.001, β (0.9, 0.999), `eps` 1e-8, no weight decay.
    pub fn adam() -> AdamConfig {
        AdamConfig {
            lr: 1e-3,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.0,
            decay: DecayMode::Coupled,
        }
    }

    /// PyTorch's defaults for AdamW: as [`adam`](AdamConfig::adam), with a decoupled decay of 0.01.
    pub fn adamw() -> AdamConfig {
        AdamConfig {
            weight_decay: 1e-2,
            decay: DecayMode::Decoupled,
            ..AdamConfig::adam()
        }
    }
}

/// What Adam keeps for one parameter.
#[derive(Debug, Clone)]
pub struct AdamState {
    /// Running mean of the gradient.
    pub exp_avg: Tensor,
    /// Running mean of its square.
    pub exp_avg_sq: Tensor,
    /// Steps taken.
    pub step: u64,
}

/// One step of SGD for each parameter. The lists may hold tensors or references to them. `momenta` holds what the step leaves for the next one: start with `None`s. Without momentum
/// it is not looked at, and may be empty.
///
/// ```
/// use phalanx_tensor::ops::optim::{SgdConfig, sgd_step};
/// use phalanx_tensor::{Device, Tensor};
///
/// let mut p = [Tensor::from_slice(&[1.0f32, 2.0], [2], Device::cpu(0))?];
/// let g = [Tensor::from_slice(&[0.5f32, -0.5], [2], Device::cpu(0))?];
/// let mut m = [None];
/// let config = SgdConfig { lr: 0.5, momentum: 0.5, ..SgdConfig::default() };
/// sgd_step(&mut p, &g, &mut m, &config)?;
/// sgd_step(&mut p, &g, &mut m, &config)?;
/// assert_eq!(p[0].to_vec::<f32>()?, [0.375, 2.625]);
/// # Ok::<(), phalanx_tensor::Error>(())
/// ```
///
/// # Errors
/// [`Error::InvalidArgument`] for lists of different lengths and for numbers that make no sense;
/// [`Error::ShapeMismatch`], [`Error::DTypeMismatch`], [`Error::DeviceMismatch`] where gradient or
/// momentum do not fit their parameter, before anything is written. [`Error::OutOfMemory`] may
/// leave a part of the list updated.
pub fn sgd_step<P: BorrowMut<Tensor>, G: Borrow<Tensor>>(
    params: &mut [P],
    grads: &[G],
    momenta: &mut [Option<Tensor>],
    config: &SgdConfig,
) -> Result<()> {
    const OP: &str = "sgd_step";
    let c = config;
    expect_non_negative(OP, "lr", c.lr)?;
    expect_non_negative(OP, "momentum", c.momentum)?;
    expect_non_negative(OP, "weight_decay", c.weight_decay)?;
    if c.nesterov && (c.momentum == 0.0 || c.dampening != 0.0) {
        return Err(invalid(
            OP,
            "nesterov needs a momentum and no dampening".into(),
        ));
    }
    expect_equal_lengths(OP, params.len(), "gradients", grads.len())?;
    check_pairs(OP, params, grads)?;
    if c.momentum == 0.0 {
        for (param, grad) in params.iter_mut().zip(grads) {
            let (param, grad) = (param.borrow_mut(), dense(grad.borrow())?);
            dispatch_float!(OP, param.dtype(), T => {
                match grad.storage() {
                    Storage::Cpu(_) => cpu::sgd::<T>(param.make_mut()?, grad.as_slice()?, c),
                }
            });
        }
        return Ok(());
    }
    expect_equal_lengths(OP, params.len(), "momenta", momenta.len())?;
    for (param, momentum) in params.iter().zip(momenta.iter().flatten()) {
        check_state(OP, param.borrow(), momentum)?;
    }
    for ((param, grad), momentum) in params.iter_mut().zip(grads).zip(momenta) {
        let (param, grad) = (param.borrow_mut(), dense(grad.borrow())?);
        let first = momentum.is_none();
        dispatch_float!(OP, param.dtype(), T => {
            let momentum = match momentum {
                Some(m) => m,
                // The first step writes it and does not read it.
                None => momentum.insert(Tensor::allocate(
                    OP,
                    param.shape().clone(),
                    working_dtype(param.dtype()),
                    param.device(),
                )?),
            };
            match grad.storage() {
                Storage::Cpu(_) => cpu::sgd_momentum::<T>(
                    param.make_mut()?,
                    grad.as_slice()?,
                    momentum.make_mut()?,
                    first,
                    c,
                ),
            }
        });
    }
    Ok(())
}

/// One step of Adam or AdamW for each parameter.
///
/// `states` holds what the step leaves for the next one: start with `None`s. Each parameter
/// counts its own steps, so that one that joins later is corrected for its own bias.
///
/// # Errors
/// As [`sgd_step`].
pub fn adam_step<P: BorrowMut<Tensor>, G: Borrow<Tensor>>(
    params: &mut [P],
    grads: &[G],
    states: &mut [Option<AdamState>],
    config: &AdamConfig,
) -> Result<()> {
    const OP: &str = "adam_step";
    let c = config;
    expect_non_negative(OP, "lr", c.lr)?;
    expect_non_negative(OP, "eps", c.eps)?;
    expect_non_negative(OP, "weight_decay", c.weight_decay)?;
    if !c.betas.iter().all(|b| (0.0..1.0).contains(b)) {
        return Err(invalid(
            OP,
            format!("betas {:?} must lie in [0, 1)", c.betas),
        ));
    }
    expect_equal_lengths(OP, params.len(), "gradients", grads.len())?;
    expect_equal_lengths(OP, params.len(), "states", states.len())?;
    check_pairs(OP, params, grads)?;
    for (param, state) in params.iter().zip(states.iter()) {
        if let Some(state) = state {
            check_state(OP, param.borrow(), &state.exp_avg)?;
            check_state(OP, param.borrow(), &state.exp_avg_sq)?;
        }
    }
    for ((param, grad), state) in params.iter_mut().zip(grads).zip(states) {
        let (param, grad) = (param.borrow_mut(), dense(grad.borrow())?);
        dispatch_float!(OP, param.dtype(), T => {
            let state = match state {
                Some(state) => state,
                None => state.insert(AdamState {
                    exp_avg: no_moment(OP, param)?,
                    exp_avg_sq: no_moment(OP, param)?,
                    step: 0,
                }),
            };
            state.step += 1;
            match grad.storage() {
                Storage::Cpu(_) => cpu::adam::<T>(
                    param.make_mut()?,
                    grad.as_slice()?,
                    state.exp_avg.make_mut()?,
                    state.exp_avg_sq.make_mut()?,
                    state.step,
                    c,
                ),
            }
        });
    }
    Ok(())
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
    let tensor = dense(tensor)?;
    match tensor.storage() {
        Storage::Cpu(_) => {
            dispatch_float!(OP, tensor.dtype(), T => cpu::square_sum::<T>(OP, &tensor))
        }
    }
}

/// Multiplies every element of every tensor by `factor`; in place where nobody shares a tensor.
///
/// # Errors
/// [`Error::UnsupportedDType`] for integer tensors; [`Error::OutOfMemory`].
pub fn scale<'a>(tensors: impl IntoIterator<Item = &'a mut Tensor>, factor: f64) -> Result<()> {
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
fn dense(tensor: &Tensor) -> Result<Cow<'_, Tensor>> {
    Ok(if tensor.is_contiguous() {
        Cow::Borrowed(tensor)
    } else {
        Cow::Owned(tensor.contiguous()?)
    })
}

/// One of Adam's moments at its start: zeros of the type in which a parameter is computed.
fn no_moment(op: &'static str, param: &Tensor) -> Result<Tensor> {
    let dtype = working_dtype(param.dtype());
    Tensor::zeros_for(op, param.shape().clone(), dtype, param.device())
}

fn check_pairs<P: Borrow<Tensor>, G: Borrow<Tensor>>(
    op: &'static str,
    params: &[P],
    grads: &[G],
) -> Result<()> {
    for (param, grad) in params.iter().zip(grads) {
        let (param, grad): (&Tensor, &Tensor) = (param.borrow(), grad.borrow());
        param.expect_float(op)?;
        param.expect_same_kind(op, grad)?;
        param.expect_same_shape(op, grad, "a gradient has its parameter's shape")?;
    }
    Ok(())
}

fn check_state(op: &'static str, param: &Tensor, state: &Tensor) -> Result<()> {
    param.expect_same_device(op, state)?;
    param.expect_same_shape(op, state, "a state has its parameter's shape")?;
    let wanted = working_dtype(param.dtype());
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

fn expect_non_negative(op: &'static str, name: &str, value: f64) -> Result<()> {
    if value >= 0.0 {
        Ok(())
    } else {
        Err(invalid(
            op,
            format!("{name} is {value}, must not be negative"),
        ))
    }
}

fn invalid(op: &'static str, reason: String) -> Error {
    Error::InvalidArgument { op, reason }
}
