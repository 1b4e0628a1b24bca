//! [`Vjp`]: what a node of the tape knows about its operation's backward pass.

use crate::error::Result;
use phalanx_tensor::Tensor;
use smallvec::SmallVec;
use std::fmt;

/// One gradient per input of a node, `None` for an input that needs none.
pub type Grads = SmallVec<[Option<Tensor>; 2]>;

/// The vector-Jacobian product of one recorded operation: from the gradient of its output to the
/// gradients of its inputs.
///
/// Implementors are named structs that hold the tensors which the backward pass reads. They print,
/// they can be counted and sized, and other crates add their own (a collective, a checkpoint).
///
/// **The contract.** `backward` returns exactly one entry per input of the node, and `Some` at
/// least where `needs` is true; each gradient has the shape, element type and device of its input.
/// Only that of an input of a half type may be `f32` instead, where it is a sum that was made in
/// `f32`. The sweep calls it at most once per needed input, with the complete gradient of the
/// output, in the output's element type.
pub trait Vjp: fmt::Debug {
    /// The operation, as PyTorch calls it: `"relu"`.
    fn name(&self) -> &'static str;

    /// The gradients of the inputs, given that of the output. Entries of inputs whose `needs` is
    /// false are not read: leave their work undone.
    ///
    /// # Errors
    /// Those of the operations inside.
    fn backward(&self, grad: Tensor, needs: &[bool]) -> Result<Grads>;

    /// As [`backward`](Vjp::backward), where gradients of parameters are added to what is there: where
    /// `sums` holds a tensor for an input, the operation may add its gradient to that tensor, which has
    /// the input's shape and is written in place, and give `None` for the input. It gives the gradient
    /// where it leaves the tensor alone. The tensor stays in `sums` either way.
    ///
    /// It may be called instead of `backward` on any operation but a [`joint`](Vjp::joint) one, with the
    /// `needs` of the parameters alone, too: **what it adds must not depend on the other `needs`.**
    ///
    /// # Errors
    /// As [`backward`](Vjp::backward).
    fn backward_into(
        &self,
        grad: Tensor,
        needs: &[bool],
        sums: &mut [Option<Tensor>],
    ) -> Result<Grads> {
        let _ = sums;
        self.backward(grad, needs)
    }

    /// Bytes of the tensors held for the backward pass. Storage that several nodes share counts
    /// at each of them.
    fn saved_bytes(&self) -> usize;

    /// Whether all gradients come out of one computation, so that a split backward had better take
    /// them all at once and keep the weights' ones for later.
    fn joint(&self) -> bool {
        false
    }

    /// Drops what only other inputs' gradients read: from now on `backward` is called with no
    /// `needs` beyond these.
    fn shrink(&mut self, needs: &[bool]) {
        let _ = needs;
    }
}

/// Bytes that a saved tensor's elements take.
pub fn tensor_bytes(tensor: &Tensor) -> usize {
    tensor.numel() * tensor.dtype().size()
}
