//! What the optimizers share: parameters in groups, each with its own state, and how a step
//! reaches them.

use crate::error::{Error, Result};
use crate::grads::Gradients;
use crate::param::{Param, update_all};
use crate::state::State;
use phalanx_tensor::{DType, Device, Tensor};
use std::collections::HashSet;

/// Parameters that an optimizer treats differently from the others.
#[derive(Debug, Clone)]
pub struct Group {
    /// The parameters.
    pub params: Vec<Param>,
    /// Their learning rate as a multiple of the optimizer's.
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

impl<S> Groups<S> {
    pub(super) fn new(params: Vec<Param>) -> Groups<S> {
        let mut groups = Groups { groups: Vec::new() };
        groups.push(Group::new(params));
        groups
    }

    /// Adds a group, in which its parameters count even if an earlier group has them: so one names
    /// all parameters first and the peculiar ones after. A shared parameter gets one step.
    pub(super) fn push(&mut self, mut group: Group) {
        let mut seen = HashSet::new();
        group.params.retain(|p| seen.insert(p.id()));
        for (earlier, states) in &mut self.groups {
            let mut ids = earlier.params.iter().map(Param::id);
            states.retain(|_| ids.next().is_none_or(|id| !seen.contains(&id)));
            earlier.params.retain(|p| !seen.contains(&p.id()));
        }
        let states = group.params.iter().map(|_| None).collect();
        self.groups.push((group, states));
    }

    /// Calls `step` for each group with the parameters that have a gradient, these, their states.
    pub(super) fn step(
        &mut self,
        gradients: &Gradients,
        mut step: impl FnMut(&Group, &mut [&mut Tensor], &[&Tensor], &mut [Option<S>]) -> Result<()>,
    ) -> Result<()> {
        for (group, states) in &mut self.groups {
            let mut params = Vec::with_capacity(group.params.len());
            let mut grads = Vec::with_capacity(group.params.len());
            let mut places = Vec::with_capacity(group.params.len());
            for (place, param) in group.params.iter().enumerate() {
                if let Some(grad) = gradients.get(param) {
                    params.push(param);
                    grads.push(grad);
                    places.push(place);
                }
            }
            if places.len() == states.len() {
                update_all(&params, |values| step(group, values, &grads, states))?;
                continue;
            }
            let mut some: Vec<Option<S>> = places.iter().map(|&i| states[i].take()).collect();
            let result = update_all(&params, |values| step(group, values, &grads, &mut some));
            for (place, state) in places.into_iter().zip(some) {
                states[place] = state;
            }
            result?;
        }
        Ok(())
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
    /// leaves something over, nothing is changed.
    pub(super) fn load(
        &mut self,
        mut state: State,
        mut load: impl FnMut(&mut State, usize, &Param) -> Result<Option<S>>,
    ) -> Result<f64> {
        let lr = take_number(&mut state, "lr")?;
        let new = (self.iter().enumerate())
            .map(|(i, (param, _))| load(&mut state, i, param))
            .collect::<Result<Vec<_>>>()?;
        if let Some((name, _)) = state.iter().next() {
            return Err(Error::UnexpectedTensor { name: name.into() });
        }
        let places = self.groups.iter_mut().flat_map(|(_, states)| states);
        places.zip(new).for_each(|(old, new)| *old = new);
        Ok(lr)
    }

    /// Every parameter with its state, in order.
    fn iter(&self) -> impl Iterator<Item = (&Param, &Option<S>)> {
        self.groups
            .iter()
            .flat_map(|(group, states)| group.params.iter().zip(states))
    }
}

/// Takes a number out of a state.
pub(super) fn take_number(state: &mut State, name: &str) -> Result<f64> {
    let tensor = state
        .take(name)
        .ok_or_else(|| Error::MissingTensor { name: name.into() })?;
    Ok(tensor.item()?)
}

/// Takes the state tensor of a parameter out: of the parameter's shape, on its device, of the type
/// in which its steps are computed.
pub(super) fn take_like(state: &mut State, name: &str, param: &Param) -> Result<Option<Tensor>> {
    let Some(tensor) = state.take(name) else {
        return Ok(None);
    };
    let dtype = match param.dtype() {
        DType::F64 => DType::F64,
        _ => DType::F32,
    };
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
