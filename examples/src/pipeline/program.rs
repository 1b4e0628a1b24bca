//! The programs `pipeline` and `ddp_pipeline`: what they read, run and say.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use phalanx_parallel::Mesh;
use phalanx_parallel::pipeline::{Layers, Named, Schedule};
use serde::Serialize;

use super::{PipelineTraining, Trained, read_plan, train};
use crate::cli::{World, at_least_one, kind, not_negative, say, writable};
use crate::data::{self, Dataset, Split};
use crate::models;
use crate::report::count;

/// Trains a classifier of clothing whose layers are spread over several ranks.
#[derive(Parser)]
pub struct Cli {
    #[command(flatten)]
    world: World,
    /// Replicas of the pipeline, each of which has a share of the batch [default: 1, and 2 of ddp_pipeline]
    #[arg(long, value_name = "N", value_parser = at_least_one, allow_negative_numbers = true)]
    replicas: Option<usize>,
    /// What to train
    #[arg(long, value_enum, default_value_t = Model::Cnn)]
    model: Model,
    /// The order of work: gpipe, 1f1b, interleaved, bfs, zbh1, zb1p, zbv, dualpipev
    #[arg(long, value_name = "NAME", default_value = "1f1b", value_parser = named)]
    schedule: Named,
    /// A plan from a file instead: a line per rank, actions separated by commas
    #[arg(long, value_name = "FILE", conflicts_with_all = ["schedule", "microbatches"])]
    plan: Option<PathBuf>,
    /// Microbatches in a step
    #[arg(long, value_name = "N", default_value = "8", value_parser = at_least_one, allow_negative_numbers = true)]
    microbatches: usize,
    /// Passes over the training images
    #[arg(long, value_name = "N", default_value = "4", value_parser = at_least_one, allow_negative_numbers = true)]
    epochs: usize,
    /// Images in a step
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
    /// Clip the norm of the whole model's gradient
    #[arg(long, value_name = "NORM", value_parser = not_negative, allow_negative_numbers = true)]
    max_norm: Option<f64>,
    /// A folder with Fashion-MNIST's files [default: the 6,000 images that come with the source]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Write the last step in time into this file, for Perfetto
    #[arg(long, value_name = "FILE.json")]
    trace: Option<PathBuf>,
    /// Draw the last step in time: predicted above measured
    #[arg(long, value_name = "FILE.svg")]
    svg: Option<PathBuf>,
    /// End with one line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Model {
    /// Three hidden layers of 512
    Mlp,
    /// Eight convolutions and a linear layer
    Cnn,
}

impl Model {
    fn layers(self, seed: u64) -> Layers {
        match self {
            Model::Mlp => models::mlp_layers(3, 512, seed),
            Model::Cnn => models::cnn_layers(seed),
        }
    }
}

/// What was trained, how, and to what effect.
#[derive(Serialize)]
struct Summary {
    example: &'static str,
    model: String,
    schedule: String,
    backend: String,
    device: &'static str,
    ranks: usize,
    replicas: usize,
    stages: usize,
    microbatches: usize,
    epochs: usize,
    batch_size: usize,
    seed: u64,
    #[serde(flatten)]
    trained: Trained,
}

fn named(text: &str) -> Result<Named, String> {
    text.parse().map_err(|error| format!("{error}"))
}

/// The plan over so many ranks, which is `given` or follows from the schedule's name; and where the layers are cut for it.
fn plan(
    cli: &Cli,
    given: Option<&Schedule>,
    ranks: usize,
    layers: &Layers,
) -> Result<(Schedule, Vec<usize>)> {
    let plan = match given {
        Some(plan) => plan.clone(),
        None => {
            let per_rank = cli.schedule.default_stages_per_rank();
            cli.schedule.schedule(ranks, per_rank, cli.microbatches)?
        }
    };
    ensure!(
        plan.stages() <= layers.len(),
        "the plan has {} stages, and the model {} layers to be cut",
        plan.stages(),
        layers.len()
    );
    let cuts = layers.even_cuts(plan.stages());
    let graph = layers.graph(&cuts)?;
    ensure!(
        graph == *plan.graph() || !plan.has_transfers(),
        "the plan is over other edges than the model has"
    );
    let plan = if plan.has_transfers() {
        plan
    } else {
        plan.over(graph)?
    };
    Ok((plan, cuts))
}

