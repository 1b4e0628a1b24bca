//! What a node hands on: its vjp's gradients, added to those of its inputs.
//!
//! **A parameter's gradient starts from the buffer that the sweep was given for it**
//! ([`Backward::into`](crate::Backward::into)), with the first contribution that reaches it. What
//! comes next is added there, in the order of the sweep, whether the vjp adds it by itself
//! ([`Vjp::backward_into`]) or not; so a split backward has the bits of a whole one.

use crate::error::{Error, Result};
use crate::grads::{Gradients, add_to};
use crate::param::Param;
use crate::tape::{Kind, Node, NodeId};
use crate::vjp::{Grads, Vjp};
use phalanx_tensor::{DType, Tensor};
use smallvec::SmallVec;

pub(crate) type Needs = SmallVec<[bool; 8]>;

pub(crate) fn needs(inputs: &[NodeId], wanted: impl Fn(NodeId) -> bool) -> Needs {
    let wanted = |&id: &NodeId| id != NodeId::NONE && wanted(id);
    inputs.iter().map(wanted).collect()
}

/// The element type of a node's value, and the parameter that it may be.
pub(crate) type Target<'n> = (DType, Option<&'n Param>);

impl Node {
    pub(crate) fn target(&self) -> Target<'_> {
        match &self.kind {
            Kind::Param(param) => (self.dtype, Some(param)),
            Kind::Input | Kind::Op(_) => (self.dtype, None),
        }
    }

    /// Its complete gradient in the type in which it is handed on: a sum of several is rounded once
    /// to a half type here, and a parameter's is widened for good.
    pub(crate) fn finish(&self, grad: Tensor) -> Result<Tensor> {
        let dtype = match self.kind {
            Kind::Param(_) => self.dtype.compute(),
            Kind::Input | Kind::Op(_) => self.dtype,
        };
        match grad.dtype() == dtype {
            true => Ok(grad),
            false => Ok(grad.cast(dtype)?),
        }
    }
}

/// The inputs of a node that get gradients, and where those are kept.
pub(crate) struct Inputs<'a, F> {
    pub(crate) ids: &'a [NodeId],
    pub(crate) needs: &'a [bool],
    /// What a node is.
    pub(crate) target: F,
    /// The gradients so far, by node.
    pub(crate) slots: &'a mut [Option<Tensor>],
    /// The buffers that parameters have not used yet.
    pub(crate) into: &'a mut Gradients,
}

impl<'n, F: Fn(NodeId) -> Target<'n>> Inputs<'_, F> {
    /// Runs a vjp and holds it to its contract. It may add to the buffers of parameters itself.
    pub(crate) fn call(&mut self, vjp: &dyn Vjp, grad: Tensor) -> Result<Grads> {
        let mut sums: Grads = SmallVec::new();
        // What all gradients come out of together, a split backward computes before it has buffers.
        if !vjp.joint() && !self.into.is_new() {
            sums = (0..self.ids.len()).map(|i| self.lend(i)).collect();
        }
        let lent: Needs = sums.iter().map(Option::is_some).collect();
        let grads = match lent.contains(&true) {
            true => vjp.backward_into(grad, self.needs, &mut sums)?,
            false => vjp.backward(grad, self.needs)?,
        };
        let lent = |i: usize| lent.get(i) == Some(&true);
        let given = |i: usize| grads[i].is_some();
        let missing = |i: usize| self.needs[i] && !given(i) && !lent(i);
        let lost = |i: usize| lent(i) && sums[i].is_none();
        let all = 0..self.needs.len();
        if grads.len() != self.needs.len() || all.clone().any(|i| missing(i) || lost(i)) {
            return Err(Error::VjpContract {
                vjp: vjp.name(),
                reason: format!(
                    "needs {:?}, got gradients {:?}, lent {:?}",
                    self.needs,
                    grads.iter().map(Option::is_some).collect::<Vec<_>>(),
                    all.map(lent).collect::<Vec<_>>()
                ),
            });
        }
        for (id, sum) in self.ids.iter().zip(sums) {
            if let Some(sum) = sum {
                self.slots[id.index()] = Some(sum);
            }
        }
        Ok(grads)
    }

    /// The buffer to which an input's gradient is added, where it is a parameter with one and occurs
    /// once.
    fn lend(&mut self, i: usize) -> Option<Tensor> {
        let id = self.ids[i];
        if !self.needs[i] || self.ids.iter().filter(|&&other| other == id).count() > 1 {
            return None;
        }
        let (_, param) = (self.target)(id);
        let slot = &mut self.slots[id.index()];
        open(slot, param?, self.into);
        match self.into.is_taken(param?) {
            true => slot.take(),
            false => None,
        }
    }

    /// Adds the gradients that the vjp of this name gave to those of the inputs.
    pub(crate) fn add(&mut self, vjp: &'static str, grads: Grads) -> Result<()> {
        for ((id, &needed), grad) in self.ids.iter().zip(self.needs).zip(grads) {
            if let (true, Some(grad)) = (needed, grad) {
                let (dtype, param) = (self.target)(*id);
                let slot = &mut self.slots[id.index()];
                if let Some(param) = param {
                    open(slot, param, self.into);
                }
                add_to(slot, grad, dtype, |sum, grad| differ(vjp, dtype, sum, grad))?;
            }
        }
        Ok(())
    }
}

/// Where a parameter has no gradient yet, it starts from its buffer.
fn open(slot: &mut Option<Tensor>, param: &Param, into: &mut Gradients) {
    if slot.is_none() {
        *slot = into.take(param);
    }
}

/// The error of a vjp that gave an input of this type another's gradient, or one unlike that of
/// another vjp.
pub(crate) fn differ(
    vjp: &'static str,
    dtype: DType,
    sum: Option<&Tensor>,
    grad: &Tensor,
) -> Error {
    let reason = match sum {
        Some(sum) => format!(
            "its gradient {grad:?} joins {sum:?}, which the same {dtype} variable has already"
        ),
        None => format!("its gradient {grad:?} goes to a variable of type {dtype}"),
    };
    Error::VjpContract { vjp, reason }
}
