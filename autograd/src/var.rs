//! [`Var`]: a tensor with its place on a tape. Its operations are in [`ops`](crate::ops).

use crate::error::{Error, Result};
use crate::tape::{Kind, NodeId, NodeRef, Tape};
use crate::vjp::Vjp;
use phalanx_tensor::{DType, Device, Shape, Tensor, Value};
use smallvec::SmallVec;
use std::fmt;

/// A tensor in a computation that a [`Tape`] follows. Cheap to clone.
///
/// Its methods are the tensor's operations; each computes at once and, where an operand wants a
/// gradient, records how to run it backward.
#[derive(Clone)]
pub struct Var {
    tape: Tape,
    recording: u64,
    id: NodeId,
    value: Tensor,
}

impl Var {
    pub(crate) fn new(tape: &Tape, id: NodeId, value: Tensor) -> Var {
        Var {
            tape: tape.clone(),
            recording: tape.recording(),
            id,
            value,
        }
    }

    /// Records an operation of one's own: `value` is its result from `inputs`, and `vjp` makes its
    /// backward pass. `vjp` is called only where an input wants a gradient, and is told which, so
    /// that it can save no more than it will read.
    ///
    /// An operation without inputs is recorded always (a receive: its gradient is sent).
    ///
    /// ```
    /// use phalanx_autograd::{Grads, Result, Tape, Var, Vjp};
    /// use phalanx_tensor::{Device, Tensor};
    ///
    /// /// `x`, with the gradient's sign turned (a gradient reversal layer).
    /// #[derive(Debug)]
    /// struct Reversal;
    ///
    /// impl Vjp for Reversal {
    ///     fn name(&self) -> &'static str {
    ///         "reversal"
    ///     }
    ///     fn backward(&self, grad: Tensor, _needs: &[bool]) -> Result<Grads> {
    ///         Ok(Grads::from_iter([Some(grad.neg()?)]))
    ///     }
    ///     fn saved_bytes(&self) -> usize {
    ///         0
    ///     }
    /// }
    ///
    /// let tape = Tape::new();
    /// let x = tape.input(Tensor::scalar(2.0f32, Device::cpu(0))?)?;
    /// let y = Var::from_vjp(&tape, &[&x], x.value().clone(), |_needs| Reversal)?;
    /// assert_eq!(tape.backward(&y)?.wrt(&x).unwrap().item::<f64>()?, -1.0);
    /// # Ok::<(), phalanx_autograd::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::TapeMismatch`], [`Error::Consumed`].
    pub fn from_vjp<V: Vjp + 'static>(
        tape: &Tape,
        inputs: &[&Var],
        value: Tensor,
        vjp: impl FnOnce(&[bool]) -> V,
    ) -> Result<Var> {
        let mut ids: SmallVec<[NodeId; 2]> = SmallVec::new();
        let mut needs: SmallVec<[bool; 8]> = SmallVec::new();
        for input in inputs {
            if let Err(error) = input.check(tape, "from_vjp") {
                // Only what would be recorded knows the operation's name.
                let needs = inputs.iter().map(|input| input.requires_grad());
                let vjp = vjp(&needs.collect::<Vec<_>>());
                return Err(error.of(vjp.name()));
            }
            ids.push(input.id);
            needs.push(input.requires_grad());
        }
        let wanted = inputs.is_empty() || needs.contains(&true);
        if !(wanted && tape.is_recording()) {
            return Ok(tape.constant(value));
        }
        let id = tape.push(ids, Kind::Op(Box::new(vjp(&needs))), value.dtype());
        Ok(Var::new(tape, id, value))
    }

    /// The variable is of this tape, and of its present recording if it was recorded.
    pub(crate) fn check(&self, tape: &Tape, op: &'static str) -> Result<()> {
        if !self.tape.same(tape) {
            return Err(Error::TapeMismatch { op });
        }
        if self.requires_grad() && self.recording != tape.recording() {
            return Err(Error::Consumed { op });
        }
        Ok(())
    }

    /// Its place, where it has one.
    pub(crate) fn node(&self) -> Option<NodeRef> {
        self.requires_grad().then_some(NodeRef {
            recording: self.recording,
            id: self.id,
        })
    }

    /// The tape it belongs to.
    pub fn tape(&self) -> &Tape {
        &self.tape
    }

    /// The tensor.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// The tensor, without the variable.
    pub fn into_value(self) -> Tensor {
        self.value
    }

    /// Whether a gradient flows to it.
    pub fn requires_grad(&self) -> bool {
        self.id != NodeId::NONE
    }

    /// The same value, cut off from what it was computed from.
    pub fn detach(&self) -> Var {
        Var {
            id: NodeId::NONE,
            ..self.clone()
        }
    }

    /// The extents, outermost first.
    pub fn shape(&self) -> &Shape {
        self.value.shape()
    }

    /// The extents as a slice.
    pub fn dims(&self) -> &[usize] {
        self.value.dims()
    }

    /// The number of axes.
    pub fn rank(&self) -> usize {
        self.value.rank()
    }

    /// The number of elements.
    pub fn numel(&self) -> usize {
        self.value.numel()
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.value.dtype()
    }

    /// Where it lives.
    pub fn device(&self) -> Device {
        self.value.device()
    }

    /// The value of a variable with a single element, as a `T` that holds it exactly. As
    /// [`Tensor::item`].
    ///
    /// # Errors
    /// As the tensor's method.
    pub fn item<T: Value>(&self) -> Result<T> {
        Ok(self.value.item()?)
    }
}

impl fmt::Debug for Var {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.requires_grad() {
            write!(f, "Var({}, {:?})", self.id.index(), self.value)
        } else {
            write!(f, "Var(constant, {:?})", self.value)
        }
    }
}
