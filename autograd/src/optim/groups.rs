//! What the optimizers share: parameters in groups, each with its own state, and how a step
//! reaches them.

use super::check::expect_rate;
use crate::error::{Error, Result};
use crate::grads::Gradients;
use crate::param::{Param, update_all};
use crate::state::{State, loaded_count, loaded_number};
use phalanx_tensor::ops::Scalar;
use phalanx_tensor::ops::optim::Part;
use phalanx_tensor::{Device, Tensor};
use smallvec::{SmallVec, smallvec};
use std::collections::HashSet;

/// Parameters that an optimizer treats differently from the others.
#[derive(Debug, Clone)]
pub struct Group {
    /// The parameters.
    pub params: Vec<Param>,
    /// Their learning rate as a multiple of the optimizer's; not negative.
    pub lr_scale: f64,
    /// Their weight decay, where it is not the optimizer's: often 0 for biases and norms.
    pub weight_decay: Option<f64>,
}

impl Group {
    /// Parameters without peculiarities.
    pub fn new(params: Vec<Param>) -> Group {
        Group {
            params,
            lr_scale: 1.0,
            weight_decay: None,
        }
    }
}

/// The groups of an optimizer whose state for one parameter is `S`.
#[derive(Debug)]
pub(super) struct Groups<S> {
    groups: Vec<(Group, Vec<Option<S>>)>,
}

/// What an optimizer keeps for one parameter: tensors that stay where they are.
pub(super) trait Kept {
    /// Its tensors.
    fn tensors(&self) -> SmallVec<[&Tensor; 2]>;

    /// Its tensors, to be written.
    fn tensors_mut(&mut self) -> SmallVec<[&mut Tensor; 2]>;

    /// Takes over what is no tensor.
    fn take_counts(&mut self, new: &Self);
}

impl Kept for Tensor {
    fn tensors(&self) -> SmallVec<[&Tensor; 2]> {
        smallvec![self]
    }

    fn tensors_mut(&mut self) -> SmallVec<[&mut Tensor; 2]> {
        smallvec![self]
    }

    fn take_counts(&mut self, _: &Tensor) {}
}

/// Makes `old` ready to be written with `new`: what can fail of [`put`]. Where there is no state yet,
/// or not on this device, `new` takes its place, and shares its tensors with nobody.
fn prepare<S: Kept>(old: &mut Option<S>, new: &mut Option<S>) -> Result<()> {
    match (old, new) {
        (Some(old), Some(new)) if in_place(old, new) => {
            for tensor in old.tensors_mut() {
                tensor.make_unique()?;
            }
        }
        (_, Some(new)) => {
            for tensor in new.tensors_mut() {
                if !tensor.is_unique() {
                    *tensor = tensor.copy()?;
                }
            }
        }
        (_, None) => {}
    }
    Ok(())
}

/// Writes the state `new` over `old`.
fn put<S: Kept>(old: &mut Option<S>, new: Option<S>) -> Result<()> {
    match (&mut *old, &new) {
        (Some(old), Some(new)) if in_place(old, new) => {
            for (to, from) in old.tensors_mut().into_iter().zip(new.tensors()) {
                to.copy_from(from)?;
            }
            old.take_counts(new);
        }
        _ => *old = new,
    }
    Ok(())
}

/// A learning rate as a number of the host and a factor that may be on the device.
pub(super) fn split(lr: Scalar<'_>) -> (f64, Scalar<'_>) {
    match lr {
        Scalar::Host(lr) => (lr, Scalar::Host(1.0)),
        Scalar::Device(_) => (1.0, lr),
    }
}

fn in_place<S: Kept>(old: &S, new: &S) -> bool {
    let (old, new) = (old.tensors(), new.tensors());
    old.iter()
        .zip(new)
        .all(|(old, new)| old.device() == new.device())
}

impl<S: Kept> Groups<S> {
    pub(super) fn new(params: Vec<Param>) -> Result<Groups<S>> {
        let mut groups = Groups { groups: Vec::new() };
        groups.push(Group::new(params))?;
        Ok(groups)
    }

    /// Adds a group, in which its parameters count even if an earlier group has them: so one names
    /// all parameters first and the peculiar ones after. A shared parameter gets one step.
    pub(super) fn push(&mut self, mut group: Group) -> Result<()> {
        expect_rate("with_group", "lr_scale", group.lr_scale)?;
        expect_rate(
            "with_group",
            "weight_decay",
            group.weight_decay.unwrap_or(0.0),
        )?;
        let mut seen = HashSet::new();
        group.params.retain(|p| seen.insert(p.id()));
        for (earlier, states) in &mut self.groups {
            let mut ids = earlier.params.iter().map(Param::id);
            states.retain(|_| ids.next().is_none_or(|id| !seen.contains(&id)));
            earlier.params.retain(|p| !seen.contains(&p.id()));
        }
        let states = group.params.iter().map(|_| None).collect();
        self.groups.push((group, states));
        Ok(())
    }

