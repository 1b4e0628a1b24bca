//! Batches of other sizes, stages whose shapes follow from values, and batches that are refused.

use crate::models::{batch, loss, parts};
use crate::ranks::on_ranks;
use crate::reference::{Task, alone, expect, values};
use phalanx_autograd::nn::{Module, Visitor};
use phalanx_autograd::{Tape, Var};
use phalanx_parallel::Error;
use phalanx_parallel::pipeline::{Named, Pipeline, PipelineConfig};
use phalanx_tensor::{DType, Tensor};
use std::slice::from_ref;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

#[test]
fn a_batch_of_another_size_is_told_once() {
    let plan = Named::OneFOneB.schedule(2, 1, 4).unwrap();
    on_ranks(2, |group| {
        let device = group.device();
        let number = group.rank();
        let stages = vec![(number, parts(plan.graph(), number, DType::F64, device))];
        let kept = group.clone();
        let calls = || kept.recent().last().map_or(0, |record| record.number + 1);
        let mut pipeline = Pipeline::new(group, &plan, stages, loss, PipelineConfig::default())?;
        let mut losses = Vec::new();
        let mut messages = Vec::new();
        for rows in [8, 11, 8, 11, 8] {
            let (x, y) = batch(rows, 0, DType::F64, device)?;
            let before = calls();
            let step = pipeline.step(&[x], &[y])?;
            messages.push(calls() - before);
            losses.push(step.loss);
        }
        assert_eq!(losses[0], losses[2]);
        assert_eq!(losses[1], losses[3]);
        assert_ne!(losses[0], losses[1]);
        // The sizes travel ahead in the first steps alone.
        assert!(messages[0] > messages[4], "{messages:?}");
        assert_eq!(messages[0], messages[1], "{messages:?}");
        assert_eq!(messages[2..], [messages[4]; 3], "{messages:?}");
        Ok(())
    });
}

/// Gives as many columns as it has been called, or one more each time.
struct Growing(AtomicUsize);

