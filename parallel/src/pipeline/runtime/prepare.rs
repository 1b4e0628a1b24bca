//! What is checked before a pipeline is made: the plan, this rank's stages, and that all ranks have the same.

use super::config::PipelineConfig;
use super::edges::Carried;
use super::stage::Stage;
use super::tied::{Tied, planned};
use crate::pipeline::{Action, Kind, Lowering, PlanError, Rules, Schedule, lower, validate};
use crate::{Error, Result, talk};
use phalanx_autograd::nn::Module;
use phalanx_comm::ProcessGroup;

/// Checks a plan and this rank's stages.
pub(super) fn prepare(
    group: &dyn ProcessGroup,
    plan: &Schedule,
    stages: Vec<(usize, Box<dyn Module>)>,
    config: &PipelineConfig,
) -> Result<(Schedule, Vec<Stage>, Carried, Tied)> {
    let invalid = |reason: String| Error::InvalidUse {
        op: "Pipeline::new",
        reason,
    };
    let schedule = match plan.has_transfers() || plan.has_collectives() {
        true => plan.clone(),
        false => lower(plan, &Lowering::default())?,
    };
    let schedule = planned(&config.tied, schedule)?;
    validate(&schedule, &Rules::default()).map_err(PlanError::from)?;
    if schedule.rank_count() != group.size() {
        return Err(invalid(format!(
            "the plan is for {} ranks, and the group has {}",
            schedule.rank_count(),
            group.size()
        )));
    }
    let parts = |(a, b): (usize, usize)| schedule.rank_of(a) != schedule.rank_of(b);
    if !schedule.has_transfers() && schedule.graph().edges().any(parts) {
        return Err(invalid(
            "the plan has collectives and no transfers; it must have both, or none of them".into(),
        ));
    }
    let replicas = config.data.as_ref().map_or(1, |data| data.size());
    let is_reduced = |stage: &usize| {
        let reduce = Action::whole_stage(Kind::ReduceGrad, *stage as u16);
        schedule.ranks().iter().flatten().any(|a| *a == reduce)
    };
    if let Some(stage) = (0..schedule.stages()).find(|stage| replicas > 1 && !is_reduced(stage)) {
        return Err(invalid(format!(
            "the plan has no {stage}REDUCE_GRAD, and there are {replicas} replicas, which would drift apart"
        )));
    }
    let kinds = [Kind::Unshard, Kind::Reshard];
    if let Some(action) = schedule
        .ranks()
        .iter()
        .flatten()
        .find(|a| kinds.contains(&a.kind()))
    {
        return Err(invalid(format!(
            "the plan has {action}, and stages are not sharded here"
        )));
    }
    let graph = schedule.graph();
    let last: Vec<usize> = (0..graph.stages())
        .filter(|&s| graph.successors(s).is_empty())
        .collect();
    if last.len() != 1 {
        return Err(invalid(format!(
            "the stages {last:?} feed no other; there must be one last stage, whose outputs the loss is of"
        )));
    }
    let mut stages = stages;
    stages.sort_by_key(|(number, _)| *number);
    let given: Vec<usize> = stages.iter().map(|(number, _)| *number).collect();
    let own: Vec<usize> = schedule.stages_of(group.rank()).collect();
    if given != own {
        return Err(invalid(format!(
            "the plan puts the stages {own:?} on rank {}, which was given {given:?}",
            talk::world_rank(group)
        )));
    }
    let carried = Carried::new(&schedule, &config.edges)?;
    let stages = stages
        .into_iter()
        .map(|(number, module)| Stage::new(number, module));
    let stages = stages.collect::<Result<Vec<_>>>()?;
    let tied = Tied::new(&config.tied, &schedule, &stages)?;
    Ok((schedule, stages, carried, tied))
}

/// What all ranks must have alike, one line each.
pub(super) fn describe(schedule: &Schedule, carried: &Carried, config: &PipelineConfig) -> String {
    let microbatches = schedule.microbatches();
    format!(
        "microbatches: {microbatches}\n{}{}{schedule}",
        config.describe(),
        carried.describe()
    )
}
