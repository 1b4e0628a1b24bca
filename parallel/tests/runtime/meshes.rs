//! Replicas of a pipeline: gradients are averaged over the data axis by the actions of the plan.

use crate::models::{CLASSES, INPUTS, batch, loss, parts};
use crate::ranks::{has_ranks, on_ranks};
use crate::reference::{Task, adam, alone, state};
use phalanx_autograd::nn::{Factory, Linear, Module};
use phalanx_autograd::optim::Optimizer;
use phalanx_parallel::pipeline::{Lowering, Named, Pipeline, PipelineConfig, Schedule, lower};
use phalanx_parallel::{Error, Result};
use phalanx_parallel::{Mesh, check_replicas};
use phalanx_tensor::{DType, Device};
use std::slice::from_ref;

/// Trains over a mesh of so many replicas of so many ranks, whose shares of the batch differ, and compares with the whole
/// batch in one process.
fn mesh(replicas: usize, ranks: usize, named: Named) {
    if !has_ranks(replicas * ranks) {
        eprintln!("SKIPPED: a mesh of {replicas} x {ranks}: mpirun has started fewer ranks");
        return;
    }
    let plan = named
        .schedule(ranks, named.default_stages_per_rank(), 4)
        .unwrap();
    let task = Task::new(DType::F64, 4 * replicas + 3);
    let want = alone(plan.graph(), &parts, 1, task);
    on_ranks(replicas * ranks, |group| {
        let device = group.device();
        let mesh = Mesh::new(group, [("data", replicas), ("pipe", ranks)])?;
        let pipe = mesh.group("pipe")?;
        let replica = mesh.coordinate("data")?;
        let config = PipelineConfig {
            data: Some(mesh.group("data")?),
            max_norm: Some(task.max_norm),
            ..PipelineConfig::default()
        };
        let own = plan.stages_of(pipe.rank());
        let stages = own
            .map(|s| (s, parts(plan.graph(), s, DType::F64, device)))
            .collect();
        let mut pipeline = Pipeline::new(pipe, &plan, stages, loss, config)?;
        let mut optimizer = adam(pipeline.parameters());
        let (mut losses, mut norms) = (Vec::new(), Vec::new());
        // The last replica has what is over.
        let start = 4 * replica;
        let len = if replica + 1 == replicas { 7 } else { 4 };
        for step in 0..task.steps {
            let (x, y) = batch(task.rows, step, DType::F64, device)?;
            let (x, y) = (x.narrow(0, start, len)?, y.narrow(0, start, len)?);
            let done = pipeline.step(&[x], &[y])?;
            assert_eq!(done.weight, task.rows as f64);
            optimizer.step(&done.gradients)?;
            losses.extend(done.loss);
            norms.extend(done.norm);
        }
        let close = |a: &[f64], b: &[f64], what: &str| {
            assert_eq!(a.len(), b.len(), "{what}");
            let apart = a
                .iter()
                .zip(b)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f64::max);
            assert!(apart < 1e-12, "{what} on {replicas} x {ranks}: {apart:e}");
        };
        close(&losses, &want.losses, "losses");
        close(&norms, &want.norms, "norms");
        for (number, stage) in pipeline.stages() {
            for (mine, theirs) in state(stage).iter().zip(&want.stages[&number][1]) {
                close(mine, theirs, "parameters");
            }
        }
        Ok(())
    });
}

#[test]
fn replicas_of_pipelines_agree_with_the_whole_batch() {
    for (replicas, ranks) in [(2, 2), (1, 4), (4, 1), (3, 2)] {
        mesh(replicas, ranks, Named::OneFOneB);
    }
    mesh(2, 2, Named::Zbv);
    mesh(2, 2, Named::LoopedBfs);
}

/// What each of 2 x 2 ranks is told that has the plan `plan` gives for (replica, rank).
fn refused(plan: impl Fn(usize, usize) -> Schedule + Sync, expect: impl Fn(&Error) -> bool + Sync) {
    on_ranks(4, |group| -> Result<()> {
        let device = group.device();
        let mesh = Mesh::new(group, [("data", 2), ("pipe", 2)])?;
        let pipe = mesh.group("pipe")?;
        let plan = plan(mesh.coordinate("data")?, pipe.rank());
        let config = PipelineConfig {
            data: Some(mesh.group("data")?),
            ..PipelineConfig::default()
        };
        let own = plan.stages_of(pipe.rank());
        let stages = own.map(|s| (s, parts(plan.graph(), s, DType::F64, device)));
        let stages = stages.collect();
        let error = Pipeline::new(pipe, &plan, stages, loss, config)
            .map(drop)
            .unwrap_err();
        assert!(expect(&error), "{error}");
        Ok(())
    });
}

/// Every rank is told, and none waits for one that has left.
#[test]
fn replicas_that_differ_are_told() {
    if !has_ranks(4) {
        eprintln!("SKIPPED: replicas_that_differ_are_told: it wants 4 ranks");
        return;
    }
    let plan = |named: Named, microbatches| named.schedule(2, 1, microbatches).unwrap();
    let differ = |error: &Error| matches!(error, Error::RanksDiffer { .. });
    // A replica with another plan; a rank that differs within its replica, where the other replica is a good one.
    refused(
        |replica, _| plan([Named::Gpipe, Named::OneFOneB][replica], 4),
        differ,
    );
    refused(
        |replica, rank| plan(Named::Gpipe, 4 + replica * rank),
        differ,
    );
    // Replicas whose gradients nobody averages.
    let unreduced = Lowering {
        reduce: false,
        ..Lowering::default()
    };
    refused(
        |_, _| lower(&plan(Named::Gpipe, 4), &unreduced).unwrap(),
        |error| {
            error
                .to_string()
                .contains("no 0REDUCE_GRAD, and there are 2 replicas")
        },
    );
}

