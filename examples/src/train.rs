//! Data-parallel training of a classifier: the loop, evaluation over all ranks, the report.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use phalanx_autograd::Tape;
use phalanx_autograd::nn::{Module, cross_entropy};
use phalanx_autograd::optim::{Optimizer, Sgd, SgdConfig};
use phalanx_comm::{ProcessGroup, ReduceOp};
use phalanx_parallel::ddp::agree;
use phalanx_parallel::{CommHook, Ddp, DdpConfig, DistributedSampler, PowerSgd, PowerSgdConfig};
use phalanx_tensor::{DType, Tensor};

use crate::data::Dataset;
use crate::progress::Progress;
use crate::report::{Curves, fingerprint};

/// How to train.
#[derive(Clone, Debug)]
pub struct TrainConfig {
    /// Passes over the training images.
    pub epochs: usize,
    /// Images in a step, over all ranks; rounded up to a multiple of their number.
    pub batch_size: usize,
    /// Where the order of the images comes from.
    pub seed: u64,
    /// The learning rate after the warm-up; it falls to 0 along half a cosine.
    pub learning_rate: f64,
    /// Share of the last step's direction that is kept.
    pub momentum: f64,
    /// Pull of the weights towards 0.
    pub weight_decay: f64,
    /// The rank of the products as which gradients travel, after a tenth of the steps; `None`: as they are.
    pub power_sgd: Option<usize>,
    /// Whether to note what happens when in the last step.
    pub trace: bool,
}

impl TrainConfig {
    /// Images in a step on each of `ranks` ranks.
    pub fn share(&self, ranks: usize) -> usize {
        self.batch_size.div_ceil(ranks)
    }

    /// What ranks must agree on, a line each.
    fn describe(&self, train: &Dataset, test: &Dataset) -> String {
        let TrainConfig {
            epochs,
            batch_size,
            seed,
            learning_rate,
            momentum,
            weight_decay,
            power_sgd,
            trace,
        } = self;
        let (train, test) = (train.len(), test.len());
        format!(
            "{epochs} epochs\nbatch size {batch_size}\nseed {seed}\nlearning rate {learning_rate}\n\
             momentum {momentum}\nweight decay {weight_decay}\nPowerSGD {power_sgd:?}\ntrace {trace}\n\
             {train} images to train\n{test} images to test\n"
        )
    }
}

/// What a training ends with; the same on every rank, but for the memory.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Loss by step and accuracy by epoch.
    pub curves: Curves,
    /// Mean loss over the last epoch.
    pub train_loss: f64,
    /// Images seen in training, over all ranks.
    pub samples: usize,
    /// Time spent training; evaluation is not counted.
    pub seconds: f64,
    /// Greatest number of bytes on this rank's device at a time.
    pub peak_bytes: usize,
    /// SHA-256 of this rank's parameters.
    pub parameters_sha256: String,
    /// The last step of all ranks as a Chrome trace, where it was asked for.
    pub trace: Option<String>,
}

/// Takes one data-parallel step on this rank's images; its loss, before the step, which nobody has waited for yet.
///
/// # Errors
/// Those of the model, the group and the optimizer.
pub fn step<M: Module>(
    ddp: &Ddp<M>,
    optimizer: &mut impl Optimizer,
    images: Tensor,
    labels: &Tensor,
) -> Result<Tensor> {
    let tape = Tape::new();
    let logits = ddp.forward(&tape, &tape.constant(images))?;
    let loss = cross_entropy(&logits, labels)?;
    let gradients = ddp.backward(&tape, &loss)?;
    optimizer.step(&gradients)?;
    Ok(loss.value().clone())
}

