//! [`checkpoint`]: compute again instead of keeping (activation checkpointing, T. Chen et al.,
//! "Training Deep Nets with Sublinear Memory Cost", 2016; PyTorch: `torch.utils.checkpoint`).

use crate::error::{Error, Result};
use crate::grads::Gradients;
use crate::multi::{MultiVjp, OutputGrads};
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
    let (value, leaves, save) = match first_run(tape, inputs, segment)? {
        FirstRun::Done(value) => return Ok(value),
        FirstRun::Saved(value, leaves, save) => (value.into_value(), leaves, save),
    };
    let all = all_inputs(inputs, &leaves);
    Var::from_vjp(tape, &all, value, |needs| save.checkpoint(inputs, needs))
}

/// As [`checkpoint`], of a segment that gives several variables. Where the roots depend on one of them,
/// the segment is run again, once.
///
/// ```
/// use phalanx_autograd::{Tape, checkpoint_all};
/// use phalanx_tensor::{Device, Tensor};
///
/// let tape = Tape::new();
/// let x = tape.input(Tensor::scalar(3.0f64, Device::cpu(0))?)?;
/// let out = checkpoint_all(&tape, &[&x], |_tape, x| Ok(vec![x[0].square()?, x[0].neg()?]))?;
/// let y = out[0].mul(&out[1])?; // −x³
/// assert_eq!(tape.backward(&y)?.wrt(&x).unwrap().item::<f64>()?, -27.0);
/// # Ok::<(), phalanx_autograd::Error>(())
/// ```
///
/// # Errors
/// As [`checkpoint`].
pub fn checkpoint_all<F>(tape: &Tape, inputs: &[&Var], segment: F) -> Result<Vec<Var>>
where
    F: Fn(&Tape, &[Var]) -> Result<Vec<Var>> + 'static,
{
    let (vars, leaves, save) = match first_run(tape, inputs, segment)? {
        FirstRun::Done(vars) => return Ok(vars),
        FirstRun::Saved(vars, leaves, save) => (vars, leaves, save),
    };
    let all = all_inputs(inputs, &leaves);
    let values = vars.into_iter().map(Var::into_value).collect();
    Var::from_multi_vjp(tape, &all, values, |needs| save.checkpoint(inputs, needs))
}

/// What a segment gave when it was run first.
enum FirstRun<T, F> {
    /// On a tape that records nothing, which is all.
    Done(T),
    /// Without being recorded; the parameters that it used, and what a second run needs.
    Saved(T, Vec<Var>, Save<F>),
}

/// What a second run needs beside the values of the inputs.
struct Save<F> {
    trace: Trace,
    segment: F,
}

fn first_run<T, F>(tape: &Tape, inputs: &[&Var], segment: F) -> Result<FirstRun<T, F>>
where
    F: Fn(&Tape, &[Var]) -> Result<T>,
{
    for input in inputs {
        input.check(tape, "checkpoint")?;
    }
    if !tape.is_recording() {
        let inputs: Vec<Var> = inputs.iter().map(|&x| x.clone()).collect();
        return Ok(FirstRun::Done(segment(tape, &inputs)?));
    }
    let tracing = tape.tracing();
    let first: Vec<Var> = inputs
        .iter()
        .map(|x| tracing.constant(x.value().clone()))
        .collect();
    let out = segment(&tracing, &first)?;
    let trace = tracing.take_trace();
    // Tracing has made the leaves on `tape`: they stand before the segment's node.
    let leaves = trace.params.iter().map(|(p, _)| tape.leaf(p)).collect();
    Ok(FirstRun::Saved(out, leaves, Save { trace, segment }))
}

/// All that a segment depends on.
fn all_inputs<'a>(inputs: &[&'a Var], leaves: &'a [Var]) -> SmallVec<[&'a Var; 8]> {
    inputs.iter().copied().chain(leaves).collect()
}

impl<F> Save<F> {
    fn checkpoint(self, inputs: &[&Var], needs: &[bool]) -> Checkpoint<F> {
        let inputs = inputs.iter().zip(needs);
        Checkpoint {
            inputs: inputs.map(|(x, &need)| (x.value().clone(), need)).collect(),
            trace: self.trace,
            segment: self.segment,
        }
    }
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

impl<F> Checkpoint<F> {
    /// The second run, and back from those of its outputs that have a gradient.
    fn run_again<T>(&self, grads: OutputGrads, outputs: impl FnOnce(T) -> Vec<Var>) -> Result<Grads>
    where
        F: Fn(&Tape, &[Var]) -> Result<T>,
    {
        let tape = Tape::replay(&self.trace);
        let mut inputs = Vec::with_capacity(self.inputs.len());
        for (value, wanted) in &self.inputs {
            inputs.push(if *wanted {
                tape.input(value.clone())?
            } else {
                tape.constant(value.clone())
            });
        }
        let out = outputs((self.segment)(&tape, &inputs)?);
        if out.len() != grads.len() {
            return Err(Error::VjpContract {
                vjp: "checkpoint",
                reason: format!(
                    "the segment gave {} variables, and {} when it was run again",
                    grads.len(),
                    out.len()
                ),
            });
        }
        // Without a gradient, or cut off from everything: no root.
        let roots = out.iter().zip(grads).filter(|(out, _)| out.requires_grad());
        let roots: SmallVec<[(&Var, Option<Tensor>); 4]> =
            roots.filter(|(_, grad)| grad.is_some()).collect();
        let mut gradients = match roots.is_empty() {
            false => tape.sweep(Backward {
                roots: &roots,
                ..Backward::default()
            })?,
            true => Gradients::new(),
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

    fn bytes(&self) -> usize {
        let inputs = self.inputs.iter().map(|(value, _)| value);
        let params = self.trace.params.iter().map(|(_, value)| value);
        let frozen = self.trace.frozen.iter().map(|(_, value)| value);
        inputs.chain(params).chain(frozen).map(tensor_bytes).sum()
    }
}

impl<F: Fn(&Tape, &[Var]) -> Result<Var>> Vjp for Checkpoint<F> {
    fn name(&self) -> &'static str {
        "checkpoint"
    }
    fn backward(&self, grad: Tensor, _needs: &[bool]) -> Result<Grads> {
        self.run_again(OutputGrads::from_iter([Some(grad)]), |out| vec![out])
    }
    fn saved_bytes(&self) -> usize {
        self.bytes()
    }
    fn joint(&self) -> bool {
        true // one recomputation serves all
    }
}

impl<F: Fn(&Tape, &[Var]) -> Result<Vec<Var>>> MultiVjp for Checkpoint<F> {
    fn name(&self) -> &'static str {
        "checkpoint"
    }
    fn backward(&self, grads: OutputGrads, _needs: &[bool]) -> Result<Grads> {
        self.run_again(grads, |out| out)
    }
    fn saved_bytes(&self) -> usize {
        self.bytes()
    }
    fn joint(&self) -> bool {
        true
    }
}
