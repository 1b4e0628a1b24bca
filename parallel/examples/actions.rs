//! What an action of a pipeline costs beside its work: stages that do almost nothing, on one and on two ranks.
//! `cargo run --release -p phalanx-parallel --example actions`

use phalanx_autograd::nn::{Factory, Linear, Module};
use phalanx_autograd::{Backward, Gradients, Tape, Var};
use phalanx_comm::launch;
use phalanx_parallel::pipeline::{Named, Pipeline, PipelineConfig};
use phalanx_tensor::{DType, Device, Tensor};
use std::slice::from_ref;
use std::time::Instant;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const MICROBATCHES: usize = 64;
const STEPS: usize = 101;

fn loss(_: &Tape, outputs: &[Var], _: &[Tensor]) -> phalanx_autograd::Result<(Var, f64)> {
    Ok((outputs[0].sum_all()?, 1.0))
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The median time of a step in seconds, on rank 0.
fn step(ranks: usize, stages_per_rank: usize) -> Result<(f64, usize), Failure> {
    let named = if stages_per_rank == 1 {
        Named::OneFOneB
    } else {
        Named::Interleaved
    };
    let plan = named.schedule(ranks, stages_per_rank, MICROBATCHES)?;
    let ends = launch(ranks, |group| -> Result<(f64, usize), Failure> {
        let device = group.device();
        let mut f = Factory::new(device, 0);
        let rank = group.rank();
        let stages = plan.stages_of(rank).map(|s| {
            let layer: Box<dyn Module> = Box::new(Linear::new(1, 1, &mut f)?);
            Ok((s, layer))
        });
        let stages = stages.collect::<phalanx_autograd::Result<Vec<_>>>()?;
        let mut pipeline = Pipeline::new(group, &plan, stages, loss, PipelineConfig::default())?;
        let x = Tensor::ones([MICROBATCHES, 1], DType::F32, device)?;
        let mut times = Vec::new();
        for _ in 0..STEPS {
            let start = Instant::now();
            pipeline.step(from_ref(&x), from_ref(&x))?;
            times.push(start.elapsed().as_secs_f64());
        }
        Ok((median(times), pipeline.schedule().ranks()[rank].len()))
    })?;
    Ok(ends[0])
}

/// The same work in a loop of its own: so many layers, all microbatches.
fn bare(layers: usize) -> Result<f64, Failure> {
    let device = Device::cpu(0);
    let mut f = Factory::new(device, 0);
    let layers = (0..layers)
        .map(|_| Linear::new(1, 1, &mut f))
        .collect::<phalanx_autograd::Result<Vec<_>>>()?;
    let x = Tensor::ones([1, 1], DType::F32, device)?;
    let mut times = Vec::new();
    for _ in 0..STEPS {
        let start = Instant::now();
        let mut gradients = Gradients::new();
        for _ in 0..MICROBATCHES {
            let tape = Tape::new();
            let mut y = tape.constant(x.clone());
            for layer in &layers {
                y = layer.forward(&tape, &y)?;
            }
            let loss = y.sum_all()?;
            gradients = tape.sweep(Backward {
                roots: &[(&loss, None)],
                into: gradients,
                ..Backward::default()
            })?;
        }
        times.push(start.elapsed().as_secs_f64());
    }
    Ok(median(times))
}

fn main() -> Result<(), Failure> {
    for (ranks, per_rank) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
        let (time, actions) = step(ranks, per_rank)?;
        // The work of one rank's stages.
        let work = bare(per_rank)?;
        println!(
            "{ranks} ranks x {per_rank} stages: {:.1} us a step, {actions} actions, of which {:.2} us each beside the work ({:.1} us)",
            1e6 * time,
            1e6 * (time - work) / actions as f64,
            1e6 * work
        );
    }
    Ok(())
}
