//! [`Post`]: what a rank brings to an operation.

use super::plan::Ends;
use crate::check::Call;
use crate::error::Result;
use crate::meeting::buffers::Buffer;
use crate::membership::Membership;
use crate::op::{Op, Signature};
use crate::work::Tensors;
use phalanx_tensor::{DType, Tensor};
use smallvec::SmallVec;

/// What a rank brings: first what others read.
#[repr(C)]
pub(super) struct Post {
    pub(super) signature: Signature,
    /// Of each tensor.
    pub(super) ends: SmallVec<[Ends; 1]>,
    /// What it gives, unless that is what it gets.
    inputs: SmallVec<[Option<Tensor>; 1]>,
    /// What it gets.
    outputs: Tensors,
}

impl Post {
    /// Takes a checked call, and makes room for its results. Copies nothing but views with gaps.
    pub(super) fn new(call: Call, me: &Membership) -> Result<Post> {
        let Call {
            signature,
            mut inputs,
            outputs: mut rooms,
        } = call;
        let mut post = Post {
            ends: SmallVec::new(),
            inputs: SmallVec::new(),
            outputs: Tensors::new(),
            signature,
        };
        let Signature { op, tensors, .. } = &post.signature;
        let mut bring = |dtype: DType, input, room| -> Result<()> {
            let Buffer {
                src,
                dst,
                input,
                output,
            } = Buffer::new(op, me.rank, input, room, dtype, me.device)?;
            post.ends.push(Ends { src, dst });
            post.inputs.push(input);
            if let Some(output) = output {
                post.outputs.push(output);
            }
            Ok(())
        };
        debug_assert!(inputs.len() <= tensors.len() && rooms.len() <= tensors.len());
        match **tensors {
            [(dtype, _)] => bring(dtype, inputs.pop(), rooms.pop())?, // without the detour of lists
            ref all => {
                let (mut inputs, mut rooms) = (inputs.into_iter(), rooms.into_iter());
                for (dtype, _) in all {
                    bring(*dtype, inputs.next(), rooms.next())?;
                }
            }
        }
        Ok(post)
    }

    /// What the rank gets, out of the post; what it gave goes. The rest (the signature with its label and splits, but no
    /// tensor) stays where others have read it, until it is written over: a line that has been read elsewhere costs some
    /// 100 ns to write to.
    pub(super) fn take(&mut self) -> Tensors {
        self.inputs.clear();
        std::mem::take(&mut self.outputs)
    }

    pub(super) fn op(&self) -> &Op {
        &self.signature.op
    }
}
