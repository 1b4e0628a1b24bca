//! [`Tied`]: weights that two stages share, such as those of an embedding and of the layer that ends a language model.
//!
//! Each stage has a copy. They begin with the values of the first, and every step gives both the sum of their gradients, so
//! that equal optimizers keep them equal. The sum is made where the plan says so, by `REDUCE_TIED`.

use super::stage::Stage;
use crate::pipeline::{Action, Kind, Schedule};
use crate::{Error, Result};
use phalanx_autograd::{Gradients, Param, ParamId};
use phalanx_comm::{Message, ProcessGroup, Work};
use phalanx_tensor::Tensor;

/// Two parameters that are one: `(stage, name)` of each, by the name that the parameter has in the stage.
pub type Tie = [(usize, String); 2];

/// One end of a tie.
struct End {
    stage: usize,
    /// The rank that has the stage.
    rank: usize,
    /// The parameter, where it is on this rank.
    param: Option<Param>,
}

/// All ties of a model.
pub(super) struct Tied {
    ties: Vec<[End; 2]>,
}

/// The tag of a tie's messages, which no transfer of a step has.
fn tag(tie: usize) -> u32 {
    u32::MAX - 16 - tie as u32
}

/// The plan with the sums that these ties want, behind all else where it has none.
///
/// # Errors
/// [`Error::InvalidUse`] for a tie of a stage that is not there, and for a plan that has sums, but not those of the ties.
pub(super) fn planned(ties: &[Tie], schedule: Schedule) -> Result<Schedule> {
    let wrong = |reason: String| Error::InvalidUse {
        op: "Pipeline::new",
        reason,
    };
    let pair = |a: usize, b: usize| (a.min(b), a.max(b));
    let mut pairs = Vec::new();
    for [(a, first), (b, second)] in ties {
        for (stage, name) in [(a, first), (b, second)] {
            if *stage >= schedule.stages() {
                return Err(wrong(format!(
                    "`{name}` is tied in stage {stage}, which is none"
                )));
            }
        }
        if !pairs.contains(&pair(*a, *b)) {
            pairs.push(pair(*a, *b));
        }
    }
    let actions = schedule.ranks().iter().flatten();
    let planned = actions.filter(|action| action.kind() == Kind::ReduceTied);
    let planned: Vec<_> = planned.map(|a| pair(a.stage(), a.peer())).collect();
    if planned.is_empty() {
        return Ok(schedule.with_tied(&pairs));
    }
    if let Some((a, b)) = pairs.iter().find(|pair| !planned.contains(pair)) {
        return Err(wrong(format!(
            "stages {a} and {b} share weights, whose gradients the plan does not add up: it has no {a}REDUCE_TIED>{b}"
        )));
    }
    if let Some((a, b)) = planned.iter().find(|pair| !pairs.contains(pair)) {
        return Err(wrong(format!(
            "the plan has {a}REDUCE_TIED>{b}, and stages {a} and {b} share no weights"
        )));
    }
    Ok(schedule)
}

impl Tied {
    /// # Errors
    /// [`Error::InvalidUse`] for a stage or a parameter of this rank that is not there, and for a parameter in two ties.
    pub(super) fn new(ties: &[Tie], schedule: &Schedule, stages: &[Stage]) -> Result<Tied> {
        let wrong = |reason: String| Error::InvalidUse {
            op: "Pipeline::new",
            reason,
        };
        // A stage that was made by hand is known by its number, which its names begin with or not.
        let find = |stage: &Stage, name: &str| {
            let (all, numbered) = (stage.trainable(), format!("{}.{name}", stage.number));
            let named = |wanted: &str| all.iter().find(|(n, _)| n == wanted);
            let found = named(name).or_else(|| named(&numbered));
            found.map(|(_, param)| param.clone()).ok_or_else(|| {
                wrong(format!(
                    "`{name}` is tied, and no trainable parameter of stage {}",
                    stage.number
                ))
            })
        };
        let mut seen: Vec<ParamId> = Vec::new();
        let mut out = Vec::new();
        for tie in ties {
            let mut end = |(stage, name): &(usize, String)| -> Result<End> {
                let here = stages.iter().find(|s| s.number == *stage);
                let param = here.map(|stage| find(stage, name)).transpose()?;
                if let Some(param) = &param {
                    if seen.contains(&param.id()) {
                        return Err(wrong(format!("`{name}` of stage {stage} is tied twice")));
                    }
                    seen.push(param.id());
                }
                Ok(End {
                    stage: *stage,
                    rank: schedule.rank_of(*stage),
                    param,
                })
            };
            out.push([end(&tie[0])?, end(&tie[1])?]);
        }
        Ok(Tied { ties: out })
    }

