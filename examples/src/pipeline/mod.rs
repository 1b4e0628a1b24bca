//! Pipeline-parallel training of a classifier: the model cut into stages, the loop, the report.

mod program;

pub use program::{Cli, run};

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use phalanx_autograd::optim::{Optimizer, Sgd, SgdConfig};
use phalanx_autograd::{Tape, Var};
use phalanx_comm::ProcessGroup;
use phalanx_parallel::DistributedSampler;
use phalanx_parallel::pipeline::{
    Costs, Layers, LossOn, Pipeline, PipelineConfig, Schedule, Transfers, render, simulate,
};
use phalanx_tensor::ops::softmax::{CrossEntropyConfig, Reduction};
use phalanx_tensor::{DType, Device, Tensor};
use serde::Serialize;

use crate::data::Dataset;
use crate::progress::Progress;
use crate::report::fingerprint;
use crate::train::learning_rate;

/// How to train.
#[derive(Clone, Debug)]
pub struct PipelineTraining {
    /// Passes over the training images.
    pub epochs: usize,
    /// Images in a step, over all replicas.
    pub batch_size: usize,
    /// Where the order of the images comes from.
    pub seed: u64,
    /// The learning rate after the warm-up; it falls to 0 along half a cosine.
    pub learning_rate: f64,
    /// At most so large is the norm of the whole model's gradient.
    pub max_norm: Option<f64>,
    /// Whether to record when each action of the last step began and ended.
    pub trace: bool,
}

/// What a training ends with, on a rank that has the first stage of the first replica; elsewhere most of it is empty.
#[derive(Clone, Debug, Serialize)]
pub struct Trained {
    /// The median of the steps' times.
    pub step_seconds: f64,
    /// Mean loss over the last epoch.
    pub train_loss: f64,
    /// Share of the test images classified correctly, 0 to 1.
    pub test_accuracy: f64,
    /// Greatest number of bytes that each rank's device held at a time.
    pub peak_bytes: Vec<usize>,
    /// Of the bytes of the whole model's parameters, one after the other, in the order of the uncut model.
    pub parameters_sha256: String,
    /// The last step in time, as a picture: predicted above measured; and for Perfetto.
    #[serde(skip)]
    pub pictures: Option<[String; 2]>,
}

/// The sum of the cross entropy over the images of a microbatch, and how many these are.
///
/// # Errors
/// As [`Var::cross_entropy`].
pub fn loss(_: &Tape, outputs: &[Var], targets: &[Tensor]) -> phalanx_autograd::Result<(Var, f64)> {
    let config = CrossEntropyConfig {
        reduction: Reduction::Sum,
        ..CrossEntropyConfig::default()
    };
    let sum = outputs[0].cross_entropy(&targets[0], &config)?;
    Ok((sum, targets[0].numel() as f64))
}

