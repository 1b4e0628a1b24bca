//! Operations with several outputs: [`MultiVjp`].
//!
//! **One node holds the operation, and behind it stands a node for each output.** An output's node
//! puts its gradient, when that is complete, into a list at the operation's; so when the sweep gets there,
//! every output's gradient is in the list that will ever come. Between them goes an empty tensor, which
//! says that something has come: to the sweep, these are nodes like all others.

use crate::error::Result;
use crate::tape::Tape;
use crate::var::Var;
use crate::vjp::{Grads, Vjp, tensor_bytes};
use phalanx_tensor::{DType, Device, Tensor};
use smallvec::SmallVec;
use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

/// The gradients of an operation's outputs; `None` for one that nothing depends on.
pub type OutputGrads = SmallVec<[Option<Tensor>; 4]>;

/// As [`Vjp`], of an operation with several outputs: from the gradients of its outputs to those of its
/// inputs. Recorded by [`Var::from_multi_vjp`].
///
/// **The contract** is that of [`Vjp`]. It is called where at least one output has a gradient, and gets
/// an entry for each: the complete gradient in the output's element type, or `None` for an output that
/// the roots do not depend on, which counts as zeros.
pub trait MultiVjp: fmt::Debug {
    /// As [`Vjp::name`].
    fn name(&self) -> &'static str;

    /// The gradients of the inputs, given those of the outputs. As [`Vjp::backward`].
    ///
    /// # Errors
    /// Those of the operations inside.
    fn backward(&self, grads: OutputGrads, needs: &[bool]) -> Result<Grads>;

    /// As [`Vjp::saved_bytes`].
    fn saved_bytes(&self) -> usize;

    /// As [`Vjp::joint`].
    fn joint(&self) -> bool {
        false
    }

    /// As [`Vjp::shrink`].
    fn shrink(&mut self, needs: &[bool]) {
        let _ = needs;
    }
}

/// The gradients of the outputs that have come.
type Arrived = Rc<RefCell<OutputGrads>>;

/// The operation's node.
struct Operation<V> {
    vjp: V,
    arrived: Arrived,
}

impl<V: fmt::Debug> fmt::Debug for Operation<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.vjp.fmt(f)
    }
}

impl<V: MultiVjp> Vjp for Operation<V> {
    fn name(&self) -> &'static str {
        self.vjp.name()
    }

    fn backward(&self, _arrived: Tensor, needs: &[bool]) -> Result<Grads> {
        let grads = match self.vjp.joint() {
            true => self.arrived.take(),
            // The second half of a split backward reads them again.
            false => self.arrived.borrow().clone(),
        };
        self.vjp.backward(grads, needs)
    }

    fn saved_bytes(&self) -> usize {
        let waiting = self.arrived.borrow();
        let waiting = waiting.iter().flatten().map(tensor_bytes).sum::<usize>();
        self.vjp.saved_bytes() + waiting
    }

    fn joint(&self) -> bool {
        self.vjp.joint()
    }

    fn shrink(&mut self, needs: &[bool]) {
        self.vjp.shrink(needs);
    }
}

/// The node of an output.
#[derive(Debug)]
struct Output {
    number: usize,
    arrived: Arrived,
}

impl Vjp for Output {
    fn name(&self) -> &'static str {
        "output"
    }

    fn backward(&self, grad: Tensor, _needs: &[bool]) -> Result<Grads> {
        self.arrived.borrow_mut()[self.number] = Some(grad);
        Ok(Grads::from_iter([Some(sign()?)]))
    }

    fn saved_bytes(&self) -> usize {
        0
    }
}

/// What says that a gradient has come.
fn sign() -> Result<Tensor> {
    Ok(Tensor::empty([0], DType::F32, Device::cpu(0))?)
}

impl Var {
    /// Records an operation of one's own with several outputs, as [`Var::from_vjp`] does one with one:
    /// `values` are its results. An output whose elements are no floats, such as indices, is a
    /// constant.
    ///
    /// ```
    /// use phalanx_autograd::{Grads, MultiVjp, OutputGrads, Result, Tape, Var};
    /// use phalanx_tensor::{Device, Tensor};
    ///
    /// /// `x` twice, once with its sign turned.
    /// #[derive(Debug)]
    /// struct Signs;
    ///
    /// impl MultiVjp for Signs {
    ///     fn name(&self) -> &'static str {
    ///         "signs"
    ///     }
    ///     fn backward(&self, grads: OutputGrads, _needs: &[bool]) -> Result<Grads> {
    ///         let grad = match (&grads[0], &grads[1]) {
    ///             (Some(plus), Some(minus)) => plus.sub(minus)?,
    ///             (Some(plus), None) => plus.clone(),
    ///             (None, Some(minus)) => minus.neg()?,
    ///             (None, None) => unreachable!("one has come"),
    ///         };
    ///         Ok(Grads::from_iter([Some(grad)]))
    ///     }
    ///     fn saved_bytes(&self) -> usize {
    ///         0
    ///     }
    /// }
    ///
    /// let tape = Tape::new();
    /// let x = tape.input(Tensor::scalar(2.0f32, Device::cpu(0))?)?;
    /// let values = vec![x.value().clone(), x.value().neg()?];
    /// let out = Var::from_multi_vjp(&tape, &[&x], values, |_needs| Signs)?;
    /// assert_eq!(tape.backward(&out[1].mul(&out[1])?)?.wrt(&x).unwrap().item::<f64>()?, 4.0);
    /// # Ok::<(), phalanx_autograd::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Var::from_vjp`].
    pub fn from_multi_vjp<V: MultiVjp + 'static>(
        tape: &Tape,
        inputs: &[&Var],
        values: Vec<Tensor>,
        vjp: impl FnOnce(&[bool]) -> V,
    ) -> Result<Vec<Var>> {
        let arrived: Arrived = Rc::new(RefCell::new(values.iter().map(|_| None).collect()));
        let operation = Var::from_vjp(tape, inputs, sign()?, |needs| Operation {
            vjp: vjp(needs),
            arrived: Rc::clone(&arrived),
        })?;
        let output = |(number, value): (usize, Tensor)| {
            if !value.dtype().is_float() || !operation.requires_grad() {
                return Ok(tape.constant(value));
            }
            let arrived = Rc::clone(&arrived);
            Var::from_vjp(tape, &[&operation], value, |_| Output { number, arrived })
        };
        values.into_iter().enumerate().map(output).collect()
    }
}
