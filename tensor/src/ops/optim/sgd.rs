//! SGD: its numbers and its step.

#[cfg(feature = "cuda")]
use super::cuda;
use super::{
    Batches, Item, Number, Part, Ready, allocate_state, check_pairs, check_state, cpu,
    expect_equal_lengths, make_ready, ready,
};
use crate::storage::On;
use crate::{Result, Tensor};
use smallvec::SmallVec;
use std::borrow::{Borrow, BorrowMut};

/// Stochastic gradient descent, as `torch.optim.SGD`.
///
/// With `g = grad + weight_decay · p`, the momentum becomes `m = momentum · m + (1 − dampening) · g`
/// (at the first step `m = g`), and `p ← p − lr · m`; under `nesterov`,
/// `p ← p − lr · (g + momentum · m)`; without momentum, `p ← p − lr · g`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SgdConfig {
    /// Learning rate.
    pub lr: f64,
    /// Share of the momentum that a step keeps, in `[0, 1)`; 0 for none.
    pub momentum: f64,
    /// How much of the gradient does not enter the momentum, in `[0, 1]`.
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

/// One step of SGD for each parameter. The lists may hold tensors or references to them. `momenta`
/// holds what the step leaves for the next one: start with `None`s. Without momentum it is not
/// looked at, and may be empty.
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
/// [`InvalidArgument`](crate::Error::InvalidArgument) for lists of different lengths and for numbers that
/// make no sense; [`ShapeMismatch`](crate::Error::ShapeMismatch), [`DTypeMismatch`](crate::Error::DTypeMismatch),
/// [`DeviceMismatch`](crate::Error::DeviceMismatch) where gradient or momentum do not fit their parameter;
/// [`OutOfMemory`](crate::Error::OutOfMemory). Nothing is changed then.
pub fn sgd_step<P: BorrowMut<Tensor>, G: Borrow<Tensor>>(
    params: &mut [P],
    grads: &[G],
    momenta: &mut [Option<Tensor>],
    config: &SgdConfig,
) -> Result<()> {
    sgd_steps(&mut [Part::new(params, grads, momenta, *config)])
}

/// As [`sgd_step`], for several lists of parameters, each with its own numbers: all of them step, or
/// none. A learning rate that is on the device stays there: the host issues the step and never learns
/// the rate.
///
/// ```
/// use phalanx_tensor::ops::optim::{Part, SgdConfig, sgd_steps};
/// use phalanx_tensor::{Device, Tensor};
///
/// let mut p = [Tensor::from_slice(&[1.0f32, 2.0], [2], Device::cpu(0))?];
/// let g = [Tensor::from_slice(&[0.5f32, -0.5], [2], Device::cpu(0))?];
/// let lr = Tensor::scalar(0.25f32, Device::cpu(0))?;
/// let config = SgdConfig { lr: 1.0, ..SgdConfig::default() };
/// let mut momenta = [None::<Tensor>];
/// let mut part = Part::new(&mut p, &g, &mut momenta, config);
/// part.lr_scale = (&lr).into();
/// sgd_steps(&mut [part])?;
/// assert_eq!(p[0].to_vec::<f32>()?, [0.875, 2.125]);
/// # Ok::<(), phalanx_tensor::Error>(())
/// ```
///
/// # Errors
/// As [`sgd_step`]; [`InvalidShape`](crate::Error::InvalidShape) for a number of several elements. A
/// number on the device is not looked at: one that is negative or no number spoils the parameters.
pub fn sgd_steps<P, G, S>(parts: &mut [Part<'_, P, G, S, SgdConfig>]) -> Result<()>
where
    P: BorrowMut<Tensor>,
    G: Borrow<Tensor>,
    S: BorrowMut<Option<Tensor>>,
{
    const OP: &str = "sgd_step";
    for part in &*parts {
        check_sgd(OP, part)?;
    }
    let (mut copies, mut fresh) = (Vec::new(), Vec::new());
    for part in &mut *parts {
        make_ready(OP, part.params, part.grads, &mut copies)?;
        if part.config.momentum == 0.0 {
            continue;
        }
        for (param, momentum) in part.params.iter().zip(&mut *part.states) {
            match momentum.borrow_mut() {
                Some(momentum) => momentum.own(OP)?,
                // The first step writes it and does not read it.
                None => fresh.push(allocate_state(OP, param.borrow())?),
            }
        }
    }
    let mut batches = Batches::new();
    let (mut copies, mut unused) = (copies.iter(), fresh.iter_mut());
    for part in &mut *parts {
        let config = &part.config;
        let mut states = part.states.iter_mut();
        let mut scales: SmallVec<[_; 1]> = SmallVec::new();
        for (param, grad) in part.params.iter_mut().zip(part.grads) {
            let (param, grad) = (param.borrow_mut(), grad.borrow());
            let batch = batches.of(param.device());
            let lr_scale = match scales.iter().find(|(on, _)| *on == param.device()) {
                Some((_, known)) => *known,
                None => {
                    let scale = batch.number(OP, part.lr_scale, param.device())?;
                    scales.push((param.device(), scale));
                    scale
                }
            };
            batch.params.push(param);
            batch.grads.push(ready(grad, &mut copies));
            let (mut is_first, held) = (false, batch.states.len());
            if config.momentum != 0.0 {
                // The first step writes the momentum and does not read it.
                let known = states.next().and_then(|state| state.borrow_mut().as_mut());
                is_first = known.is_none();
                batch.states.extend(known.or_else(|| unused.next()));
            }
            let states = batch.states.len() - held;
            batch.items.push(Item {
                config,
                states,
                is_first,
                lr_scale,
                step: Number::Host(1.0), // nobody looks at it
            });
        }
    }
    batches.run(
        OP,
        |on, items| match on {
            On::Cpu(lists) => Ok(Ready::Cpu((lists, items))),
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, lists) => {
                let launches = cuda::sgd(&mut lane, lists, items)?;
                Ok(Ready::Cuda(Box::new(lane), launches))
            }
        },
        |(lists, items)| cpu::sgd(OP, lists, items),
    )?;
    let mut fresh = fresh.into_iter();
    for part in parts.iter_mut().filter(|part| part.config.momentum != 0.0) {
        for momentum in &mut *part.states {
            let momentum = momentum.borrow_mut();
            *momentum = momentum.take().or_else(|| fresh.next());
        }
    }
    Ok(())
}

fn check_sgd<P, G, S>(op: &'static str, part: &Part<'_, P, G, S, SgdConfig>) -> Result<()>
where
    P: Borrow<Tensor>,
    G: Borrow<Tensor>,
    S: Borrow<Option<Tensor>>,
{
    let c = &part.config;
    c.check(op)?;
    part.check_numbers(op)?;
    check_pairs(op, part.params, part.grads)?;
    if c.momentum == 0.0 {
        return Ok(());
    }
    expect_equal_lengths(op, part.params.len(), "momenta", part.states.len())?;
    for (param, momentum) in part.params.iter().zip(&*part.states) {
        if let Some(momentum) = momentum.borrow() {
            check_state(op, param.borrow(), momentum)?;
        }
    }
    Ok(())
}