/// Has a pipeline of two stages on each of two replicas, whose stages `make` gives for (replica, stage).
fn two_replicas(
    make: impl Fn(usize, usize, Device) -> Box<dyn Module> + Sync,
    each: impl Fn(usize, Device, &Mesh, Result<Pipeline>) -> Result<()> + Sync,
) {
    let plan = Named::OneFOneB.schedule(2, 1, 4).unwrap();
    on_ranks(4, |group| {
        let device = group.device();
        let mesh = Mesh::new(group, [("data", 2), ("pipe", 2)])?;
        let (replica, pipe) = (mesh.coordinate("data")?, mesh.group("pipe")?);
        let config = PipelineConfig {
            data: Some(mesh.group("data")?),
            ..PipelineConfig::default()
        };
        let stages = vec![(pipe.rank(), make(replica, pipe.rank(), device))];
        let made = Pipeline::new(pipe, &plan, stages, loss, config);
        each(replica, device, &mesh, made)
    });
}

fn stage_of(seed: u64, stage: usize, device: Device) -> Box<dyn Module> {
    let f = Factory {
        dtype: DType::F64,
        ..Factory::new(device, seed)
    };
    let sizes = [(INPUTS, 6), (6, CLASSES)][stage];
    Box::new(Linear::new(sizes.0, sizes.1, &mut f.at("linear")).unwrap())
}

/// One replica that went on by itself would be a batch ahead for the rest of the training.
#[test]
fn a_batch_that_one_replica_refuses_is_taken_by_none() {
    if !has_ranks(4) {
        eprintln!("SKIPPED: a_batch_that_one_replica_refuses_is_taken_by_none: it wants 4 ranks");
        return;
    }
    let make = |_, stage, device| stage_of(1, stage, device);
    two_replicas(make, |replica, device, mesh, made| {
        let (mut pipeline, stage) = (made?, mesh.coordinate("pipe")?);
        let (few, _) = batch(3, 0, DType::F64, device)?;
        let (x, y) = batch(8, 0, DType::F64, device)?;
        let mut losses = Vec::new();
        for accumulates in [true, false] {
            let inputs = if replica == 1 { &few } else { &x };
            let (inputs, targets) = (from_ref(inputs), from_ref(&y));
            let error = match accumulates {
                true => pipeline.accumulate(inputs, targets).unwrap_err(),
                false => pipeline.step(inputs, targets).map(drop).unwrap_err(),
            };
            let is_told = match (replica, stage) {
                (1, 0) => matches!(error, Error::InvalidUse { .. }),
                _ => matches!(error, Error::BatchRefused { rank: 2, step: 0 }),
            };
            assert!(is_told, "replica {replica}, stage {stage}: {error}");
        }
        // Nothing was sent and nothing counted: the next steps are good ones.
        for _ in 0..2 {
            losses.extend(pipeline.step(from_ref(&x), from_ref(&y))?.loss);
        }
        assert_eq!(losses[0], losses[1]);
        Ok(())
    });
}

#[test]
fn replicas_in_different_passes_are_told() {
    if !has_ranks(4) {
        eprintln!("SKIPPED: replicas_in_different_passes_are_told: it wants 4 ranks");
        return;
    }
    let make = |_, stage, device| stage_of(1, stage, device);
    two_replicas(make, |replica, device, _, made| {
        let mut pipeline = made?;
        let (x, y) = batch(8, 0, DType::F64, device)?;
        let (x, y) = (from_ref(&x), from_ref(&y));
        let tell = |done: Result<()>, words: &str| {
            let error = done.unwrap_err();
            assert!(matches!(error, Error::RanksDiffer { .. }), "{error}");
            assert!(error.to_string().contains(words), "{error}");
        };
        let done = match replica {
            0 => pipeline.accumulate(x, y),
            _ => pipeline.step(x, y).map(drop),
        };
        tell(done, "is in `step` of step 0, where rank");
        // Inference is the matter of one replica.
        if replica == 0 {
            pipeline.infer(x)?;
        }
        Ok(())
    });
}

#[test]
fn replicas_begin_with_the_values_of_the_first() {
    if !has_ranks(4) {
        eprintln!("SKIPPED: replicas_begin_with_the_values_of_the_first: it wants 4 ranks");
        return;
    }
    let make = |replica, stage, device| stage_of(replica as u64, stage, device);
    two_replicas(make, |_, device, mesh, made| {
        let pipeline = made?;
        for (number, stage) in pipeline.stages() {
            check_replicas(&*mesh.group("data")?, stage)?;
            let first = state(&*stage_of(0, number, device));
            let mine = state(stage);
            assert!(mine.iter().zip(&first).all(|(a, b)| a == b));
        }
        Ok(())
    });
}

/// Only the last stages differ, and the ranks of the first hear of it.
#[test]
fn replicas_with_other_parameters_are_told() {
    if !has_ranks(4) {
        eprintln!("SKIPPED: replicas_with_other_parameters_are_told: it wants 4 ranks");
        return;
    }
    let make = |replica, stage, device| match (replica, stage) {
        (1, 1) => {
            let frozen = stage_of(1, stage, device);
            frozen.parameters()[0].set_requires_grad(false);
            frozen
        }
        _ => stage_of(1, stage, device),
    };
    two_replicas(make, |_, _, mesh, made| {
        let (error, stage) = (made.map(drop).unwrap_err(), mesh.coordinate("pipe")?);
        let is_told = match stage {
            0 => matches!(error, Error::RanksDiffer { .. }),
            _ => matches!(error, Error::ReplicasDiffer { .. }),
        };
        assert!(is_told, "stage {stage}: {error}");
        assert!(error.to_string().contains("frozen parameter"), "{error}");
        Ok(())
    });
}
