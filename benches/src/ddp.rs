//! `bench ddp`: data-parallel steps per second, in turn with one process alone and with replicas that do not communicate.
//!
//! A share of one's own run without communication says more than a speed-up over one process: the faster a step is,
//! the harder it is to scale.

use std::time::Instant;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use phalanx_comm::ProcessGroup;
use phalanx_examples::cli::ranks;
use serde::Serialize;

use crate::options::Common;
use crate::peer::number;
use crate::ranks::{launch, slowest};
use phalanx_tensor::Device;

use crate::sample::{Spread, calls_per_sample};
use crate::table::{Table, figure, ratio};
use crate::work::{DdpTrainer, Trainer, Work};

/// What to train.
#[derive(Args, Clone, Debug)]
pub struct DdpArgs {
    /// Workloads
    #[arg(
        long,
        value_delimiter = ',',
        value_enum,
        default_value = "mlp,tiny,cnn"
    )]
    pub work: Vec<Work>,
    /// Ranks, of one compute thread each
    #[arg(long, value_delimiter = ',', default_value = "2", value_parser = ranks)]
    pub ranks: Vec<usize>,
    /// Whether the batch is shared out, or each rank has a whole one
    #[arg(long, value_enum, default_value = "strong")]
    pub scaling: Scaling,
    /// Where rank 0 trains: cpu, or a card, as in cuda:0; the others follow on the next ones
    #[arg(long, default_value = "cpu")]
    pub device: Device,
    #[command(flatten)]
    common: Common,
}

/// What grows with the number of ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Scaling {
    /// Nothing: the batch is shared out.
    Strong,
    /// The batch: each rank has a whole one.
    Weak,
}

#[derive(Serialize)]
struct Row {
    bench: &'static str,
    device: String,
    work: Work,
    ranks: usize,
    scaling: Scaling,
    steps_per_second: f64,
    min: f64,
    max: f64,
    samples_per_second: f64,
    speedup_over_one: f64,
    share_of_replicas: f64,
    exposed_ms: f64,
    solo_steps_per_second: f64,
    replica_steps_per_second: f64,
    peer_samples_per_second: Option<f64>,
    over_peer: Option<f64>,
}

/// Samples of each way to train, in steps per second.
#[derive(Default)]
struct Figures {
    solo: Vec<f64>,
    replicas: Vec<f64>,
    ddp: Vec<f64>,
}

/// What takes a step: a trainer of either kind.
type Stepper<'a> = &'a mut dyn FnMut() -> Result<()>;