/// Trains `model` on this rank's share of `train`, and judges it by `test` after each epoch.
///
/// # Errors
/// Those of the model, the group and the optimizer; ranks that were started with other numbers, or whose replicas
/// have drifted apart; or the loss is no number.
pub fn train<M: Module>(
    model: M,
    group: &Arc<dyn ProcessGroup>,
    train: &Dataset,
    test: &Dataset,
    config: &TrainConfig,
) -> Result<Outcome> {
    let device = group.device();
    agree(&**group, "arguments", &config.describe(train, test))?;
    let sampler = DistributedSampler {
        len: train.len(),
        world_size: group.size(),
        rank: group.rank(),
        shuffle: true,
        seed: config.seed,
        drop_last: false,
    };
    let share = config.share(group.size());
    let steps_per_epoch = sampler.samples_per_rank().div_ceil(share);
    let steps = config.epochs * steps_per_epoch;

    let hook: Option<Arc<dyn CommHook>> = match config.power_sgd {
        None => None,
        Some(rank) => Some(Arc::new(PowerSgd::new(PowerSgdConfig {
            rank,
            start_step: steps.div_ceil(10) as u64,
            ..PowerSgdConfig::default()
        })?)),
    };
    let how = DdpConfig {
        hook,
        trace: config.trace,
        ..DdpConfig::default()
    };
    let ddp = Ddp::new(model, group.clone(), how)?;
    let sgd = SgdConfig {
        lr: config.learning_rate,
        momentum: config.momentum,
        weight_decay: config.weight_decay,
        ..SgdConfig::default()
    };
    let mut optimizer = Sgd::new(ddp.parameters(), sgd)?;

    let progress = Progress::start(group.rank(), steps);
    let mut curves = Curves::default();
    let mut seconds = 0.0;
    let mut train_loss = f64::NAN;
    for epoch in 0..config.epochs {
        let start = Instant::now();
        let mut losses = Vec::with_capacity(steps_per_epoch);
        for (index, batch) in sampler.indices(epoch as u64)?.chunks(share).enumerate() {
            let done = epoch * steps_per_epoch + index;
            optimizer.set_lr(learning_rate(config.learning_rate, done, steps))?;
            let (images, labels) = train.batch(batch, device)?;
            let loss = step(&ddp, &mut optimizer, images, &labels)?;
            progress.step(&loss)?;
            losses.push(loss);
        }
        // The losses are read at the end of the epoch: a read waits for the card, which would idle after each step.
        let losses = Tensor::stack(&losses.iter().collect::<Vec<_>>(), 0)?.cast(DType::F32)?;
        device.synchronize()?;
        seconds += start.elapsed().as_secs_f64();

        // Each rank has seen its own images: the curve shows the mean over all of them.
        let losses = group
            .all_reduce(losses, ReduceOp::Avg)?
            .wait()?
            .to_vec::<f32>()?;
        train_loss = losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / losses.len() as f64;
        ensure!(
            train_loss.is_finite(),
            "the training has diverged: the loss of epoch {} is {train_loss}; a lower learning rate may help",
            epoch + 1
        );
        ddp.check_replicas()?;
        curves.losses.extend(losses);
        let accuracy = accuracy(ddp.module(), &**group, test)?;
        curves.accuracies.push(accuracy);
        progress.epoch(epoch + 1, config.epochs, train_loss, accuracy);
    }
    progress.finish();
    Ok(Outcome {
        curves,
        train_loss,
        samples: config.epochs * sampler.samples_per_rank() * group.size(),
        seconds,
        peak_bytes: device.memory()?.peak,
        parameters_sha256: fingerprint(&ddp.parameters())?,
        trace: config.trace.then(|| ddp.chrome_trace()).transpose()?,
    })
}

/// Share of `test` that `model` classifies correctly. Each rank judges every `size`-th image.
///
/// # Errors
/// Those of the model and the group.
pub fn accuracy(model: &impl Module, group: &dyn ProcessGroup, test: &Dataset) -> Result<f64> {
    const AT_A_TIME: usize = 250;
    let device = group.device();
    let mine: Vec<usize> = (group.rank()..test.len()).step_by(group.size()).collect();
    let mut correct = 0i64;
    model.set_training(false);
    for indices in mine.chunks(AT_A_TIME) {
        let (images, labels) = test.batch(indices, device)?;
        let tape = Tape::inference();
        let classes = model
            .forward(&tape, &tape.constant(images))?
            .value()
            .argmax(1)?;
        let pairs = classes
            .to_vec::<i64>()?
            .into_iter()
            .zip(labels.to_vec::<i64>()?);
        correct += pairs.filter(|(class, label)| class == label).count() as i64;
    }
    model.set_training(true);
    let correct = Tensor::scalar(correct, device)?;
    let correct = group
        .all_reduce(correct, ReduceOp::Sum)?
        .wait()?
        .item::<f64>()?;
    Ok(correct / test.len() as f64)
}

/// The learning rate for step `done` of `steps`: rises over the first tenth, then falls along half a cosine.
pub fn learning_rate(highest: f64, done: usize, steps: usize) -> f64 {
    let warm_up = (steps as f64 / 10.0).max(1.0);
    let rise = ((done as f64 + 1.0) / warm_up).min(1.0);
    let fall = 0.5 * (1.0 + (std::f64::consts::PI * done as f64 / steps as f64).cos());
    highest * rise * fall
}

#[cfg(test)]
mod tests {
    use phalanx_autograd::nn::Factory;
    use phalanx_comm::launch;

    use super::*;
    use crate::data::{Split, bundled};
    use crate::models::image_mlp;

    #[test]
    fn the_learning_rate_rises_and_falls() {
        let rates: Vec<f64> = (0..100).map(|step| learning_rate(0.5, step, 100)).collect();
        let top = (0..100)
            .max_by(|&a, &b| rates[a].total_cmp(&rates[b]))
            .unwrap();
        assert!((5..15).contains(&top), "highest at step {top}");
        assert!(rates[top] > 0.45 && rates[top] <= 0.5);
        assert!(rates[..top].is_sorted() && rates[top..].iter().rev().is_sorted());
        assert!(rates[0] > 0.0 && rates[99] > 0.0 && rates[99] < 0.001);
        assert_eq!(learning_rate(0.5, 0, 1), 0.5);
    }

    #[test]
    fn ranks_that_were_started_with_other_numbers_do_not_train() {
        let test = Dataset::load(&bundled(), Split::Test).unwrap();
        let ends = launch(2, |group| -> Result<String, phalanx_comm::Error> {
            let config = TrainConfig {
                epochs: 1,
                batch_size: 500,
                seed: 0,
                learning_rate: if group.rank() == 0 { 0.05 } else { 0.01 },
                momentum: 0.9,
                weight_decay: 0.0,
                power_sgd: None,
                trace: false,
            };
            let model = image_mlp(&mut Factory::new(group.device(), 0)).expect("there is memory");
            let end = train(model, &group, &test, &test, &config);
            Ok(end.expect_err("they differ").to_string())
        });
        let want = "the ranks have different arguments: rank 1 has learning rate 0.01, where rank 0 has learning rate 0.05";
        assert_eq!(ends.unwrap(), [want, want]);
    }
}
