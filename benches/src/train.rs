//! `bench train`: training steps per second in one process, beside what our own matrix products would give.

use anyhow::Result;
use clap::Args;
use phalanx_examples::cli::threads;
use phalanx_tensor::{DType, Device, cpu};
use serde::Serialize;

use crate::gemm::product;
use crate::options::Common;
use crate::peer::number;
use crate::sample::{Sampling, Spread, rates};
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
    #[command(flatten)]
    common: Common,
}

#[derive(Serialize)]
struct Row {
    bench: &'static str,
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
    peer_channels_last: Option<f64>,
    over_peer_channels_last: Option<f64>,
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
        "ch.last",
        "ratio",
    ];
    let title = "one process: zero gradients, forward, loss, backward, SGD; peer: PyTorch";
    let mut table = Table::new(title, &columns, args.common.json)?;
    for &threads in &args.threads {
        for &work in &args.work {
            // Ours before and after the peer, so that both have seen the same minutes.
            let mut figures = measure(work, threads, args.common.sampling)?;
            let peer = peer(args, work, threads, &[])?;
            let channels_last = match work {
                Work::Cnn => self::peer(args, work, threads, &["--channels-last"])?,
                Work::Mlp | Work::Tiny => None,
            };
            if peer.is_some() {
                figures.extend(measure(work, threads, args.common.sampling)?);
            }
            let steps = Spread::of(figures);
            let gemm = product(1024, threads, DType::F32, args.common.sampling)?.median * 1e9;
            let batch = work.batch_size();
            let row = Row {
                bench: "train",
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
                peer_channels_last: channels_last,
                over_peer_channels_last: channels_last.map(|peer| steps.median / peer),
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
                figure(row.peer_channels_last),
                ratio(row.over_peer_channels_last),
            ];
            table.row(&cells, &row)?;
        }
    }
    table.finish()
}

fn measure(work: Work, threads: usize, sampling: Sampling) -> Result<Vec<f64>> {
    let mut trainer = Trainer::new(work, work.batch_size(), Device::cpu(0), 0)?;
    cpu::with_threads(threads, || rates(sampling, || trainer.step()))
}

fn peer(args: &TrainArgs, work: Work, threads: usize, more: &[&str]) -> Result<Option<f64>> {
    let threads = threads.to_string();
    let mut options = vec!["--work", work.name(), "--threads", &threads];
    options.extend(more);
    let figures = args.common.peer.figures("train.py", &options)?;
    figures
        .map(|figures| number(&figures, "steps_per_second"))
        .transpose()
}
