//! Trains the two-layer model of PyTorch's tutorial on model parallelism with its first layer on one device and its
//! second on another: activations go from the one to the other, and gradients come back.

use std::fmt;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use clap::Parser;
use phalanx_autograd::Tape;
use phalanx_autograd::nn::{Factory, Linear, Module, Relu, Sequential, mse};
use phalanx_autograd::optim::{Optimizer, Sgd, SgdConfig};
use phalanx_examples::cli::{at_least_one, device, exit, not_negative, say};
use phalanx_examples::progress::Progress;
use phalanx_examples::report::{count, fingerprint};
use phalanx_tensor::{DType, Device, Rng, Tensor};
use serde::Serialize;

/// The sizes of the tutorial.
const BATCH: usize = 20;
const INPUTS: usize = 10;
const HIDDEN: usize = 10;
const OUTPUTS: usize = 5;

/// Trains a model of two layers on two devices, one layer on each.
#[derive(Parser)]
struct Cli {
    /// What the layers are on: cpu, for two virtual devices cpu:0 and cpu:1, or cuda, for cuda:0 and cuda:1; cuda:1 for
    /// cuda:1 and cuda:2
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = device)]
    device: Device,
    /// Steps of SGD
    #[arg(long, value_name = "N", default_value = "200", value_parser = at_least_one, allow_negative_numbers = true)]
    steps: usize,
    /// The learning rate
    #[arg(long, value_name = "RATE", default_value = "0.1", value_parser = not_negative, allow_negative_numbers = true)]
    lr: f64,
    /// Where all random numbers start
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    seed: u64,
    /// End with one line of JSON
    #[arg(long)]
    json: bool,
}

/// What was trained, where, and to what effect. Serialised, it is the line of JSON.
#[derive(Serialize)]
struct Summary {
    example: &'static str,
    steps: usize,
    seed: u64,
    /// Before each step.
    losses: Vec<f32>,
    /// Of the first layer and of the second.
    devices: [String; 2],
    /// What each device holds of the model.
    bytes_per_device: [usize; 2],
    /// The most that each device held at a time in training.
    peak_bytes_per_device: [usize; 2],
    seconds: f64,
    /// Of the bytes of all parameters, one after the other, in the order of their names' visit.
    parameters_sha256: String,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, second] = &self.devices;
        writeln!(
            f,
            "two layers on {first} and {second}: {}",
            count(self.steps, "step")
        )?;
        let end = |loss: Option<&f32>| loss.copied().unwrap_or(f32::NAN);
        let (from, to) = (end(self.losses.first()), end(self.losses.last()));
        writeln!(f, "  loss           {from:.4} at first, {to:.4} at last")?;
        writeln!(f, "  training time  {:.3} s", self.seconds)?;
        for (i, device) in self.devices.iter().enumerate() {
            let (holds, peak) = (self.bytes_per_device[i], self.peak_bytes_per_device[i]);
            writeln!(
                f,
                "  {device:<13}  {holds} bytes of parameters, {peak} at most in training"
            )?;
        }
        write!(f, "  parameters     sha256 {}", self.parameters_sha256)
    }
}

fn main() -> ExitCode {
    exit(run(&Cli::parse()))
}

fn run(cli: &Cli) -> Result<()> {
    let summary = train(cli)?;
    say(&summary)?;
    if cli.json {
        say(serde_json::to_string(&summary)?)?;
    }
    Ok(())
}

fn train(cli: &Cli) -> Result<Summary> {
    let devices = match cli.device {
        Device::Cpu(first) => [Device::cpu(first), Device::cpu(first + 1)],
        Device::Cuda(first) => [Device::cuda(first), Device::cuda(first + 1)],
        other => bail!("layers do not run on {other}"),
    };
    let [first, second] = devices;
    // Before anything is done: there may be a single card.
    let live = || -> Result<[usize; 2]> { Ok([first.memory()?.live, second.memory()?.live]) };
    let before = live()?;

    let mut f = Factory::new(first, cli.seed);
    let model = Sequential::new()
        .with(Linear::new(INPUTS, HIDDEN, &mut f)?)
        .with(Relu)
        .with(Linear::new(HIDDEN, OUTPUTS, &mut f)?)
        .over(&devices, &[2])?;
    let after = live()?;
    devices.iter().try_for_each(|device| device.reset_peak())?;

    // The batch is where the first layer is, and the targets are where the loss is.
    let mut rng = Rng::new(cli.seed).fold_in(1);
    let x = Tensor::randn([BATCH, INPUTS], DType::F32, first, &mut rng)?;
    let y = Tensor::randn([BATCH, OUTPUTS], DType::F32, second, &mut rng)?;
    let config = SgdConfig {
        lr: cli.lr,
        ..SgdConfig::default()
    };
    let mut sgd = Sgd::new(model.parameters(), config)?;

    let progress = Progress::start(0, cli.steps);
    let start = Instant::now();
    let mut losses = Vec::with_capacity(cli.steps);
    for _ in 0..cli.steps {
        let tape = Tape::new();
        let output = model.forward(&tape, &tape.constant(x.clone()))?;
        let loss = mse(&output, &tape.constant(y.clone()))?;
        sgd.step(&tape.backward(&loss)?)?;
        progress.step(loss.value())?;
        losses.push(loss.into_value());
    }
    // Read at the end: a read waits for the cards, which would idle after each step.
    let losses = Tensor::stack(&losses.iter().collect::<Vec<_>>(), 0)?.to_vec::<f32>()?;
    let seconds = start.elapsed().as_secs_f64();
    progress.finish();
    if let Some(step) = losses.iter().position(|loss| !loss.is_finite()) {
        let loss = losses[step];
        bail!(
            "the training has diverged: the loss before step {} is {loss}; a lower learning rate may help",
            step + 1
        );
    }

    let mut peaks = [0; 2];
    for (peak, device) in peaks.iter_mut().zip(devices) {
        *peak = device.memory()?.peak;
    }
    let holds = [after[0] - before[0], after[1] - before[1]];
    ensure!(
        model
            .parameters()
            .iter()
            .map(|p| p.device())
            .eq([first, first, second, second]),
        "a parameter has left its device"
    );
    Ok(Summary {
        example: "model_parallel",
        steps: cli.steps,
        seed: cli.seed,
        losses,
        devices: devices.map(|device| device.to_string()),
        bytes_per_device: holds,
        peak_bytes_per_device: peaks,
        seconds,
        parameters_sha256: fingerprint(&model.parameters())?,
    })
}
