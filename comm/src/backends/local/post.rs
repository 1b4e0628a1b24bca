//! [`Post`]: what a rank brings to an operation.

use super::plan::Ends;
use crate::check::Call;
use crate::error::Result;
use crate::meeting::buffers::Buffer;
use crate::membership::Membership;
use crate::op::{Op, Signature};
use crate::work::Tensors;
use phalanx_tensor::Tensor;
use smallvec::SmallVec;
#[cfg(not(phalanx_loom))]
use std::mem;

/// What a rank brings: first what others read.
#[repr(C)]
pub(super) struct Post {
    pub(super) signature: Signature,
    /// Of each tensor.
    pub(super) ends: SmallVec<[Ends; 1]>,
    /// What it gives, unless that is what it gets.
    _inputs: SmallVec<[Option<Tensor>; 1]>,
    /// What it gets.
    pub(super) outputs: Tensors,
}

impl Post {
    /// How many bytes of it others read, from its start on: those of one tensor.
    #[cfg(not(phalanx_loom))]
    pub(super) const IS_READ: usize = {
        assert!(mem::size_of::<Option<Post>>() == mem::size_of::<Post>()); // it is where an `Option` of it is
        mem::offset_of!(Post, _inputs)
    };

    /// Takes a checked call, and makes room for its results. Copies nothing but views with gaps.
    pub(super) fn new(call: Call, me: &Membership) -> Result<Post> {
        let Call {
            signature,
            mut inputs,
            outputs: mut rooms,
        } = call;
        let mut post = Post {
            ends: SmallVec::new(),
            _inputs: SmallVec::new(),
            outputs: Tensors::new(),
            signature,
        };
        let Signature { op, tensors, .. } = &post.signature;
        // From the last one on, which a list gives away at less cost than the first.
        for (dtype, _) in tensors.iter().rev() {
            let (input, room) = (inputs.pop(), rooms.pop());
            let buffer = Buffer::new(op, me.rank, input, room, *dtype, me.device)?;
            let Buffer {
                src,
                dst,
                input,
                output,
            } = buffer;
            post.ends.push(Ends { src, dst });
            post._inputs.push(input);
            if let Some(output) = output {
                post.outputs.push(output);
            }
        }
        post.ends.reverse();
        post.outputs.reverse();
        Ok(post)
    }

    pub(super) fn op(&self) -> &Op {
        &self.signature.op
    }
}
