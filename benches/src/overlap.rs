//! `bench overlap`: whether an all_reduce goes on while its ranks compute.
//!
//! A step issues an all_reduce, computes for about as long as that takes alone, then waits for it. Perfect overlap
//! makes the step as long as the longer of the two, none makes it their sum. The computation is of one of three kinds:
//!
//! - of a `device`: it needs no core of ours. The rank's thread looks whether the time is up, and yields its core to
//!   whoever wants it in between, as CUDA does when a thread synchronises (`cudaDeviceScheduleYield`);
//! - of a device for which the rank's thread may `sleep`. A sleep is not free: on the virtual machine that the README's
//!   figures are from, a thread that is busy beside a sleeping one, on the same core, loses 30 to 40 µs to each sleep, for
//!   programming the timer and for its interrupt. Of a step of 0.13 ms that is a third, which the `all_reduce` lacks, and
//!   which says nothing of the library; of a step of 5 ms it is nothing;
//! - of a `core`, which it keeps busy, so that a machine with fewer than two cores per rank shares them out and the step
//!   can come no closer than the work divided by the cores.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, ValueEnum};
use phalanx_comm::{ProcessGroup, ReduceOp};
use phalanx_examples::cli::ranks;
use phalanx_tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};

use crate::collectives::Backend;
use crate::ranks::{launch, slowest};
use crate::sample::{Sampling, Spread, calls_per_sample};
use crate::table::{Table, figure, ratio};

/// What to time.
#[derive(Args, Clone, Debug)]
pub struct OverlapArgs {
    /// Ranks
    #[arg(long, default_value_t = 2, value_parser = ranks)]
    ranks: usize,
    /// Sizes of the message
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "1048576,16777216,67108864"
    )]
    bytes: Vec<usize>,
    /// What carries the messages
    #[arg(long, value_enum, default_value = "local")]
    backend: Backend,
    /// What computes
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = Compute::value_variants().to_vec())]
    compute: Vec<Compute>,
    /// End with one line of JSON per row
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sampling: Sampling,
}

/// What computes while the message is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Compute {
    /// Something that needs no core: the rank's thread looks whether it is done, and yields its core in between.
    Device,
    /// The same, but the rank's thread sleeps, at the price of a timer.
    Sleep,
    /// The rank's thread, with arithmetic in registers.
    Core,
}

impl Compute {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Compute::Device => "device",
            Compute::Sleep => "sleep",
            Compute::Core => "core",
        }
    }

    /// Computes for `amount` seconds, as far as nothing else wants the core.
    fn run(self, amount: f64) {
        match self {
            Compute::Device => {
                let end = Instant::now() + Duration::from_secs_f64(amount);
                while Instant::now() < end {
                    std::thread::yield_now();
                }
            }
            Compute::Sleep => std::thread::sleep(Duration::from_secs_f64(amount)),
            Compute::Core => arithmetic(amount),
        }
    }
}

/// Multiplies and adds in a chain that takes `seconds` at 3 GHz and four cycles a link; how long it really takes is
/// measured alone, too.
fn arithmetic(seconds: f64) {
    let links = (seconds * 3e9 / 8.0) as u64;
    let mut x = black_box(1.0f64);
    for _ in 0..links {
        x = x * 0.5 + 1.0;
    }
    black_box(x);
}

/// Seconds of one sample each: of the all_reduce alone, of the computation alone, and of both together.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Step {
    reduce: f64,
    compute: f64,
    both: f64,
}

#[derive(Serialize)]
struct Row {
    bench: &'static str,
    backend: &'static str,
    ranks: usize,
    bytes: usize,
    compute: &'static str,
    reduce_milliseconds: f64,
    compute_milliseconds: f64,
    both_milliseconds: f64,
    over_longer: f64,
    over_sum: f64,
}

/// What one rank does: samples of a step and of its parts, each that of the slowest rank.
pub(crate) fn time(
    group: &dyn ProcessGroup,
    compute: Compute,
    bytes: usize,
    sampling: Sampling,
) -> Result<Vec<Step>> {
    let input = || Tensor::full([bytes / 4], 1.0, DType::F32, group.device());
    // Mean seconds of `calls` steps; a negative amount computes nothing.
    let timed = |calls: u32, reduce: bool, amount: f64| -> Result<f64> {
        let mut spent = 0.0;
        for _ in 0..calls {
            let input = input()?;
            group.barrier()?.wait()?;
            let start = Instant::now();
            let work = reduce
                .then(|| group.all_reduce(input, ReduceOp::Sum))
                .transpose()?;
            if amount > 0.0 {
                compute.run(amount);
            }
            let output = work.map(|work| work.wait()).transpose()?;
            group.device().synchronize()?;
            spent += start.elapsed().as_secs_f64();
            drop(output);
        }
        slowest(group, spent / f64::from(calls))
    };
    timed(3, true, -1.0)?;
    let calls = calls_per_sample(sampling, timed(5, true, -1.0)?).max(4);
    // So much as takes as long as the all_reduce, all ranks computing at once. Both are timed again each time, by as many
    // calls as half a sample: a few calls alone were off by half.
    let mut amount = timed(calls / 2, true, -1.0)?;
    for _ in 0..4 {
        amount *= timed(calls / 2, true, -1.0)? / timed(calls / 2, false, amount)?;
    }
    (0..sampling.samples)
        .map(|_| {
            Ok(Step {
                reduce: timed(calls, true, -1.0)?,
                compute: timed(calls, false, amount)?,
                both: timed(calls, true, amount)?,
            })
        })
        .collect()
}

/// Runs the benchmark.
///
/// # Errors
/// A rank fails.
pub fn run(args: &OverlapArgs) -> Result<()> {
    let columns = [
        "backend",
        "ranks",
        "size (B)",
        "compute",
        "reduce ms",
        "compute ms",
        "both ms",
        "/ longer",
        "/ sum",
    ];
    let title = "an all_reduce behind computation of the same length: 1 is perfect, 2 is none";
    let mut table = Table::new(title, &columns, args.json)?;
    for &compute in &args.compute {
        for &bytes in &args.bytes {
            let steps = match args.backend {
                Backend::Local | Backend::Nccl => {
                    let first = args.backend.first_device();
                    let all = launch(args.ranks, first, |group| {
                        time(&*group, compute, bytes, args.sampling)
                    })?;
                    all.into_iter().next().unwrap_or_default()
                }
                Backend::Mpi => crate::mpi::overlap(compute, args.ranks, bytes, args.sampling)?,
            };
            let backend = args.backend.name();
            let of = |part: fn(&Step) -> f64| Spread::of(steps.iter().map(part).collect()).median;
            let row = Row {
                bench: "overlap",
                backend,
                ranks: args.ranks,
                bytes,
                compute: compute.name(),
                reduce_milliseconds: 1e3 * of(|step| step.reduce),
                compute_milliseconds: 1e3 * of(|step| step.compute),
                both_milliseconds: 1e3 * of(|step| step.both),
                over_longer: of(|step| step.both / step.reduce.max(step.compute)),
                over_sum: of(|step| step.both / (step.reduce + step.compute)),
            };
            let cells = [
                backend.to_owned(),
                row.ranks.to_string(),
                bytes.to_string(),
                row.compute.to_owned(),
                figure(row.reduce_milliseconds),
                figure(row.compute_milliseconds),
                figure(row.both_milliseconds),
                ratio(row.over_longer),
                ratio(row.over_sum),
            ];
            table.row(&cells, &row)?;
        }
    }
    table.finish()
}
