//! [`Tied`]: weights that two stages share, such as those of an embedding and of the layer that ends a language model.
//!
//! Each stage has a copy. They begin with the values of the first, and every step gives both the sum of their gradients, so
//! that equal optimizers keep them equal. The sum is made when both stages have reduced their gradients, in the order in
//! which the ties are given, on all ranks: no rank waits in a circle.

use super::stage::Stage;
use crate::pipeline::Schedule;
use crate::{Error, Result};
use phalanx_autograd::{Gradients, Param, ParamId};
use phalanx_comm::{Message, ProcessGroup};
use phalanx_tensor::{DType, Shape, Tensor};

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

impl Tied {
    /// # Errors
    /// [`Error::InvalidUse`] for a stage or a parameter of this rank that is not there, and for a parameter in two ties.
    pub(super) fn new(ties: &[Tie], schedule: &Schedule, stages: &[Stage]) -> Result<Tied> {
        let wrong = |reason: String| Error::InvalidUse {
            op: "Pipeline::new",
            reason,
        };
        let mut seen: Vec<&(usize, String)> = Vec::new();
        let mut out = Vec::new();
        for tie in ties {
            for end in tie {
                if seen.contains(&end) {
                    return Err(wrong(format!(
                        "`{}` of stage {} is tied twice",
                        end.1, end.0
                    )));
                }
                seen.push(end);
            }
            let end = |(stage, name): &(usize, String)| -> Result<End> {
                if *stage >= schedule.stages() {
                    return Err(wrong(format!(
                        "`{name}` is tied in stage {stage}, which is none"
                    )));
                }
                let here = stages.iter().find(|s| s.number == *stage);
                let param = here.map(|stage| {
                    let all = stage.trainable().into_iter();
                    // A stage that was made by hand is known by its number.
                    let numbered = format!("{}.{name}", stage.number);
                    let mut found = all
                        .filter(|(n, _)| n == name || *n == numbered)
                        .map(|(_, p)| p);
                    found.next().ok_or_else(|| {
                        wrong(format!(
                            "`{name}` is tied, and no trainable parameter of stage {}",
                            stage.number
                        ))
                    })
                });
                Ok(End {
                    stage: *stage,
                    rank: schedule.rank_of(*stage),
                    param: param.transpose()?,
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

    /// Gives both ends of each tie the sum of their gradients. Every rank calls it.
    ///
    /// # Errors
    /// Errors of the communication.
    pub(super) fn sum(
        &self,
        group: &dyn ProcessGroup,
        by_stage: &mut [(usize, Gradients)],
    ) -> Result<()> {
        for (at, [first, second]) in self.ties.iter().enumerate() {
            match (&first.param, &second.param) {
                (Some(a), Some(b)) => {
                    let mine = take(by_stage, first.stage, a)?;
                    let sum = take(by_stage, second.stage, b)?.add(&mine)?;
                    put(by_stage, first.stage, a, sum.clone());
                    put(by_stage, second.stage, b, sum);
                }
                (Some(mine), None) => {
                    exchange(group, by_stage, (first, mine), second.rank, tag(at))?
                }
                (None, Some(mine)) => {
                    exchange(group, by_stage, (second, mine), first.rank, tag(at))?
                }
                (None, None) => {}
            }
        }
        Ok(())
    }
}

/// Adds the gradient that another rank has for its end; that one does the same. A sum of two is the same in both orders.
fn exchange(
    group: &dyn ProcessGroup,
    by_stage: &mut [(usize, Gradients)],
    (end, param): (&End, &Param),
    other: usize,
    tag: u32,
) -> Result<()> {
    let mine = take(by_stage, end.stage, param)?.contiguous()?;
    let (shape, dtype): (Shape, DType) = (mine.shape().clone(), mine.dtype());
    let messages = vec![
        Message::Send {
            tensor: mine.clone(),
            destination: other,
            tag,
        },
        Message::Recv {
            shape,
            dtype,
            source: other,
            tag,
        },
    ];
    for theirs in group.batch(messages)?.wait()? {
        put(by_stage, end.stage, param, mine.add(&theirs)?);
    }
    Ok(())
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
