//! [`Post`]: what a rank brings to an operation.

use super::plan::Ends;
use crate::check::Call;
use crate::error::Result;
use crate::membership::Membership;
use crate::op::{Op, Signature};
use phalanx_tensor::Tensor;
use std::ptr;

/// What a rank brings: first what others read.
#[repr(C)]
pub(super) struct Post {
    pub(super) signature: Signature,
    pub(super) ends: Ends,
    /// What it gives, unless that is what it gets.
    _input: Option<Tensor>,
    /// What it gets.
    pub(super) output: Option<Tensor>,
}

impl Post {
    /// Takes a checked call, and makes room for its result. Copies nothing but a view with gaps.
    pub(super) fn new(call: Call, me: &Membership) -> Result<Post> {
        let Call {
            signature,
            input,
            output: shape,
        } = call;
        let input = match input {
            Some(t) if !t.is_contiguous() => Some(t.contiguous()?),
            input => input, // not even a clone: it would no longer be unique
        };
        let device = input.as_ref().map_or(me.device, Tensor::device);
        let mut ends = Ends {
            src: ptr::null(),
            dst: ptr::null_mut(),
        };
        let is_root = signature.op.root() == Some(me.rank);
        let (input, output) = match (&signature.op, input, shape) {
            (Op::Broadcast { .. }, Some(t), _) if is_root => {
                ends.src = t.as_bytes()?.as_ptr();
                (None, Some(t))
            }
            (Op::AllReduce(_) | Op::Reduce { .. } | Op::Broadcast { .. }, Some(mut t), Some(_))
                if t.is_unique() =>
            {
                ends.dst = t.bytes_mut()?.as_mut_ptr();
                ends.src = ends.dst;
                (None, Some(t))
            }
            (_, input, shape) => {
                if let Some(t) = &input {
                    ends.src = t.as_bytes()?.as_ptr();
                }
                let output = match (shape, &signature.tensor) {
                    (Some(shape), Some((dtype, _))) => {
                        let mut t = Tensor::empty(shape, *dtype, device)?;
                        ends.dst = t.bytes_mut()?.as_mut_ptr();
                        Some(t)
                    }
                    _ => None,
                };
                (input, output)
            }
        };
        Ok(Post {
            signature,
            ends,
            _input: input,
            output,
        })
    }

    pub(super) fn op(&self) -> &Op {
        &self.signature.op
    }
}
