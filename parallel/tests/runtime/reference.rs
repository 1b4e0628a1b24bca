//! What a run comes to: in one process, without a pipeline, and by a plan.

use crate::models::{batch, loss};
use crate::ranks::on_ranks;
use phalanx_autograd::nn::Module;
use phalanx_autograd::optim::{Adam, AdamConfig, Optimizer, clip_grad_norm};
use phalanx_autograd::{Backward, Gradients, Param, Tape, Var};
use phalanx_comm::ProcessGroup;
use phalanx_parallel::Result;
use phalanx_parallel::pipeline::{Pipeline, PipelineConfig, Schedule, StageGraph};
use phalanx_tensor::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How a model is trained.
#[derive(Clone, Copy, Debug)]
pub struct Task {
    pub dtype: DType,
    pub rows: usize,
    pub steps: usize,
    pub max_norm: f64,
}

impl Task {
    pub fn new(dtype: DType, rows: usize) -> Task {
        Task {
            dtype,
            rows,
            steps: 3,
            max_norm: 0.2,
        }
    }
}

/// All that must come out alike: by step the loss and the norm; by stage the first step's gradients and the last step's
/// parameters and buffers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    pub losses: Vec<f64>,
    pub norms: Vec<f64>,
    pub stages: BTreeMap<usize, [Vec<Vec<f64>>; 2]>,
    /// Of the last stage, before the first step.
    pub outputs: Vec<f64>,
}

impl Outcome {
    /// The largest difference of two numbers in the same place, as a share of the larger one (of 1, where it is less).
    pub fn distance(&self, other: &Outcome) -> f64 {
        let numbers = |r: &Outcome| {
            let stages = r.stages.values().flatten().flatten().flatten().copied();
            let all = r.losses.iter().chain(&r.norms).chain(&r.outputs).copied();
            all.chain(stages).collect::<Vec<f64>>()
        };
        let (a, b) = (numbers(self), numbers(other));
        assert_eq!(a.len(), b.len());
        let apart = |(a, b): (&f64, &f64)| (a - b).abs() / a.abs().max(b.abs()).max(1.0);
        a.iter().zip(&b).map(apart).fold(0.0, f64::max)
    }
}

pub fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.cast(DType::F64).unwrap().to_vec::<f64>().unwrap()
}

pub fn state(module: &dyn Module) -> Vec<Vec<f64>> {
    let params = module.named_parameters().into_iter();
    let buffers = module.named_buffers().into_iter();
    let params = params.map(|(_, p)| p.read(values));
    params.chain(buffers.map(|(_, b)| b.read(values))).collect()
}

fn of_stage(gradients: &Gradients, module: &dyn Module) -> Vec<Vec<f64>> {
    let params = module.parameters();
    let found = params
        .iter()
        .map(|p| gradients.get(p).map(values).unwrap_or_default());
    found.collect()
}

pub fn adam(params: Vec<Param>) -> Adam {
    Adam::new(params, AdamConfig::adam()).unwrap()
}

/// Makes the modules of a graph's stages.
pub type Make<'a> = &'a (dyn Fn(&StageGraph, usize, DType, Device) -> Box<dyn Module> + Sync);