    /// Calls `step` with a part for each group: the parameters that have a gradient, these, their
    /// states, what `config` makes of the group, and `lr_scale`, a factor of its rate. One call for
    /// all, so that a step takes place whole or not at all.
    pub(super) fn step<C>(
        &mut self,
        gradients: &Gradients,
        config: impl Fn(&Group) -> C,
        lr_scale: Scalar<'_>,
        step: impl FnOnce(&mut [Part<'_, &mut Tensor, &Tensor, &mut Option<S>, C>]) -> Result<()>,
    ) -> Result<()> {
        let n = self.groups.iter().map(|(_, states)| states.len()).sum();
        let mut params = Vec::with_capacity(n);
        let mut grads = Vec::with_capacity(n);
        let mut states = Vec::with_capacity(n);
        let mut lots: SmallVec<[(usize, C); 2]> = SmallVec::new();
        for (group, own) in &mut self.groups {
            let before = params.len();
            for (param, state) in group.params.iter().zip(own) {
                if let Some(grad) = gradients.get(param) {
                    params.push(param);
                    grads.push(grad);
                    states.push(state);
                }
            }
            lots.push((params.len() - before, config(group)));
        }
        update_all(&params, |mut values| {
            let (mut grads, mut states) = (&grads[..], &mut states[..]);
            let mut parts: SmallVec<[_; 2]> = SmallVec::new();
            for (len, config) in lots {
                let (params, grad, state);
                (params, values) = values.split_at_mut(len);
                (grad, grads) = grads.split_at(len);
                (state, states) = states.split_at_mut(len);
                let mut part = Part::new(params, grad, state, config);
                part.lr_scale = lr_scale;
                parts.push(part);
            }
            step(&mut parts)
        })
    }

    /// The learning rate, and what `save` puts in of the parameters that have a state. It gets the
    /// number that the parameter's names start with.
    pub(super) fn save(
        &self,
        lr: f64,
        mut save: impl FnMut(&mut State, usize, &S) -> Result<()>,
    ) -> Result<State> {
        let mut state = State::new();
        state.insert("lr", Tensor::scalar(lr, Device::cpu(0))?);
        for (i, (_, own)) in self.iter().enumerate() {
            if let Some(own) = own {
                save(&mut state, i, own)?;
            }
        }
        Ok(state)
    }

    /// The inverse of [`save`](Groups::save): returns the learning rate. Where `load` fails, or
    /// leaves something over, nothing is changed. A state that is there is written in place.
    pub(super) fn load(
        &mut self,
        mut state: State,
        mut load: impl FnMut(&mut State, usize, &Param) -> Result<Option<S>>,
    ) -> Result<f64> {
        let lr = take(&mut state, "lr", loaded_number)?;
        expect_rate("load_state", "`lr`", lr).map_err(|e| Error::Format {
            reason: e.to_string(),
        })?;
        let mut new = (self.iter().enumerate())
            .map(|(i, (param, _))| load(&mut state, i, param))
            .collect::<Result<Vec<_>>>()?;
        if let Some((name, _)) = state.iter().next() {
            return Err(Error::UnexpectedTensor { name: name.into() });
        }
        // What can fail comes before the first write.
        for (old, new) in self.states().zip(&mut new) {
            prepare(old, new)?;
        }
        for (old, new) in self.states().zip(new) {
            put(old, new)?;
        }
        Ok(lr)
    }

    /// The tensors of all states, in order.
    pub(super) fn kept(&self) -> impl Iterator<Item = &Tensor> {
        let states = self.iter().filter_map(|(_, state)| state.as_ref());
        states.flat_map(Kept::tensors)
    }

    fn states(&mut self) -> impl Iterator<Item = &mut Option<S>> {
        self.groups.iter_mut().flat_map(|(_, states)| states)
    }

    /// Every parameter with its state, in order.
    fn iter(&self) -> impl Iterator<Item = (&Param, &Option<S>)> {
        self.groups
            .iter()
            .flat_map(|(group, states)| group.params.iter().zip(states))
    }
}

/// Takes a count of steps out of a state.
pub(super) fn take_count(state: &mut State, name: &str) -> Result<u64> {
    take(state, name, loaded_count)
}

fn take<T>(state: &mut State, name: &str, read: fn(&str, &Tensor) -> Result<T>) -> Result<T> {
    let tensor = state
        .take(name)
        .ok_or_else(|| Error::MissingTensor { name: name.into() })?;
    read(name, &tensor)
}

/// Takes the state tensor of a parameter out: of the parameter's shape, on its device, of the type
/// in which its steps are computed.
pub(super) fn take_like(state: &mut State, name: &str, param: &Param) -> Result<Option<Tensor>> {
    let Some(tensor) = state.take(name) else {
        return Ok(None);
    };
    let dtype = param.grad_dtype();
    if tensor.shape() != param.shape() || tensor.dtype() != dtype {
        return Err(Error::SavedMismatch {
            name: name.into(),
            shape: tensor.shape().clone(),
            dtype: tensor.dtype(),
            wanted_shape: param.shape().clone(),
            wanted_dtype: dtype,
        });
    }
    Ok(Some(tensor.to_device(param.device())?))
}
