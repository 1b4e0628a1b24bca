//! The end of a pass: the loss of all microbatches and replicas, and gradients of its mean.

use super::Step;
use super::config::{LossOn, PipelineConfig};
use super::pass::{Passed, Purpose};
use super::place::Place;
use super::stage::Stage;
use super::tied::Tied;
use crate::pipeline::{Action, Kind, Schedule};
use crate::{Error, Result, talk};
use phalanx_autograd::{Gradients, Param};
use phalanx_comm::ProcessGroup;
use phalanx_tensor::ops::optim::{clip_by_norm, square_sum};
use phalanx_tensor::{DType, Tensor};

/// Sums over microbatches, where the last stage is.
#[derive(Default)]
pub(super) struct Sums {
    loss: Option<Tensor>,
    weight: f64,
}

impl Sums {
    /// Adds the losses of a pass, in the order of the microbatches.
    fn add(&mut self, losses: Vec<Option<(Tensor, f64)>>) -> Result<()> {
        for (loss, weight) in losses.into_iter().flatten() {
            if loss.numel() != 1 || !loss.dtype().is_float() {
                return Err(Error::InvalidUse {
                    op: "Pipeline",
                    reason: format!(
                        "the loss gave {loss:?}, where it must give the sum as one float"
                    ),
                });
            }
            let loss = loss.reshape(())?.cast(DType::F64)?;
            self.loss = Some(match self.loss.take() {
                Some(sum) => sum.add_into(&loss)?,
                None => loss,
            });
            self.weight += weight;
        }
        Ok(())
    }
}

/// Who takes part.
pub(super) struct Ranks<'a> {
    pub(super) group: &'a dyn ProcessGroup,
    pub(super) schedule: &'a Schedule,
    pub(super) config: &'a PipelineConfig,
    pub(super) tied: &'a Tied,
}

impl Ranks<'_> {
    /// The rank that has the last stage: [`prepare`](super::prepare) has seen that there is one.
    fn last(&self) -> usize {
        let graph = self.schedule.graph();
        let last = (0..graph.stages()).find(|&s| graph.successors(s).is_empty());
        last.map_or(0, |stage| self.schedule.rank_of(stage))
    }

    /// The sum of the weights and the mean loss over all microbatches and replicas, on every rank that wants it.
    fn mean(&self, sums: Sums) -> Result<(f64, Option<f64>)> {
        let (last, here) = (self.last(), self.group.rank());
        let read = here == last && self.config.loss != LossOn::Nowhere;
        let loss = sums.loss.filter(|_| read).map(|loss| loss.item::<f64>());
        let mut mine = vec![sums.weight, loss.transpose()?.unwrap_or(f64::NAN)];
        if let Some(data) = self.config.data.as_deref().filter(|_| here == last) {
            let all = talk::gather_numbers(mine, data)?;
            let sum = |at: usize| all.chunks_exact(2).map(|replica| replica[at]).sum::<f64>();
            mine = vec![sum(0), sum(1)];
        }
        let whole = talk::floats_of(last, mine, self.group)?;
        let [weight, loss] = [whole[0], whole[1]];
        if !(weight.is_finite() && weight > 0.0) {
            return Err(Error::InvalidWeight { rank: None, weight });
        }
        let wanted = match self.config.loss {
            LossOn::Nowhere => false,
            LossOn::LastStage => here == last,
            LossOn::Everywhere => true,
        };
        Ok((weight, wanted.then_some(loss / weight)))
    }

    /// Scales the gradients so that those of the whole model have the norm `max_norm` at most; gives the norm before.
    /// `by_stage` are this rank's, in ascending order of the stages.
    ///
    /// The squares of every parameter's gradient are summed where it is, and the sums added in the order in which one
    /// process would make the gradients: the last stage first.
    fn clip(&self, by_stage: &mut [(usize, Gradients)], max_norm: f64) -> Result<f64> {
        let mut mine = Vec::new();
        // Weights that are tied count once.
        let counts_for = |param: &Param| !self.tied.is_second(param.id());
        for (_, gradients) in by_stage.iter() {
            for (_, gradient) in gradients.iter().filter(|(param, _)| counts_for(param)) {
                mine.push(square_sum([gradient])?.item::<f64>()?);
            }
        }
        let counts: Vec<i64> = (0..self.schedule.stages())
            .map(|stage| {
                let found = by_stage.iter().find(|(s, _)| *s == stage);
                found.map_or(0, |(_, gradients)| {
                    gradients.iter().filter(|(p, _)| counts_for(p)).count() as i64
                })
            })
            .collect();
        let counts = talk::gather_numbers(counts, self.group)?;
        let stages = self.schedule.stages();
        let count = |rank: usize, stage: usize| counts[rank * stages + stage] as usize;
        let total = |rank: usize| (0..stages).map(|stage| count(rank, stage)).sum::<usize>();
        let longest = (0..self.group.size()).map(total).max().unwrap_or(0);
        mine.resize(longest, 0.0);
        let squares = talk::gather_numbers(mine, self.group)?;
        let mut sum = 0.0;
        for stage in (0..stages).rev() {
            let rank = self.schedule.rank_of(stage);
            let before: usize = (0..stage).map(|s| count(rank, s)).sum();
            let of_stage = &squares[rank * longest + before..][..count(rank, stage)];
            of_stage.iter().for_each(|square| sum += square);
        }
        let norm = f64::sqrt(sum);
        for (_, gradients) in by_stage {
            clip_by_norm(gradients.iter_mut().map(|(_, grad)| grad), norm, max_norm)?;
        }
        Ok(norm)
    }
}

