//! [`Buffers`]: the memory of a card that a call reads and writes, and which of the caller's it may use again.

use crate::check::{Call, Room};
use crate::error::Result;
use crate::membership::Membership;
use crate::op::{Op, Signature};
use crate::work::Tensors;
use phalanx_tensor::Tensor;
use smallvec::SmallVec;

/// A call with the tensors that it reads and writes.
pub(super) struct Buffers {
    pub(super) signature: Signature,
    /// What the rank gives, tensor by tensor; `None` where that is what it gets.
    inputs: SmallVec<[Option<Tensor>; 1]>,
    pub(super) outputs: Tensors,
}

impl Buffers {
    /// Memory for all results. Where the operation works in place, a tensor that nobody else holds is used again.
    pub(super) fn new(call: Call, me: &Membership) -> Result<Buffers> {
        let Call {
            signature,
            inputs: given,
            outputs: rooms,
        } = call;
        let in_place = matches!(
            signature.op,
            Op::AllReduce(_) | Op::Reduce { .. } | Op::Broadcast { .. }
        );
        let (mut given, mut rooms) = (given.into_iter(), rooms.into_iter());
        let (mut inputs, mut outputs) = (SmallVec::new(), Tensors::new());
        for (dtype, _) in &signature.tensors {
            let input = match given.next() {
                Some(tensor) if !tensor.is_contiguous() => Some(tensor.contiguous()?),
                input => input,
            };
            match (input, rooms.next()) {
                (Some(tensor), Some(Room::New(_))) if in_place && tensor.is_unique() => {
                    inputs.push(None);
                    outputs.push(tensor);
                }
                (input, room) => {
                    outputs.extend(match room {
                        Some(Room::Given(t)) if t.is_unique() && t.is_contiguous() => Some(t),
                        Some(room) => Some(Tensor::empty(room.shape().clone(), *dtype, me.device)?),
                        None => None,
                    });
                    inputs.push(input);
                }
            }
        }
        Ok(Buffers {
            signature,
            inputs,
            outputs,
        })
    }

    /// The tensor whose elements the rank gives.
    pub(super) fn source(&self, at: usize) -> Option<&Tensor> {
        match self.inputs.get(at) {
            Some(Some(input)) => Some(input),
            _ => self.outputs.get(at),
        }
    }

    pub(super) fn reads(&self) -> impl Iterator<Item = &Tensor> {
        (0..self.inputs.len()).filter_map(|at| match &self.inputs[at] {
            Some(input) => Some(input),
            None if self.signature.op.is_message() => None,
            None => self.outputs.get(at),
        })
    }

    pub(super) fn writes(&self) -> impl Iterator<Item = &Tensor> {
        self.outputs.iter()
    }
}
