//! [`checkpoint`]: compute again instead of keeping (activation checkpointing, T. Chen et al.,
//! "Training Deep Nets with Sublinear Memory Cost", 2016; PyTorch: `torch.utils.checkpoint`).

use crate::error::Result;
use crate::grads::Gradients;
use crate::sweep::Backward;
use crate::tape::{Tape, Trace};
use crate::var::Var;
use crate::vjp::{Grads, Vjp, tensor_bytes};
use phalanx_tensor::Tensor;
use smallvec::SmallVec;
use std::fmt;

/// Runs `segment` without keeping its intermediate values: the tape keeps `inputs` alone, and the
/// backward pass runs the segment once more to get the rest.
///
/// The second run sees what the first saw: the same parameter values, even if the parameters were
/// set, frozen or thawed in between, and the same random numbers, if the segment draws them through
/// [`Tape::seed`], as [`nn::Dropout`](crate::nn::Dropout) does. Gradients equal those without the
/// checkpoint, with the same bits where the segment uses each parameter and input once. Gradients
/// of parameters of a half type are summed in `f32` inside the segment and beyond it.
///
/// ```
/// use phalanx_autograd::{Tape, checkpoint};
/// use phalanx_tensor::{Device, Tensor};
///
/// let tape = Tape::new();
/// let x = tape.input(Tensor::scalar(0.5f64, Device::cpu(0))?)?;
/// let y = checkpoint(&tape, &[&x], |_tape, x| x[0].exp()?.square())?;
/// assert_eq!(tape.len(), 2); // the input and the segment
/// let slope = tape.backward(&y)?.wrt(&x).unwrap().item::<f64>()?;
/// assert!((slope - 2.0 * 1f64.exp()).abs() < 1e-12);
/// # Ok::<(), phalanx_autograd::Error>(())
/// ```
///
/// # Errors
/// Those of the segment; [`Error::TapeMismatch`](crate::Error::TapeMismatch),
/// [`Error::Consumed`](crate::Error::Consumed).
pub fn checkpoint<F>(tape: &Tape, inputs: &[&Var], segment: F) -> Result<Var>
where
    F: Fn(&Tape, &[Var]) -> Result<Var> + 'static,
{
    for input in inputs {
        input.check(tape, "checkpoint")?;
    }
    if !tape.is_recording() {
        let inputs: Vec<Var> = inputs.iter().map(|&x| x.clone()).collect();
        return segment(tape, &inputs);
    }
    let tracing = tape.tracing();
    let first: Vec<Var> = inputs
        .iter()
        .map(|x| tracing.constant(x.value().clone()))
        .collect();
    let value = segment(&tracing, &first)?.into_value();
    let trace = tracing.take_trace();
    // Tracing has made the leaves on `tape`: they stand before the segment's node.
    let leaves: Vec<Var> = trace.params.iter().map(|(p, _)| tape.leaf(p)).collect();
    let all: SmallVec<[&Var; 8]> = inputs.iter().copied().chain(&leaves).collect();
    Var::from_vjp(tape, &all, value, |needs| Checkpoint {
        inputs: inputs
            .iter()
            .zip(needs)
            .map(|(x, &need)| (x.value().clone(), need))
            .collect(),
        trace,
        segment,
    })
}

/// A segment that is run again when its gradient is wanted.
struct Checkpoint<F> {
    inputs: SmallVec<[(Tensor, bool); 2]>,
    trace: Trace,
    segment: F,
}

impl<F> fmt::Debug for Checkpoint<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint")
            .field("inputs", &self.inputs)
            .field("trace", &self.trace)
            .finish_non_exhaustive()
    }
}

impl<F: Fn(&Tape, &[Var]) -> Result<Var>> Vjp for Checkpoint<F> {
    fn name(&self) -> &'static str {
        "checkpoint"
    }

    fn backward(&self, grad: Tensor, _needs: &[bool]) -> Result<Grads> {
        let tape = Tape::replay(&self.trace);
        let mut inputs = Vec::with_capacity(self.inputs.len());
        for (value, wanted) in &self.inputs {
            inputs.push(if *wanted {
                tape.input(value.clone())?
            } else {
                tape.constant(value.clone())
            });
        }
        let out = (self.segment)(&tape, &inputs)?;
        let mut gradients = match out.requires_grad() {
            true => tape.sweep(Backward {
                roots: &[(&out, Some(grad))],
                ..Backward::default()
            })?,
            false => Gradients::new(), // it was cut off from everything
        };
        // An input or a parameter that was traced but does not reach the output: a zero, since the
        // tape has announced it.
        let or_zeros = |grad: Option<Tensor>, like: &Tensor| match grad {
            Some(grad) => Ok(grad),
            None => Tensor::zeros(like.shape(), like.dtype(), like.device()),
        };
        let mut grads = Grads::new();
        for (var, (value, wanted)) in inputs.iter().zip(&self.inputs) {
            grads.push(match wanted {
                true => Some(or_zeros(gradients.take_wrt(var), value)?),
                false => None,
            });
        }
        for (param, value) in &self.trace.params {
            grads.push(Some(or_zeros(gradients.take(param), value)?));
        }
        Ok(grads)
    }

    fn saved_bytes(&self) -> usize {
        let inputs = self.inputs.iter().map(|(value, _)| value);
        let params = self.trace.params.iter().map(|(_, value)| value);
        let frozen = self.trace.frozen.iter().map(|(_, value)| value);
        inputs.chain(params).chain(frozen).map(tensor_bytes).sum()
    }

    fn joint(&self) -> bool {
        true // one recomputation serves all
    }
}
