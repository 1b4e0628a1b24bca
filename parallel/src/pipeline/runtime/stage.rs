//! [`Stage`]: a part of the model on its rank, and what its microbatches keep between forward and backward.
//!
//! **The weight gradients of a stage are added in ascending order of the microbatches**, whatever order the
//! plan does them in: one whose turn has not come waits with what it saved. So a plan's order changes no bit of a
//! gradient.

use super::place::Place;
use crate::Result;
use crate::pipeline::{Action, Kind};
use phalanx_autograd::nn::Module;
use phalanx_autograd::{
    Backward, Claim, Claims, Error, Gradients, Holder, Param, Tape, Var, WeightSweep,
};
use phalanx_tensor::Tensor;
use std::collections::BTreeMap;

/// What the errors of a claim say of a pipeline.
const HOLDER: Holder = Holder {
    name: "a Pipeline",
    outside: "call Pipeline::step, which runs the plan, or freeze the parameter",
    unclaimed: "show it in the stage's `visit`",
};

/// From a stage's outputs and the targets of a microbatch to the sum of the losses and its weight: the number of
/// rows, or of tokens that count.
pub type Loss = dyn Fn(&Tape, &[Var], &[Tensor]) -> phalanx_autograd::Result<(Var, f64)>;

/// A tensor on its way into a stage.
pub(super) struct Arrival {
    pub(super) value: Tensor,
    /// Whether its gradient goes back.
    pub(super) wants_grad: bool,
}

/// A microbatch between its forward and its backward.
struct Live {
    tape: Tape,
    inputs: Vec<Var>,
    outputs: Vec<Var>,
    loss: Option<Var>,
}

/// A stage and its microbatches.
pub(super) struct Stage {
    pub(super) number: usize,
    pub(super) module: Box<dyn Module>,
    claim: Claim,
    live: BTreeMap<usize, Live>,
    /// Input gradient done, weight gradient not asked for.
    halves: BTreeMap<usize, WeightSweep>,
    /// Weight gradient asked for, but an earlier microbatch is not done.
    early: BTreeMap<usize, WeightSweep>,
    /// The microbatch whose weight gradient is added next.
    next: usize,
    gradients: Gradients,
    /// Tapes that are empty.
    tapes: Vec<Tape>,
}

impl Stage {
    /// # Errors
    /// A parameter belongs to another wrapper.
    pub(super) fn new(number: usize, module: Box<dyn Module>) -> Result<Stage> {
        let params = module.parameters();
        Ok(Stage {
            number,
            claim: Claim::new(HOLDER, &params)?,
            module,
            live: BTreeMap::new(),
            halves: BTreeMap::new(),
            early: BTreeMap::new(),
            next: 0,
            gradients: Gradients::new(),
            tapes: Vec::new(),
        })
    }

    /// The trainable parameters with their names in the stage.
    pub(super) fn trainable(&self) -> Vec<(String, Param)> {
        let all = self.module.named_parameters().into_iter();
        all.filter(|(_, p)| p.requires_grad()).collect()
    }

    /// Ready for the first microbatch of a pass.
    pub(super) fn start(&mut self) {
        self.next = 0;
    }

    /// Takes the sums of the gradients out.
    pub(super) fn take_gradients(&mut self) -> Gradients {
        std::mem::take(&mut self.gradients)
    }

    /// How many outputs it has given for a microbatch.
    pub(super) fn outputs(&self, microbatch: usize) -> usize {
        self.live
            .get(&microbatch)
            .map_or(0, |live| live.outputs.len())
    }

    /// Computes a microbatch's outputs: their values, and which of them want a gradient. They are kept for the backward
    /// pass. With a loss, also the loss and its weight. Random numbers follow from the step and the microbatch, of which
    /// `draws` gives the first one's.
    pub(super) fn forward(
        &mut self,
        microbatch: usize,
        inputs: Vec<Arrival>,
        loss: Option<(&Loss, &[Tensor])>,
        draws: (u64, u64),
    ) -> Result<Outcome> {
        let tape = self.tapes.pop().unwrap_or_default();
        tape.draw_at(draws.0, draws.1 + microbatch as u64);
        let inputs = inputs.into_iter().map(|input| match input.wants_grad {
            true => tape.input(input.value),
            false => Ok(tape.constant(input.value)),
        });
        let inputs = inputs.collect::<Result<Vec<_>, Error>>()?;
        let outputs = self.module.forward_all(&tape, &inputs)?;
        let weighed = match loss {
            Some((loss, targets)) => Some(loss(&tape, &outputs, targets)?),
            None => None,
        };
        let arrivals = outputs.iter().map(|output| Arrival {
            value: output.value().clone(),
            wants_grad: output.requires_grad(),
        });
        let outcome = Outcome {
            outputs: arrivals.collect(),
            loss: weighed
                .as_ref()
                .map(|(loss, weight)| (loss.value().clone(), *weight)),
        };
        let loss = weighed.map(|(loss, _)| loss);
        self.live.insert(
            microbatch,
            Live {
                tape,
                inputs,
                outputs,
                loss,
            },
        );
        Ok(outcome)
    }