/// Runs the program of this name, with so many replicas where the command line asks for no number.
///
/// # Errors
/// What was asked for makes no sense, a file cannot be read or written, or the training fails.
pub fn run(cli: &Cli, example: &'static str, replicas: usize) -> Result<()> {
    let replicas = cli.replicas.unwrap_or(replicas);
    let folder = cli.data.clone().unwrap_or_else(data::bundled);
    let sets = (
        Dataset::load(&folder, Split::Train)?,
        Dataset::load(&folder, Split::Test)?,
    );
    let layers = cli.model.layers(cli.seed);
    let given = cli.plan.as_deref().map(read_plan).transpose()?;
    let config = PipelineTraining {
        epochs: cli.epochs,
        batch_size: cli.batch_size.min(sets.0.len()),
        seed: cli.seed,
        learning_rate: cli.lr,
        max_norm: cli.max_norm,
        trace: cli.trace.is_some() || cli.svg.is_some(),
    };
    let outcome = cli.world.launch(2 * replicas, |group| {
        for path in [&cli.trace, &cli.svg]
            .into_iter()
            .flatten()
            .filter(|_| group.rank() == 0)
        {
            writable(path)?;
        }
        let ranks = group.size() / replicas;
        ensure!(
            ranks > 0,
            "{replicas} replicas take as many ranks at least, and there are {}; --ranks N, or mpirun -n N, starts more",
            group.size()
        );
        let mesh = Mesh::new(group, [("data", replicas), ("pipe", ranks)])?;
        let (pipe, data) = (mesh.group("pipe")?, mesh.group("data")?);
        let (plan, cuts) = plan(cli, given.as_ref(), ranks, &layers)?;
        let trained = train(
            (&layers, &cuts),
            &plan,
            (&pipe, Some(&data)),
            (&sets.0, &sets.1),
            &config,
        )?;
        Ok((trained, plan.stages(), plan.microbatches()))
    })?;
    let Some(outcome) = outcome else {
        return Ok(()); // rank 0 speaks, in a process of its own
    };
    let (trained, stages, microbatches) = outcome.result;
    if let Some([picture, trace]) = &trained.pictures {
        for (path, text) in [(&cli.svg, picture), (&cli.trace, trace)] {
            if let Some(path) = path {
                fs::write(path, text)
                    .with_context(|| format!("cannot write {}", path.display()))?;
            }
        }
    }
    let model = cli.model.to_possible_value();
    let summary = Summary {
        example,
        model: model
            .as_ref()
            .map_or("", |value| value.get_name())
            .to_owned(),
        schedule: match &cli.plan {
            Some(path) => path.display().to_string(),
            None => cli.schedule.to_string(),
        },
        backend: outcome.backend.to_string(),
        device: kind(cli.world.device),
        ranks: outcome.world_size,
        replicas,
        stages,
        microbatches,
        epochs: cli.epochs,
        batch_size: config.batch_size,
        seed: cli.seed,
        trained,
    };
    report(&summary)?;
    let written = [("picture", &cli.svg), ("trace", &cli.trace)].into_iter();
    for (what, path) in written.filter(|_| summary.trained.pictures.is_some()) {
        if let Some(path) = path {
            say(format_args!("  {what:<14} {}", path.display()))?;
        }
    }
    if cli.json {
        say(serde_json::to_string(&summary)?)?;
    }
    Ok(())
}

fn report(summary: &Summary) -> Result<()> {
    let trained = &summary.trained;
    say(format_args!(
        "{} in {} on {}{} ({}, {}): {}, {}",
        summary.model,
        count(summary.stages, "stage"),
        count(summary.ranks, "rank"),
        match summary.replicas {
            1 => String::new(),
            n => format!(" in {n} replicas"),
        },
        summary.backend,
        summary.device,
        summary.schedule,
        match summary.microbatches {
            1 => "1 microbatch".to_owned(),
            n => format!("{n} microbatches"),
        },
    ))?;
    say(format_args!(
        "  test accuracy  {:.1} %",
        100.0 * trained.test_accuracy
    ))?;
    say(format_args!("  training loss  {:.4}", trained.train_loss))?;
    say(format_args!(
        "  a step         {:.2} ms",
        1e3 * trained.step_seconds
    ))?;
    let mebibytes = |bytes: &usize| format!("{:.1}", *bytes as f64 / (1 << 20) as f64);
    let peaks: Vec<String> = trained.peak_bytes.iter().map(mebibytes).collect();
    say(format_args!(
        "  peak memory    {} MiB by rank",
        peaks.join(", ")
    ))?;
    say(format_args!(
        "  parameters     sha256 {}",
        trained.parameters_sha256
    ))
}
