//! [`PipelineConfig`]: how a pipeline runs its plan.

use super::tied::Tie;
use crate::ReduceConfig;
use phalanx_comm::ProcessGroup;
use std::fmt::Write;
use std::sync::Arc;

/// Who gets the loss of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LossOn {
    /// Nobody: on a card nothing is read.
    Nowhere,
    /// The ranks that have the last stage.
    LastStage,
    /// Every rank.
    #[default]
    Everywhere,
}

/// An edge `(from, to)` between two stages, and which outputs of the first it carries.
pub type EdgeOutputs = ((usize, usize), Vec<usize>);

/// How a [`Pipeline`](super::Pipeline) runs its plan. All ranks must use the same configuration, and
/// [`Pipeline::new`](super::Pipeline::new) compares it.
#[derive(Clone, Default)]
pub struct PipelineConfig {
    /// The ranks that have the same stages of other replicas, over which gradients are averaged: the data axis of a mesh.
    /// Default: `None`, there is one replica.
    pub data: Option<Arc<dyn ProcessGroup>>,
    /// How gradients are averaged over `data`.
    pub reduce: ReduceConfig,
    /// Who gets the loss. Default: every rank.
    pub loss: LossOn,
    /// The gradients are scaled so that the norm of the whole model's gradient is at most so much (Pascanu et al. 2013;
    /// PyTorch: `clip_grad_norm_`). Default: `None`.
    pub max_norm: Option<f64>,
    /// Which outputs of stage `from` travel to stage `to`, as `((from, to), outputs)`. Default: every edge carries all.
    pub edges: Vec<EdgeOutputs>,
    /// Weights that two stages share: see [`Tie`]. Default: none.
    pub tied: Vec<Tie>,
    /// Whether the shapes of what stages give may follow from values and not only from the shapes of the batch: then
    /// they travel ahead of every tensor. Default: false, they travel where the batch has new shapes.
    pub dynamic_shapes: bool,
    /// Record when each action began and ended: see [`Pipeline::spans`](super::Pipeline::spans). Default: false.
    pub trace: bool,
}

impl PipelineConfig {
    /// What ranks must agree on, one line each.
    pub(super) fn describe(&self) -> String {
        let PipelineConfig {
            data,
            reduce,
            loss,
            max_norm,
            edges: _, // described by what they carry
            tied,
            dynamic_shapes,
            trace: _, // changes nothing between ranks
        } = self;
        let mut text = String::new();
        let mut line = |name: &str, value: &dyn std::fmt::Display| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "configuration {name}: {value}");
        };
        line("replicas", &data.as_ref().map_or(1, |data| data.size()));
        line("loss", &format_args!("{loss:?}"));
        line("max_norm", &format_args!("{max_norm:?}"));
        for [(a, first), (b, second)] in tied {
            line(
                "tied",
                &format_args!("`{first}` of stage {a} and `{second}` of stage {b}"),
            );
        }
        line("dynamic_shapes", dynamic_shapes);
        match data {
            Some(data) => text + &reduce.describe(&**data),
            None => text,
        }
    }
}
