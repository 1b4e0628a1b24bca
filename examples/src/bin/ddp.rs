//! Trains a classifier of clothing on several ranks: each has a replica and a share of the images, and gradients are
//! averaged while backward still runs.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use phalanx_autograd::nn::Factory;
use phalanx_examples::cli::{World, at_least_one, exit, kind, not_negative, say, writable};
use phalanx_examples::data::{self, Dataset, Split};
use phalanx_examples::report::{Summary, count};
use phalanx_examples::train::{TrainConfig, train};
use phalanx_examples::{chart, models};

/// Trains a classifier of clothing on several ranks, data-parallel.
#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    world: World,
    /// What to train
    #[arg(long, value_enum, default_value_t = Model::Cnn)]
    model: Model,
    /// Passes over the training images
    #[arg(long, value_name = "N", default_value = "8", value_parser = at_least_one, allow_negative_numbers = true)]
    epochs: usize,
    /// Images in a step, over all ranks; rounded up to a multiple of their number, and at most all there are
    #[arg(long, value_name = "N", default_value = "64", value_parser = at_least_one, allow_negative_numbers = true)]
    batch_size: usize,
    /// Where all random numbers start
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    seed: u64,
    /// The highest learning rate; it is reached after a tenth of the steps and falls to 0
    #[arg(long, value_name = "RATE", default_value = "0.05", value_parser = not_negative, allow_negative_numbers = true)]
    lr: f64,
    /// Momentum of SGD
    #[arg(long, value_name = "SHARE", default_value = "0.9", value_parser = not_negative, allow_negative_numbers = true)]
    momentum: f64,
    /// Weight decay of SGD
    #[arg(long, value_name = "RATE", default_value = "0.0005", value_parser = not_negative, allow_negative_numbers = true)]
    weight_decay: f64,
    /// Send gradients as products of matrices of this rank, after a tenth of the steps [default: as they are]
    #[arg(long, value_name = "RANK", value_parser = at_least_one, allow_negative_numbers = true)]
    powersgd: Option<usize>,
    /// A folder with Fashion-MNIST's files [default: the 6,000 images that come with the source]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// End with one line of JSON
    #[arg(long)]
    json: bool,
    /// Draw loss and accuracy
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Write what happened when in the last step, on all ranks, for Perfetto (ui.perfetto.dev) or chrome://tracing
    #[arg(long, value_name = "FILE.json")]
    trace: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Model {
    /// 784-1024-1024-10, ReLU
    Mlp,
    /// Two convolutions and two linear layers
    Cnn,
}

fn main() -> ExitCode {
    exit(run(&Cli::parse()))
}

fn run(cli: &Cli) -> Result<()> {
    let folder = cli.data.clone().unwrap_or_else(data::bundled);
    let train_set = Dataset::load(&folder, Split::Train)?;
    let test_set = Dataset::load(&folder, Split::Test)?;
    let config = TrainConfig {
        epochs: cli.epochs,
        batch_size: cli.batch_size.min(train_set.len()),
        seed: cli.seed,
        learning_rate: cli.lr,
        momentum: cli.momentum,
        weight_decay: cli.weight_decay,
        power_sgd: cli.powersgd,
        trace: cli.trace.is_some(),
    };
    let outcome = cli.world.launch(2, |group| {
        if let (0, Some(path)) = (group.rank(), &cli.plot) {
            chart::prepare(path)?;
        }
        if let (0, Some(path)) = (group.rank(), &cli.trace) {
            writable(path)?;
        }
        let mut factory = Factory::new(group.device(), cli.seed);
        let model = match cli.model {
            Model::Mlp => models::image_mlp(&mut factory)?,
            Model::Cnn => models::small_cnn(&mut factory)?,
        };
        train(model, &group, &train_set, &test_set, &config)
    })?;
    let Some(outcome) = outcome else {
        return Ok(()); // rank 0 speaks, in a process of its own
    };
    let first = &outcome.result;

    let model = cli.model.to_possible_value();
    let model = model.as_ref().map_or("", |value| value.get_name());
    let summary = Summary {
        example: "ddp",
        model: model.to_owned(),
        backend: outcome.backend.to_string(),
        device: kind(cli.world.device).to_owned(),
        world_size: outcome.world_size,
        threads: cli.world.threads,
        epochs: cli.epochs,
        batch_size: config.share(outcome.world_size) * outcome.world_size,
        seed: cli.seed,
        steps: first.curves.losses.len(),
        train_loss: first.train_loss,
        test_accuracy: first.curves.accuracies.last().copied().unwrap_or_default(),
        samples_per_second: first.samples as f64 / first.seconds,
        seconds: first.seconds,
        peak_bytes: first.peak_bytes,
        parameters_sha256: first.parameters_sha256.clone(),
    };
    say(&summary)?;
    if let Some(path) = &cli.plot {
        let title = format!(
            "{model} on {}, Fashion-MNIST",
            count(outcome.world_size, "rank")
        );
        chart::draw(path, &title, &first.curves)?;
        say(format_args!("  curves         {}", path.display()))?;
    }
    if let (Some(path), Some(trace)) = (&cli.trace, &first.trace) {
        std::fs::write(path, trace).with_context(|| format!("{}", path.display()))?;
        say(format_args!("  last step      {}", path.display()))?;
    }
    if cli.json {
        say(serde_json::to_string(&summary)?)?;
    }
    Ok(())
}
