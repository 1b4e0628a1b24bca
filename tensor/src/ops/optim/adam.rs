//! Adam and AdamW: their numbers, their state and their step.

#[cfg(feature = "cuda")]
use super::cuda;
use super::{
    Batches, Item, Number, Part, Ready, check_pairs, check_state, cpu, expect_equal_lengths,
    make_ready, no_moment, ready,
};
use crate::ops::Scalar;
use crate::storage::On;
use crate::{Result, Tensor};
use smallvec::SmallVec;
use std::borrow::{Borrow, BorrowMut};

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
    /// Decay rates `[β₁, β₂]` of the two moments, in `[0, 1)`.
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

/// The numbers of one step of a parameter. Neither learning rate nor number of the step are in them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct AdamFactors {
    /// Factor of the parameter in its gradient.
    pub(super) coupled: f64,
    /// Factor of the parameter and the learning rate in what the parameter shrinks by.
    pub(super) decoupled: f64,
    pub(super) fresh1: f64,
    pub(super) keep2: f64,
    pub(super) fresh2: f64,
    pub(super) eps: f64,
}

impl AdamFactors {
    pub(super) fn new(config: &AdamConfig) -> AdamFactors {
        let [beta1, beta2] = config.betas;
        let (coupled, decoupled) = match config.decay {
            DecayMode::Coupled => (config.weight_decay, 0.0),
            DecayMode::Decoupled => (0.0, config.weight_decay),
        };
        AdamFactors {
            coupled,
            decoupled,
            fresh1: 1.0 - beta1,
            keep2: beta2,
            fresh2: 1.0 - beta2,
            eps: config.eps,
        }
    }
}

/// The corrections of the moments' bias at the step `step`, counted from 1.
pub(super) fn corrections(config: &AdamConfig, step: f64) -> [f64; 2] {
    config.betas.map(|beta| 1.0 - beta.powf(step))
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

/// One step of Adam or AdamW for each parameter.
///
/// `states` holds what the step leaves for the next one: start with `None`s. Each parameter
/// counts its own steps, so that one that joins later is corrected for its own bias.
///
/// # Errors
/// As [`sgd_step`](super::sgd_step).
pub fn adam_step<P: BorrowMut<Tensor>, G: Borrow<Tensor>>(
    params: &mut [P],
    grads: &[G],
    states: &mut [Option<AdamState>],
    config: &AdamConfig,
) -> Result<()> {
    adam_steps(&mut [Part::new(params, grads, states, *config)])
}

/// As [`adam_step`], for several lists of parameters, each with its own numbers: all of them step,
/// or none. Learning rate and number of the step may be on the device
/// ([`Part::lr_scale`], [`Part::step`]), where the bias is corrected by them: the host issues the step
/// and never learns them.
///
/// # Errors
/// As [`sgd_steps`](super::sgd_steps).
pub fn adam_steps<P, G, S>(parts: &mut [Part<'_, P, G, S, AdamConfig>]) -> Result<()>
where
    P: BorrowMut<Tensor>,
    G: Borrow<Tensor>,
    S: BorrowMut<Option<AdamState>>,
{
    const OP: &str = "adam_step";
    for part in &*parts {
        check_adam(OP, part)?;
    }
    let (mut copies, mut fresh) = (Vec::new(), Vec::new());
    for part in &mut *parts {
        make_ready(OP, part.params, part.grads, &mut copies)?;
        for (param, state) in part.params.iter().zip(&mut *part.states) {
            match state.borrow_mut() {
                Some(state) => {
                    state.exp_avg.own(OP)?;
                    state.exp_avg_sq.own(OP)?;
                }
                None => fresh.push(AdamState {
                    exp_avg: no_moment(OP, param.borrow())?,
                    exp_avg_sq: no_moment(OP, param.borrow())?,
                    step: 0,
                }),
            }
        }
    }
    let mut batches = Batches::new();
    let (mut copies, mut unused) = (copies.iter(), fresh.iter_mut());
    for part in &mut *parts {
        let config = &part.config;
        let pairs = part.params.iter_mut().zip(part.grads);
        let mut numbers: SmallVec<[_; 1]> = SmallVec::new();
        for ((param, grad), state) in pairs.zip(&mut *part.states) {
            let (param, grad) = (param.borrow_mut(), grad.borrow());
            let batch = batches.of(param.device());
            let [lr_scale, step] = match numbers.iter().find(|(on, _)| *on == param.device()) {
                Some((_, known)) => *known,
                None => {
                    let step = part.step.unwrap_or(Scalar::Host(f64::NAN));
                    let made = [
                        batch.number(OP, part.lr_scale, param.device())?,
                        batch.number(OP, step, param.device())?,
                    ];
                    numbers.push((param.device(), made));
                    made
                }
            };
            batch.params.push(param);
            batch.grads.push(ready(grad, &mut copies));
            let known = state.borrow_mut().as_mut();
            let Some(state) = known.or_else(|| unused.next()) else {
                continue; // there is one for each
            };
            let step = match part.step {
                Some(_) => step,
                None => Number::Host((state.step + 1) as f64),
            };
            batch
                .states
                .extend([&mut state.exp_avg, &mut state.exp_avg_sq]);
            batch.items.push(Item {
                config,
                states: 2,
                is_first: false,
                lr_scale,
                step,
            });
        }
    }
    batches.run(
        OP,
        |on, items| match on {
            On::Cpu(lists) => Ok(Ready::Cpu((lists, items))),
            #[cfg(feature = "cuda")]
            On::Cuda(mut lane, lists) => {
                let launches = cuda::adam(&mut lane, lists, items)?;
                Ok(Ready::Cuda(Box::new(lane), launches))
            }
        },
        |(lists, items)| cpu::adam(OP, lists, items),
    )?;
    let mut fresh = fresh.into_iter();
    for part in parts {
        for state in &mut *part.states {
            let state = state.borrow_mut();
            *state = state.take().or_else(|| fresh.next());
            if let Some(state) = state {
                state.step += 1;
            }
        }
    }
    Ok(())
}

fn check_adam<P, G, S>(op: &'static str, part: &Part<'_, P, G, S, AdamConfig>) -> Result<()>
where
    P: Borrow<Tensor>,
    G: Borrow<Tensor>,
    S: Borrow<Option<AdamState>>,
{
    let c = &part.config;
    c.check(op)?;
    part.check_numbers(op)?;
    check_pairs(op, part.params, part.grads)?;
    expect_equal_lengths(op, part.params.len(), "states", part.states.len())?;
    for (param, state) in part.params.iter().zip(&*part.states) {
        if let Some(state) = state.borrow() {
            check_state(op, param.borrow(), &state.exp_avg)?;
            check_state(op, param.borrow(), &state.exp_avg_sq)?;
        }
    }
    Ok(())
}