/// What a pass gives on this rank, and the outputs of the last stage.
pub(super) fn finish(
    ranks: &Ranks<'_>,
    purpose: Purpose,
    passed: Passed<'_>,
    stages: &mut [Stage],
    sums: &mut Sums,
    place: &Place<'_>,
) -> Result<(Step, Vec<Tensor>)> {
    let mut step = Step::default();
    match purpose {
        Purpose::Accumulate => sums.add(passed.losses)?,
        Purpose::Train => {
            sums.add(passed.losses)?;
            let mut by_stage = gradients(stages, passed.gradients, passed.reductions, place)?;
            for sum in passed.sums {
                place.enter(sum.action);
                sum.finish(&mut by_stage)?;
            }
            place.enter(None);
            (step.weight, step.loss) = ranks.mean(std::mem::take(sums))?;
            for (_, gradients) in &mut by_stage {
                gradients.scale(1.0 / step.weight)?;
            }
            if let Some(max_norm) = ranks.config.max_norm {
                step.norm = Some(ranks.clip(&mut by_stage, max_norm)?);
            }
            for (_, gradients) in by_stage {
                step.gradients.accumulate(gradients)?;
            }
        }
        Purpose::Evaluate => {
            let mut sums = Sums::default();
            sums.add(passed.losses)?;
            (step.weight, step.loss) = ranks.mean(sums)?;
        }
        Purpose::Infer => return Ok((step, joined(&passed.outputs)?)),
    }
    Ok((step, Vec::new()))
}

/// The gradients of this rank's stages: sums over the microbatches and the replicas. Some are `reduced` already.
fn gradients(
    stages: &mut [Stage],
    mut reduced: Vec<(usize, Gradients)>,
    reductions: Vec<(usize, crate::Reduction<'_>)>,
    place: &Place<'_>,
) -> Result<Vec<(usize, Gradients)>> {
    for (stage, reduction) in reductions {
        place.enter(Action::whole_stage(Kind::ReduceGrad, stage as u16));
        reduced.push((stage, reduction.finish()?));
    }
    let all = stages.iter_mut().map(|stage| {
        let at = reduced.iter().position(|(s, _)| *s == stage.number);
        match at {
            Some(at) => reduced.swap_remove(at),
            None => (stage.number, stage.take_gradients()),
        }
    });
    Ok(all.collect())
}

/// The outputs of all microbatches as those of one batch.
fn joined(outputs: &[Vec<Tensor>]) -> Result<Vec<Tensor>> {
    let count = outputs.iter().map(Vec::len).min().unwrap_or(0);
    let join = |at: usize| {
        let parts: Vec<&Tensor> = outputs.iter().map(|outputs| &outputs[at]).collect();
        Ok(Tensor::cat(&parts, 0)?)
    };
    (0..count).map(join).collect()
}