/// Trains a model that is cut as `plan` says over the ranks of `pipe`; `data` are the ranks that have the same stages in
/// other replicas.
///
/// # Errors
/// Those of the model, the groups and the optimizer; or the loss is no number.
pub fn train(
    (layers, cuts): (&Layers, &[usize]),
    plan: &Schedule,
    (pipe, data): (&Arc<dyn ProcessGroup>, Option<&Arc<dyn ProcessGroup>>),
    (train_set, test_set): (&Dataset, &Dataset),
    config: &PipelineTraining,
) -> Result<Trained> {
    let device = pipe.device();
    let (replica, replicas) = data.map_or((0, 1), |data| (data.rank(), data.size()));
    let microbatches = plan.microbatches();
    let share = config.batch_size.div_ceil(replicas);
    ensure!(
        share >= microbatches,
        "a batch of {} images over {replicas} replicas has fewer images each than the plan has microbatches, {microbatches}",
        config.batch_size
    );
    let how = PipelineConfig {
        data: data.cloned(),
        loss: LossOn::Everywhere,
        max_norm: config.max_norm,
        trace: config.trace,
        ..PipelineConfig::default()
    };
    let mut pipeline = Pipeline::of_layers(
        Arc::clone(pipe),
        plan,
        (layers, cuts),
        DType::F32,
        loss,
        how,
    )?;
    let sgd = SgdConfig {
        lr: config.learning_rate,
        momentum: 0.9,
        weight_decay: 0.0005,
        ..SgdConfig::default()
    };
    let mut optimizer = Sgd::new(pipeline.parameters(), sgd)?;
    // All ranks of a replica see one batch: what is divided is the number of replicas, not of ranks.
    let sampler = DistributedSampler {
        len: train_set.len(),
        world_size: replicas,
        rank: replica,
        shuffle: true,
        seed: config.seed,
        drop_last: false,
    };
    let batches = |epoch: usize| -> Result<Vec<Vec<usize>>> {
        let indices = sampler.indices(epoch as u64)?;
        let whole = indices
            .chunks(share)
            .filter(|batch| batch.len() >= microbatches);
        Ok(whole.map(<[usize]>::to_vec).collect())
    };
    let steps = config.epochs * batches(0)?.len();
    let progress = Progress::start(pipe.rank() + replica, steps);
    let mut seconds = Vec::with_capacity(steps);
    let mut train_loss = f64::NAN;
    let mut done = 0;
    for epoch in 0..config.epochs {
        let batches = batches(epoch)?;
        let mut sum = 0.0;
        for batch in &batches {
            let start = Instant::now();
            optimizer.set_lr(learning_rate(config.learning_rate, done, steps))?;
            let (images, labels) = train_set.batch(batch, device)?;
            let step = pipeline.step(&[images], &[labels])?;
            optimizer.step(&step.gradients)?;
            sum += step.loss.unwrap_or(f64::NAN);
            seconds.push(start.elapsed().as_secs_f64());
            done += 1;
            progress.step(&Tensor::scalar(
                step.loss.unwrap_or(f64::NAN),
                Device::cpu(0),
            )?)?;
        }
        train_loss = sum / batches.len() as f64;
        ensure!(
            train_loss.is_finite(),
            "the training has diverged: the loss of epoch {} is {train_loss}; a lower learning rate may help",
            epoch + 1
        );
    }
    progress.finish();
    let pictures = match config.trace {
        true => Some(pictures(plan, &pipeline)?),
        false => None,
    };
    let test_accuracy = accuracy(&mut pipeline, pipe, test_set)?;
    seconds.sort_by(f64::total_cmp);
    let state = pipeline.state()?;
    let parameters_sha256 = match state {
        None => String::new(), // the first rank has it
        Some(state) => {
            let whole = layers.whole(DType::F32, Device::cpu(0))?;
            state.load_into(&*whole)?;
            fingerprint(&whole.parameters())?
        }
    };
    let here = Tensor::scalar(device.memory()?.peak as i64, Device::cpu(0))?;
    let mut peaks = pipe.all_gather(here)?.wait()?;
    if let Some(data) = data {
        peaks = data.all_gather(peaks)?.wait()?;
    }
    let peaks = peaks.to_vec::<i64>()?;
    Ok(Trained {
        step_seconds: seconds.get(seconds.len() / 2).copied().unwrap_or_default(),
        train_loss,
        test_accuracy,
        peak_bytes: peaks.into_iter().map(|n| n as usize).collect(),
        parameters_sha256,
        pictures,
    })
}

/// The last step as it was predicted from the mean times of its own actions, above what was measured; and its trace.
fn pictures(plan: &Schedule, pipeline: &Pipeline) -> Result<[String; 2]> {
    let measured = pipeline.timeline()?;
    let plan = plan.compute_only();
    let costs = Costs::measured(&plan, &measured);
    let predicted = simulate(&plan, &costs, Transfers::Overlapped)?;
    let picture = render::stacked(&[
        render::svg(&plan, &predicted, &costs, "predicted"),
        render::svg(&plan, &measured, &costs, "measured"),
    ]);
    Ok([picture, render::chrome_trace(&plan, &measured, &costs, 1e6)])
}

/// Share of `test` that the model classifies correctly, on every rank of the pipeline.
fn accuracy(pipeline: &mut Pipeline, pipe: &Arc<dyn ProcessGroup>, test: &Dataset) -> Result<f64> {
    const AT_A_TIME: usize = 250;
    pipeline.set_training(false);
    let mut correct = 0i64;
    // As many in each, so that the last ones are not fewer than there are microbatches.
    let batches = test.len().div_ceil(AT_A_TIME);
    for batch in 0..batches {
        let indices: Vec<usize> = (batch..test.len()).step_by(batches).collect();
        let (images, labels) = test.batch(&indices, pipe.device())?;
        if let Some(logits) = pipeline.infer(&[images])?.first() {
            let classes = logits.argmax(1)?.to_vec::<i64>()?.into_iter();
            let pairs = classes.zip(labels.to_vec::<i64>()?);
            correct += pairs.filter(|(class, label)| class == label).count() as i64;
        }
    }
    pipeline.set_training(true);
    // Only the rank with the last stage has counted.
    let correct = Tensor::scalar(correct, Device::cpu(0))?;
    let correct = pipe
        .all_reduce(correct, phalanx_comm::ReduceOp::Sum)?
        .wait()?;
    Ok(correct.item::<i64>()? as f64 / test.len() as f64)
}

/// Reads a plan from a file: a line per rank, actions separated by commas.
///
/// # Errors
/// It cannot be read, or is no plan; the error names the file.
pub fn read_plan(path: &Path) -> Result<Schedule> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    text.parse::<Schedule>()
        .with_context(|| format!("{}", path.display()))
}