impl Module for Growing {
    fn forward(&self, _: &Tape, x: &Var) -> phalanx_autograd::Result<Var> {
        let columns = 1 + self.0.fetch_add(1, Relaxed) % 3;
        x.narrow(1, 0, columns)
    }
    fn visit(&self, _: &mut Visitor<'_>) {}
}

/// The sum of the squares.
struct Last;

impl Module for Last {
    fn forward(&self, _: &Tape, x: &Var) -> phalanx_autograd::Result<Var> {
        x.square()?.sum_all()
    }
    fn visit(&self, _: &mut Visitor<'_>) {}
}

fn grow(dynamic_shapes: bool) -> Vec<String> {
    let plan = Named::Gpipe.schedule(2, 1, 4).unwrap();
    let ends = Mutex::new(Vec::new());
    let of_outputs = |_: &Tape, outputs: &[Var], _: &[Tensor]| Ok((outputs[0].clone(), 1.0));
    on_ranks(2, |group| {
        let device = group.device();
        let number = group.rank();
        let stage: Box<dyn Module> = match number {
            0 => Box::new(Growing(AtomicUsize::new(0))),
            _ => Box::new(Last),
        };
        let config = PipelineConfig {
            dynamic_shapes,
            ..PipelineConfig::default()
        };
        let mut pipeline = Pipeline::new(group, &plan, vec![(number, stage)], of_outputs, config)?;
        let (x, _) = batch(8, 0, DType::F64, device)?;
        let done = (0..3).try_for_each(|_| pipeline.evaluate(from_ref(&x), &[]).map(drop));
        let words = done.map_or_else(|error| error.to_string(), |()| "well".into());
        ends.lock().unwrap().push(words);
        Ok(())
    });
    ends.into_inner().unwrap()
}

#[test]
fn shapes_that_follow_from_values_travel_ahead_or_are_refused() {
    assert_eq!(grow(true), ["well", "well"]);
    let ends = grow(false);
    assert!(
        ends.iter()
            .all(|end| end.contains("set PipelineConfig::dynamic_shapes")),
        "{ends:?}"
    );
    assert!(
        ends.iter().all(|end| end.contains("in 0F0 on rank 0")),
        "{ends:?}"
    );
}

#[test]
fn a_batch_that_one_rank_refuses_is_taken_by_none() {
    let plan = Named::OneFOneB.schedule(2, 1, 4).unwrap();
    on_ranks(2, |group| {
        let device = group.device();
        let number = group.rank();
        let stages = vec![(number, parts(plan.graph(), number, DType::F64, device))];
        let mut pipeline = Pipeline::new(group, &plan, stages, loss, PipelineConfig::default())?;
        let (few, labels) = batch(3, 0, DType::F64, device)?;
        let (x, y) = batch(8, 0, DType::F64, device)?;
        let inputs = if number == 0 { few } else { x.clone() };
        let error = pipeline
            .step(&[inputs], from_ref(&y))
            .map(drop)
            .unwrap_err();
        match number {
            0 => assert!(
                error
                    .to_string()
                    .contains("3 rows, which are fewer than the 4 microbatches"),
                "{error}"
            ),
            _ => assert!(
                matches!(error, Error::BatchRefused { rank: 0, step: 0 }),
                "{error}"
            ),
        }
        drop(labels);
        // Nothing was sent: the next step is a good one.
        pipeline.step(&[x], &[y]).map(drop)
    });
}

#[test]
fn ranks_in_different_passes_are_told() {
    let plan = Named::OneFOneB.schedule(2, 1, 4).unwrap();
    on_ranks(2, |group| {
        let device = group.device();
        let number = group.rank();
        let stages = vec![(number, parts(plan.graph(), number, DType::F64, device))];
        let mut pipeline = Pipeline::new(group, &plan, stages, loss, PipelineConfig::default())?;
        let (x, y) = batch(8, 0, DType::F64, device)?;
        let done = match number {
            0 => pipeline.step(&[x], &[y]).map(drop),
            _ => pipeline.evaluate(&[x], &[y]).map(drop),
        };
        let error = done.unwrap_err().to_string();
        assert!(
            error
                .contains("rank 1 is in `evaluate` of step 0, where rank 0 is in `step` of step 0"),
            "{error}"
        );
        Ok(())
    });
}

/// The gradients of what a stage gives come back once it is trained, though no shape is new.
#[test]
fn a_stage_may_be_thawed_between_steps() {
    let plan = Named::OneFOneB.schedule(2, 1, 4).unwrap();
    on_ranks(2, |group| {
        let device = group.device();
        let number = group.rank();
        let (x, y) = batch(8, 0, DType::F64, device)?;
        let gradients = |frozen: &[bool]| -> phalanx_parallel::Result<Vec<Option<Vec<f64>>>> {
            let stage = parts(plan.graph(), number, DType::F64, device);
            let params = stage.parameters();
            let stages = vec![(number, stage)];
            let config = PipelineConfig::default();
            let mut pipeline = Pipeline::new(group.clone(), &plan, stages, loss, config)?;
            let mut last = Vec::new();
            for &frozen in frozen {
                let first = params.iter().filter(|_| number == 0);
                first.for_each(|param| param.set_requires_grad(!frozen));
                let step = pipeline.step(from_ref(&x), from_ref(&y))?;
                let of = |param| step.gradients.get(param).map(values);
                last = params.iter().map(of).collect();
            }
            Ok(last)
        };
        let trained = gradients(&[false])?;
        assert!(trained.iter().all(Option::is_some));
        for frozen in [&[true, false][..], &[false, true, false]] {
            assert_eq!(gradients(frozen)?, trained, "{frozen:?}");
        }
        Ok(())
    });
}

/// A first stage that is frozen gives outputs without gradient, so none travels back; one in the middle passes it on.
#[test]
fn frozen_stages_pass_on_what_is_asked_of_them() {
    for frozen in 0..3 {
        let plan = Named::ZbH1.schedule(3, 1, 4).unwrap();
        let freeze = move |stage: usize, module: Box<dyn Module>| {
            for param in module.parameters().iter().filter(|_| stage == frozen) {
                param.set_requires_grad(false);
            }
            module
        };
        let make =
            |graph: &_, stage, dtype, device| freeze(stage, parts(graph, stage, dtype, device));
        let task = Task::new(DType::F64, 9);
        let want = alone(plan.graph(), &make, 4, task);
        assert!(want.stages[&frozen][0].iter().all(Vec::is_empty));
        expect(
            &plan,
            &make,
            task,
            &want,
            0.0,
            &format!("stage {frozen} is frozen"),
        );
    }
}