fn measure(args: &DdpArgs, work: Work, ranks: usize) -> Result<Figures> {
    let sampling = args.common.sampling;
    let whole = work.batch_size();
    let share = share(whole, ranks, args.scaling)?;
    let outcomes = launch(ranks, args.device, move |group| {
        let device = group.device();
        let mut solo = Trainer::new(work, whole, device, 0)?;
        let mut replica = Trainer::new(work, share, device, 1 + group.rank() as u64)?;
        let mut ddp = DdpTrainer::new(work, share, group.clone())?;

        let first = group.rank() == 0;
        let mut ways: [(bool, Stepper<'_>); 3] = [
            (first, &mut || solo.step()),
            (true, &mut || replica.step()),
            (true, &mut || ddp.step()),
        ];
        let mut steps = [0; 3];
        for ((takes_part, step), steps) in ways.iter_mut().zip(&mut steps) {
            time(&*group, *takes_part, step, 5)?;
            let seconds = time(&*group, *takes_part, step, 5)? / 5.0;
            *steps = calls_per_sample(sampling, seconds).max(2);
        }
        let mut rates: [Vec<f64>; 3] = Default::default();
        for _ in 0..sampling.samples {
            for (way, ((takes_part, step), &steps)) in ways.iter_mut().zip(&steps).enumerate() {
                let seconds = time(&*group, *takes_part, step, steps)?;
                rates[way].push(f64::from(steps) / seconds);
            }
        }
        ddp.check_replicas()?;
        Ok(rates)
    })?;
    let [solo, replicas, ddp] = outcomes.into_iter().next().unwrap_or_default();
    Ok(Figures {
        solo,
        replicas,
        ddp,
    })
}

/// Seconds that the slowest rank takes for `steps` steps. A rank that takes no part sleeps meanwhile.
fn time(group: &dyn ProcessGroup, takes_part: bool, step: Stepper<'_>, steps: u32) -> Result<f64> {
    group.device().synchronize()?;
    group.barrier()?.wait()?;
    let start = Instant::now();
    for _ in 0..if takes_part { steps } else { 0 } {
        step()?;
    }
    group.device().synchronize()?;
    slowest(
        group,
        if takes_part {
            start.elapsed().as_secs_f64()
        } else {
            0.0
        },
    )
}

/// Images of one rank's step.
fn share(whole: usize, ranks: usize, scaling: Scaling) -> Result<usize> {
    ensure!(
        ranks > 0 && ranks <= whole,
        "{whole} images cannot be shared out to {ranks} ranks"
    );
    Ok(if scaling == Scaling::Strong {
        whole / ranks
    } else {
        whole
    })
}

/// Takes one data-parallel step on `ranks` ranks, from nothing.
///
/// # Errors
/// The step fails.
pub fn one_step(work: Work, ranks: usize) -> Result<()> {
    let share = share(work.batch_size(), ranks, Scaling::Strong)?;
    launch(ranks, Device::cpu(0), move |group| {
        DdpTrainer::new(work, share, group)?.step()
    })
    .map(drop)
}

/// Runs the benchmark.
///
/// # Errors
/// A step or a peer fails, or the replicas end with different parameters.
pub fn run(args: &DdpArgs) -> Result<()> {
    let columns = [
        "work",
        "ranks",
        "steps/s",
        "min",
        "max",
        "samples/s",
        "over one",
        "of replicas",
        "exposed ms",
        "peer smp/s",
        "ratio",
    ];
    let title = match args.device {
        Device::Cpu(_) => {
            "data-parallel training, one thread per rank; peer: DistributedDataParallel over gloo"
        }
        _ => "data-parallel training, one card per rank; peer: DistributedDataParallel over NCCL",
    };
    let mut table = Table::new(title, &columns, args.common.json)?;
    for (&ranks, &work) in args
        .ranks
        .iter()
        .flat_map(|ranks| args.work.iter().map(move |work| (ranks, work)))
    {
        // Ours before and after the peer, so that both have seen the same minutes.
        let mut figures = measure(args, work, ranks)?;
        let peer = peer(args, work, ranks)?;
        if peer.is_some() {
            let more = measure(args, work, ranks)?;
            figures.solo.extend(more.solo);
            figures.replicas.extend(more.replicas);
            figures.ddp.extend(more.ddp);
        }
        let [solo, replicas, ddp] = [figures.solo, figures.replicas, figures.ddp].map(Spread::of);
        let whole = work.batch_size();
        let samples = ddp.median * (share(whole, ranks, args.scaling)? * ranks) as f64;
        let row = Row {
            bench: "ddp",
            device: args.device.to_string(),
            work,
            ranks,
            scaling: args.scaling,
            steps_per_second: ddp.median,
            min: ddp.min,
            max: ddp.max,
            samples_per_second: samples,
            speedup_over_one: samples / (solo.median * whole as f64),
            share_of_replicas: ddp.median / replicas.median,
            exposed_ms: 1e3 / ddp.median - 1e3 / replicas.median,
            solo_steps_per_second: solo.median,
            replica_steps_per_second: replicas.median,
            peer_samples_per_second: peer,
            over_peer: peer.map(|peer| samples / peer),
        };
        let cells = [
            work.name().to_owned(),
            ranks.to_string(),
            figure(row.steps_per_second),
            figure(row.min),
            figure(row.max),
            figure(row.samples_per_second),
            ratio(row.speedup_over_one),
            figure(row.share_of_replicas),
            figure(row.exposed_ms),
            figure(row.peer_samples_per_second),
            ratio(row.over_peer),
        ];
        table.row(&cells, &row)?;
    }
    table.finish()
}

/// The peer's samples per second over all its ranks.
fn peer(args: &DdpArgs, work: Work, ranks: usize) -> Result<Option<f64>> {
    let scaling = args.scaling.to_possible_value();
    let scaling = scaling.as_ref().map_or("strong", |value| value.get_name());
    let (ranks, device) = (ranks.to_string(), args.device.to_string());
    let options = [
        "--device",
        device.split(':').next().unwrap_or(&device),
        "--work",
        work.name(),
        "--ranks",
        &ranks,
        "--scaling",
        scaling,
    ];
    let figures = args.common.peer.figures("ddp.py", &options)?;
    figures
        .map(|figures| number(&figures, "samples_per_second"))
        .transpose()
}