/// One process that works through the same microbatches in ascending order.
pub fn alone(graph: &StageGraph, make: Make<'_>, microbatches: usize, task: Task) -> Outcome {
    let device = Device::cpu(60);
    let stages: Vec<Box<dyn Module>> = (0..graph.stages())
        .map(|s| make(graph, s, task.dtype, device))
        .collect();
    // In the order in which a sweep makes the gradients, where the optimizer does not care.
    let mut optimizer = adam(stages.iter().flat_map(|s| s.parameters()).collect());
    let forward = |tape: &Tape, x: Tensor| -> Vec<Var> {
        let mut outputs: Vec<Vec<Var>> = vec![Vec::new(); graph.stages()];
        for &stage in graph.order() {
            let stage = usize::from(stage);
            let before = graph.predecessors(stage);
            let inputs: Vec<Var> = match before.is_empty() {
                true => vec![tape.constant(x.clone())],
                false => before
                    .iter()
                    .flat_map(|&s| outputs[usize::from(s)].clone())
                    .collect(),
            };
            outputs[stage] = stages[stage].forward_all(tape, &inputs).unwrap();
        }
        let last = (0..graph.stages())
            .find(|&s| graph.successors(s).is_empty())
            .unwrap();
        outputs.swap_remove(last)
    };
    let mut result = Outcome::default();
    for step in 0..task.steps {
        let (x, y) = batch(task.rows, step, task.dtype, device).unwrap();
        let sizes: Vec<usize> = (0..microbatches)
            .map(|m| task.rows / microbatches + usize::from(m < task.rows % microbatches))
            .collect();
        let (xs, ys) = (x.split(&sizes, 0).unwrap(), y.split(&sizes, 0).unwrap());
        let mut gradients = Gradients::new();
        let (mut sum, mut weight) = (0.0, 0.0);
        for (x, y) in xs.into_iter().zip(ys) {
            let tape = Tape::new();
            let outputs = forward(&tape, x.contiguous().unwrap());
            let (loss, rows) = loss(&tape, &outputs, &[y.contiguous().unwrap()]).unwrap();
            sum += values(loss.value())[0];
            weight += rows;
            let how = Backward {
                roots: &[(&loss, None)],
                into: gradients,
                ..Backward::default()
            };
            gradients = tape.sweep(how).unwrap();
        }
        gradients.scale(1.0 / weight).unwrap();
        let norm = clip_grad_norm(&mut gradients, task.max_norm).unwrap();
        if step == 0 {
            for (number, stage) in stages.iter().enumerate() {
                result.stages.entry(number).or_default()[0] = of_stage(&gradients, &**stage);
            }
        }
        optimizer.step(&gradients).unwrap();
        result.losses.push(sum / weight);
        result.norms.push(norm.item::<f64>().unwrap());
    }
    for (number, stage) in stages.iter().enumerate() {
        result.stages.entry(number).or_default()[1] = state(&**stage);
        stage.set_training(false);
    }
    let (x, _) = batch(task.rows, 0, task.dtype, device).unwrap();
    result.outputs = values(forward(&Tape::inference(), x)[0].value());
    result
}

/// This rank's part of the same by a plan.
pub fn piped(
    group: &Arc<dyn ProcessGroup>,
    plan: &Schedule,
    make: Make<'_>,
    task: Task,
) -> Result<Outcome> {
    let device = group.device();
    let own = plan.stages_of(group.rank());
    let stages = own
        .map(|s| (s, make(plan.graph(), s, task.dtype, device)))
        .collect();
    let config = PipelineConfig {
        max_norm: Some(task.max_norm),
        ..PipelineConfig::default()
    };
    let mut pipeline = Pipeline::new(Arc::clone(group), plan, stages, loss, config)?;
    let mut optimizer = adam(pipeline.parameters());
    let mut result = Outcome::default();
    for step in 0..task.steps {
        let (x, y) = batch(task.rows, step, task.dtype, device)?;
        let done = pipeline.step(&[x], &[y])?;
        if step == 0 {
            for (number, stage) in pipeline.stages() {
                result.stages.entry(number).or_default()[0] = of_stage(&done.gradients, stage);
            }
        }
        optimizer.step(&done.gradients)?;
        result.losses.extend(done.loss);
        result.norms.extend(done.norm);
    }
    for (number, stage) in pipeline.stages() {
        result.stages.entry(number).or_default()[1] = state(stage);
    }
    pipeline.set_training(false);
    let (x, _) = batch(task.rows, 0, task.dtype, device)?;
    result.outputs = pipeline
        .infer(&[x])?
        .first()
        .map(values)
        .unwrap_or_default();
    Ok(result)
}

impl Outcome {
    /// Whether a rank has come to the same, as far as it knows it; the numbers may be so far apart.
    fn expect_of(&self, part: &Outcome, tolerance: f64, name: &str) {
        let mut known = self.clone();
        known
            .stages
            .retain(|stage, _| part.stages.contains_key(stage));
        if part.outputs.is_empty() {
            known.outputs.clear();
        }
        match tolerance {
            0.0 => assert_eq!(*part, known, "{name}"),
            tolerance => {
                let distance = part.distance(&known);
                assert!(distance <= tolerance, "{name}: {distance:e}");
            }
        }
    }
}

/// Runs a plan on as many ranks as it has (threads, or those that mpirun has started), and compares every rank's part with
/// what one process came to.
pub fn expect(
    plan: &Schedule,
    make: Make<'_>,
    task: Task,
    want: &Outcome,
    tolerance: f64,
    name: &str,
) {
    on_ranks(plan.rank_count(), |group| {
        let part = piped(&group, plan, make, task)?;
        // On cards other orders of sums are as good.
        let tolerance = if group.device().is_cpu() {
            tolerance
        } else {
            1e-12
        };
        want.expect_of(&part, tolerance, &format!("{name}\n{plan}"));
        Ok(())
    });
}
