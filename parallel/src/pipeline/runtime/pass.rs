//! A pass through a plan: what it is for, what it works on, and what it gives.

use super::edges::Carried;
use super::stage::Loss;
use super::tied::{Sum, Tied};
use crate::pipeline::{Action, Schedule};
use crate::reduce::{GradReducer, Reduction};
use phalanx_autograd::Gradients;
use phalanx_comm::{Label, Name, ProcessGroup};
use phalanx_tensor::Tensor;
use std::sync::Arc;

/// What a pass is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Forward and backward; the gradients stay where they are.
    Accumulate,
    /// Forward and backward, and the gradients are averaged over the replicas.
    Train,
    /// Forward alone, with the loss.
    Evaluate,
    /// Forward alone; the outputs are kept.
    Infer,
}

impl Purpose {
    pub(super) fn has_backward(self) -> bool {
        matches!(self, Purpose::Accumulate | Purpose::Train)
    }
}

/// What a pass works on and does not change.
pub(super) struct Pass<'a> {
    pub(super) purpose: Purpose,
    pub(super) schedule: &'a Schedule,
    pub(super) group: &'a dyn ProcessGroup,
    /// That of transfers, without a name.
    pub(super) label: Label,
    pub(super) carried: &'a Carried,
    pub(super) loss: &'a Loss,
    /// By microbatch: what the first stages take …
    pub(super) inputs: Vec<Vec<Tensor>>,
    /// … and what the loss compares with.
    pub(super) targets: Vec<Vec<Tensor>>,
    /// Whether sizes travel ahead of the tensors.
    pub(super) tell_sizes: bool,
    /// The step and the first microbatch, from which random numbers follow.
    pub(super) draws: (u64, u64),
    pub(super) tied: &'a Tied,
    /// By stage: who averages its gradients over the replicas.
    pub(super) reducers: &'a [(usize, GradReducer)],
}

impl Pass<'_> {
    /// The group, for the transfers of an action: whoever waits for them in vain is told of it.
    pub(super) fn group_for(&self, action: Action) -> Arc<dyn ProcessGroup> {
        self.group.labelled(Label {
            name: Name::new(action),
            ..self.label
        })
    }
}

/// What a pass gives.
#[derive(Default)]
pub(super) struct Passed<'a> {
    /// By microbatch, where the last stage is here.
    pub(super) losses: Vec<Option<(Tensor, f64)>>,
    /// By microbatch, where the last stage is here and the pass is to infer.
    pub(super) outputs: Vec<Vec<Tensor>>,
    pub(super) reductions: Vec<(usize, Reduction<'a>)>,
    /// By stage: gradients that are whole by now, also over the replicas.
    pub(super) gradients: Vec<(usize, Gradients)>,
    /// Sums with other ranks of what is tied, under way.
    pub(super) sums: Vec<Sum>,
}
