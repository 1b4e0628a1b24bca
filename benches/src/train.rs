//! `bench train`: training steps per second in one process, beside what our own matrix products would give.

use anyhow::Result;
use clap::Args;
use phalanx_examples::cli::threads;
use phalanx_tensor::{DType, Device, cpu};
use serde::Serialize;

use crate::gemm::product;
use crate::options::Common;
use crate::peer::number;
use crate::sample::{Sampling, Spread, rates_until};
use crate::table::{Table, figure, ratio};
use crate::work::{Trainer, Work};

/// What to train.
#[derive(Args, Clone, Debug)]
pub struct TrainArgs {
    /// Workloads
    #[arg(
        long,
        value_delimiter = ',',
        value_enum,
        default_value = "mlp,tiny,cnn"
    )]
    pub work: Vec<Work>,
    /// Compute threads
    #[arg(long, value_delimiter = ',', default_value = "1,2", value_parser = threads)]
    pub threads: Vec<usize>,
    /// Where to train: cpu, or a card, as in cuda:0
    #[arg(long, default_value = "cpu")]
    pub device: Device,
    #[command(flatten)]
    common: Common,
}

#[derive(Serialize)]
struct Row {
    bench: &'static str,
    device: String,
    work: Work,
    threads: usize,
    steps_per_second: f64,
    min: f64,
    max: f64,
    batch: usize,
    samples_per_second: f64,
    /// Of the steps per second that the step's products alone would allow, at our own rate for 1,024³.
    share_of_gemm: f64,
    peer: Option<f64>,
    over_peer: Option<f64>,
    /// PyTorch as it is fastest: convolutions with the channels last on a CPU, compiled on a card.
    best_peer: Option<f64>,
    over_best_peer: Option<f64>,
}

/// Runs the benchmark.
///
/// # Errors
/// A step or a peer fails.
pub fn run(args: &TrainArgs) -> Result<()> {
    let columns = [
        "work",
        "threads",
        "steps/s",
        "min",
        "max",
        "samples/s",
        "of GEMM",
        "peer",
        "ratio",
        "best",
        "ratio",
    ];
    let title = "one process: zero gradients, forward, loss, backward, SGD; peer: PyTorch; best: with channels last \
                 on a CPU, compiled on a card";
    let mut table = Table::new(title, &columns, args.common.json)?;
    let device = args.device;
    // On a card, one thread issues all work.
    let all = match device {
        Device::Cpu(_) => &args.threads[..],
        _ => &[1],
    };
    for &threads in all {
        for &work in &args.work {
            // Ours before and after the peer, so that both have seen the same minutes.
            let mut figures = measure(work, threads, device, args.common.sampling)?;
            let peer = peer(args, work, threads, &[])?;
            let best = match (device, work) {
                (Device::Cpu(_), Work::Cnn) => Some("--channels-last"),
                (Device::Cpu(_), Work::Mlp | Work::Tiny) => None,
                _ => Some("--compile"),
            };
            let best = best.map(|best| self::peer(args, work, threads, &[best]));
            let best = best.transpose()?.flatten();
            if peer.is_some() {
                figures.extend(measure(work, threads, device, args.common.sampling)?);
            }
            let steps = Spread::of(figures);
            let gemm =
                product(1024, threads, DType::F32, device, args.common.sampling)?.median * 1e9;
            let batch = work.batch_size();
            let row = Row {
                bench: "train",
                device: device.to_string(),
                work,
                threads,
                steps_per_second: steps.median,
                min: steps.min,
                max: steps.max,
                batch,
                samples_per_second: steps.median * batch as f64,
                share_of_gemm: steps.median * work.flops(batch) / gemm,
                peer,
                over_peer: peer.map(|peer| steps.median / peer),
                best_peer: best,
                over_best_peer: best.map(|peer| steps.median / peer),
            };
            let cells = [
                work.name().to_owned(),
                threads.to_string(),
                figure(row.steps_per_second),
                figure(row.min),
                figure(row.max),
                figure(row.samples_per_second),
                figure(row.share_of_gemm),
                figure(row.peer),
                ratio(row.over_peer),
                figure(row.best_peer),
                ratio(row.over_best_peer),
            ];
            table.row(&cells, &row)?;
        }
    }
    table.finish()
}

fn measure(work: Work, threads: usize, device: Device, sampling: Sampling) -> Result<Vec<f64>> {
    let mut trainer = Trainer::new(work, work.batch_size(), device, 0)?;
    cpu::with_threads(threads, || {
        rates_until(sampling, || trainer.step(), || Ok(device.synchronize()?))
    })
}

fn peer(args: &TrainArgs, work: Work, threads: usize, more: &[&str]) -> Result<Option<f64>> {
    let threads = threads.to_string();
    let device = args.device.to_string();
    let mut options = vec![
        "--work",
        work.name(),
        "--threads",
        &threads,
        "--device",
        &device,
    ];
    options.extend(more);
    let figures = args.common.peer.figures("train.py", &options)?;
    figures
        .map(|figures| number(&figures, "steps_per_second"))
        .transpose()
}