    /// As [`forward`](Stage::forward), for a pass without a backward.
    pub(super) fn infer(
        &self,
        inputs: Vec<Arrival>,
        loss: Option<(&Loss, &[Tensor])>,
    ) -> Result<Outcome> {
        let tape = Tape::inference();
        let inputs = inputs.into_iter().map(|input| tape.constant(input.value));
        let outputs = self
            .module
            .forward_all(&tape, &inputs.collect::<Vec<_>>())?;
        let loss = match loss {
            Some((loss, targets)) => {
                let (sum, weight) = loss(&tape, &outputs, targets)?;
                Some((sum.into_value(), weight))
            }
            None => None,
        };
        let outputs = outputs.into_iter().map(|output| Arrival {
            value: output.into_value(),
            wants_grad: false,
        });
        Ok(Outcome {
            outputs: outputs.collect(),
            loss,
        })
    }

    /// The gradients of the inputs of a microbatch (`I`), from those of its outputs; the second half waits for
    /// [`weight`](Stage::weight). `None` for an input that wants none.
    pub(super) fn input(
        &mut self,
        microbatch: usize,
        seeds: Vec<Option<Tensor>>,
    ) -> Result<Vec<Option<Tensor>>> {
        let Some(live) = self.live.remove(&microbatch) else {
            return Ok(Vec::new()); // the proof says that the forward was done
        };
        let roots = live.roots(seeds);
        let (mut gradients, half) = match roots.is_empty() {
            true => Default::default(),
            false => live.tape.sweep_inputs(Backward {
                roots: &roots,
                claims: claims(&[&self.claim]),
                ..Backward::default()
            })?,
        };
        drop(roots);
        self.halves.insert(microbatch, half);
        self.done(live, &mut gradients)
    }

    /// The gradients of the parameters for a microbatch whose first half is done (`W`), as soon as its turn has come.
    pub(super) fn weight(&mut self, microbatch: usize, place: &Place<'_>) -> Result<()> {
        let half = self.halves.remove(&microbatch).unwrap_or_default();
        self.early.insert(microbatch, half);
        self.weight_in_turn(place)
    }

    fn weight_in_turn(&mut self, place: &Place<'_>) -> Result<()> {
        while let Some(half) = self.early.remove(&self.next) {
            let (stage, microbatch) = (self.number as u16, self.next as u16);
            let before = place.enter(Action::compute(Kind::Weight, stage, microbatch));
            self.next += 1;
            self.gradients = half.run(self.take_gradients(), None)?;
            place.enter(before);
        }
        Ok(())
    }

    /// Both at once (`B`).
    pub(super) fn backward(
        &mut self,
        microbatch: usize,
        seeds: Vec<Option<Tensor>>,
        place: &Place<'_>,
    ) -> Result<Vec<Option<Tensor>>> {
        if microbatch != self.next {
            let gradients = self.input(microbatch, seeds)?;
            self.weight(microbatch, place)?;
            return Ok(gradients);
        }
        let Some(live) = self.live.remove(&microbatch) else {
            return Ok(Vec::new()); // the proof says that the forward was done
        };
        let roots = live.roots(seeds);
        let mut gradients = match roots.is_empty() {
            true => self.take_gradients(),
            false => live.tape.sweep(Backward {
                roots: &roots,
                into: std::mem::take(&mut self.gradients),
                claims: claims(&[&self.claim]),
                ..Backward::default()
            })?,
        };
        drop(roots);
        let inputs = self.done(live, &mut gradients)?;
        self.gradients = gradients;
        self.next += 1;
        self.weight_in_turn(place)?;
        Ok(inputs)
    }

    /// Gives the tape of a microbatch back, and takes the gradients of its inputs out.
    fn done(&mut self, live: Live, gradients: &mut Gradients) -> Result<Vec<Option<Tensor>>> {
        let inputs = live.inputs.iter().map(|input| {
            if !input.requires_grad() {
                return Ok(None);
            }
            // What the loss does not depend on has a gradient all the same, since the rank before waits for one.
            Ok(Some(match gradients.take_wrt(input) {
                Some(gradient) => gradient.contiguous()?,
                None => Tensor::zeros(input.shape(), input.dtype(), input.device())?,
            }))
        });
        let inputs = inputs.collect::<Result<Vec<_>>>()?;
        live.tape.clear();
        self.tapes.push(live.tape);
        Ok(inputs)
    }
}

fn claims<'a>(held: &'a [&'a Claim]) -> Claims<'a> {
    Claims { held, beside: &[] }
}

impl Live {
    /// Where the backward pass starts: at the loss, and at every output for which a gradient has come.
    fn roots(&self, seeds: Vec<Option<Tensor>>) -> Vec<(&Var, Option<Tensor>)> {
        let outputs = self.outputs.iter().zip(seeds);
        let outputs = outputs.filter(|(output, seed)| seed.is_some() && output.requires_grad());
        let loss = self.loss.iter().map(|loss| (loss, None));
        loss.chain(outputs).collect()
    }
}

/// What a forward pass gives.
pub(super) struct Outcome {
    pub(super) outputs: Vec<Arrival>,
    /// The sum of the losses, and its weight.
    pub(super) loss: Option<(Tensor, f64)>,
}
