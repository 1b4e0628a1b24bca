//! What travels along an edge: which of a stage's outputs, their shapes, and whether their gradients come back.

use super::config::EdgeOutputs;
use super::stage::Arrival;
use crate::pipeline::{PlanError, Schedule};
use crate::{Error, Result, talk};
use phalanx_comm::ProcessGroup;
use phalanx_tensor::{DType, Shape};
use std::collections::HashMap;

/// One tensor of an edge.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Item {
    pub(super) shape: Shape,
    pub(super) dtype: DType,
    /// Whether its gradient comes back.
    pub(super) wants_grad: bool,
}

impl Item {
    pub(super) fn of(arrival: &Arrival) -> Item {
        Item {
            shape: arrival.value.shape().clone(),
            dtype: arrival.value.dtype(),
            wants_grad: arrival.wants_grad,
        }
    }
}

/// By edge and microbatch.
pub(super) type Sizes = HashMap<(usize, usize), Vec<Item>>;

/// Which outputs of a stage travel along each of its edges.
pub(super) struct Carried(Vec<Option<Vec<usize>>>);

impl Carried {
    /// # Errors
    /// An edge that the plan does not have, or that is given twice.
    pub(super) fn new(schedule: &Schedule, given: &[EdgeOutputs]) -> Result<Carried> {
        let graph = schedule.graph();
        let mut carried = vec![None; graph.edge_count()];
        for ((from, to), outputs) in given {
            let wrong = |fault| {
                let edge = |s: usize| u16::try_from(s).unwrap_or(u16::MAX);
                Error::Plan(PlanError::Edge {
                    from: edge(*from),
                    to: edge(*to),
                    fault,
                })
            };
            let edge = graph
                .edge(*from, *to)
                .ok_or_else(|| wrong("is none of the plan's"))?;
            if carried[edge].replace(outputs.clone()).is_some() {
                return Err(wrong("is given twice"));
            }
        }
        Ok(Carried(carried))
    }

    /// Those of `count` outputs that travel along an edge.
    pub(super) fn of(&self, edge: usize, count: usize) -> Vec<usize> {
        self.0[edge].clone().unwrap_or_else(|| (0..count).collect())
    }

    pub(super) fn describe(&self) -> String {
        let edges = self.0.iter().enumerate();
        let lines =
            edges.filter_map(|(e, o)| Some(format!("edge {e} carries {:?}\n", o.as_ref()?)));
        lines.collect()
    }
}

/// Tells the receiver of an edge's tensors what will come: small talk.
pub(super) fn tell(group: &dyn ProcessGroup, to: usize, tag: u32, items: &[Item]) -> Result<()> {
    let mut words = vec![items.len() as i64];
    for item in items {
        let dtype = DType::ALL
            .iter()
            .position(|d| *d == item.dtype)
            .unwrap_or(0);
        words.extend([
            dtype as i64,
            i64::from(item.wants_grad),
            item.shape.len() as i64,
        ]);
        words.extend(item.shape.iter().map(|&n| n as i64));
    }
    // The receiver takes it in this step: dropped, it is finished by the group.
    talk::tell(group, to, tag, words).map(drop)
}

/// Hears what will come along an edge.
pub(super) fn hear(group: &dyn ProcessGroup, from: usize, tag: u32) -> Result<Vec<Item>> {
    let words = talk::hear::<i64>(group, from, tag)?;
    let mut words = words.into_iter().map(|w| w as usize);
    let mut read = || {
        let count = words.next()?;
        let mut items = Vec::new();
        for _ in 0..count {
            let dtype = *DType::ALL.get(words.next()?)?;
            let wants_grad = words.next()? != 0;
            let axes = words.next()?;
            let dims: Vec<usize> = words.by_ref().take(axes).collect();
            if dims.len() != axes {
                return None;
            }
            items.push(Item {
                shape: Shape::from(dims),
                dtype,
                wants_grad,
            });
        }
        Some(items)
    };
    read().ok_or_else(|| Error::InvalidUse {
        op: "Pipeline::step",
        reason: format!("rank {from} of the pipeline sent sizes that cannot be read"),
    })
}