    /// Gives the second of each tie the values of the first. Every rank calls it.
    ///
    /// # Errors
    /// Errors of the communication, such as shapes that differ.
    pub(super) fn start(&self, group: &dyn ProcessGroup) -> Result<()> {
        for (at, [first, second]) in self.ties.iter().enumerate() {
            match (&first.param, &second.param) {
                (Some(from), Some(to)) => to.set(from.value()?)?,
                (Some(from), None) => group.send(from.value()?, second.rank, tag(at))?.wait()?,
                (None, Some(to)) => {
                    let value = group.recv(to.shape().clone(), to.dtype(), first.rank, tag(at))?;
                    to.set(value.wait()?)?;
                }
                (None, None) => {}
            }
        }
        Ok(())
    }

    /// Whether a parameter is the second of a tie: it counts as one with the first.
    pub(super) fn is_second(&self, id: ParamId) -> bool {
        let mut seconds = self
            .ties
            .iter()
            .filter_map(|[_, second]| second.param.as_ref());
        seconds.any(|param| param.id() == id)
    }

    /// Begins to add up the gradients of what the two stages of a `REDUCE_TIED` share. Those of both are there, as far as the
    /// stages are on this rank.
    ///
    /// # Errors
    /// Errors of the communication.
    pub(super) fn begin(
        &self,
        group: &dyn ProcessGroup,
        by_stage: &mut [(usize, Gradients)],
        action: Action,
    ) -> Result<Vec<Sum>> {
        let mut sums = Vec::new();
        for (at, [first, second]) in self.ties.iter().enumerate() {
            let (own, other) = match (first.stage, second.stage) {
                ends if ends == (action.stage(), action.peer()) => (first, second),
                ends if ends == (action.peer(), action.stage()) => (second, first),
                _ => continue,
            };
            let Some(mine) = &own.param else { continue };
            match &other.param {
                None => {
                    let gradient = take(by_stage, own.stage, mine)?.contiguous()?;
                    sums.push(Sum {
                        action,
                        param: mine.clone(),
                        theirs: exchange(group, &gradient, other.rank, tag(at))?,
                        mine: gradient,
                    });
                }
                Some(theirs) => {
                    let sum = take(by_stage, other.stage, theirs)?;
                    let sum = sum.add(&take(by_stage, own.stage, mine)?)?;
                    put(by_stage, own.stage, mine, sum.clone());
                    put(by_stage, other.stage, theirs, sum);
                }
            }
        }
        Ok(sums)
    }
}

/// A sum under way with another rank.
pub(super) struct Sum {
    /// The action that began it.
    pub(super) action: Action,
    param: Param,
    mine: Tensor,
    theirs: Work<Vec<Tensor>>,
}

impl Sum {
    /// Lends the exchange a hand.
    pub(super) fn poll(&mut self) -> Result<()> {
        self.theirs.poll()?;
        Ok(())
    }

    /// Puts the sum in the place of this rank's gradient. A sum of two is the same in both orders, so both ends get the
    /// same.
    pub(super) fn finish(self, by_stage: &mut [(usize, Gradients)]) -> Result<()> {
        for theirs in self.theirs.wait()? {
            put(
                by_stage,
                self.action.stage(),
                &self.param,
                self.mine.add(&theirs)?,
            );
        }
        Ok(())
    }
}

/// Sends a gradient to another rank, and gets that rank's.
fn exchange(
    group: &dyn ProcessGroup,
    gradient: &Tensor,
    other: usize,
    tag: u32,
) -> Result<Work<Vec<Tensor>>> {
    Ok(group.batch(vec![
        Message::Send {
            tensor: gradient.clone(),
            destination: other,
            tag,
        },
        Message::Recv {
            shape: gradient.shape().clone(),
            dtype: gradient.dtype(),
            source: other,
            tag,
        },
    ])?)
}

/// The gradient of a parameter; zeros where it has none.
fn take(by_stage: &mut [(usize, Gradients)], stage: usize, param: &Param) -> Result<Tensor> {
    let found = by_stage.iter_mut().find(|(s, _)| *s == stage);
    match found.and_then(|(_, gradients)| gradients.take(param)) {
        Some(gradient) => Ok(gradient),
        None => Ok(Tensor::zeros(
            param.shape(),
            param.grad_dtype(),
            param.device(),
        )?),
    }
}

fn put(by_stage: &mut [(usize, Gradients)], stage: usize, param: &Param, gradient: Tensor) {
    if let Some((_, gradients)) = by_stage.iter_mut().find(|(s, _)| *s == stage) {
        gradients.insert(param, gradient);
    }
}
