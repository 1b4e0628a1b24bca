//! Measurements between processes: this program starts itself under mpirun, and plain C beside it.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use phalanx_comm::{Ranks, run};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::collectives::{self, Op};
use crate::overlap::{self, Compute, Step};
use crate::peer::{CProgram, json_lines, number, output};
use crate::sample::{Sampling, Spread};

/// What one rank times: the other side of `start`.
#[derive(Args, Clone, Debug)]
pub struct RankArgs {
    #[command(subcommand)]
    what: What,
    #[arg(long, global = true, default_value_t = 0)]
    bytes: usize,
    #[command(flatten)]
    sampling: Sampling,
}

#[derive(Subcommand, Clone, Debug)]
enum What {
    Collective { op: Op },
    Overlap { compute: Compute },
}

/// What rank 0 prints: samples on the slowest rank, and how many elements of all results were wrong.
#[derive(Serialize, Deserialize)]
struct Figures<T> {
    samples: Vec<T>,
    wrong: usize,
}

/// The command that runs `program` on so many processes of this machine, each with cores of its own where they suffice,
/// as `cargo xtask launch` does it.
fn mpirun(ranks: usize, program: &Path) -> Command {
    let mut command = Command::new("mpirun");
    command.args(["--oversubscribe", "-n", &ranks.to_string()]);
    match cores_of_a_rank(ranks) {
        None => command.args(["--bind-to", "none"]),
        Some(each) => command.args([
            "--use-hwthread-cpus",
            "--map-by",
            &format!("slot:PE={each}"),
            "--bind-to",
            "hwthread:if-supported",
        ]),
    };
    command.arg(program);
    // In containers one is root.
    command.envs([
        ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
        ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
    ]);
    command
}

/// How many cores each of so many ranks gets for itself, where all of the machine's are there for them, and suffice: mpirun
/// knows nothing of quotas.
fn cores_of_a_rank(ranks: usize) -> Option<usize> {
    let usable = std::thread::available_parallelism().ok()?.get();
    let online = std::fs::read_to_string("/sys/devices/system/cpu/online").ok()?;
    let ranges = online.trim().split(',').map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        (last + 1).checked_sub(first)
    });
    let online: usize = ranges.sum::<Option<usize>>()?;
    (usable == online && usable % ranks == 0).then_some(usable / ranks)
}

/// Starts this program on so many processes, for `what`; what rank 0 printed.
fn start<T: DeserializeOwned>(
    what: [&str; 2],
    ranks: usize,
    bytes: usize,
    sampling: Sampling,
) -> Result<Figures<T>> {
    let mut command = mpirun(ranks, &std::env::current_exe()?);
    command.arg("mpi-rank");
    command.args(["--seconds", &sampling.seconds.to_string()]);
    command.args(["--samples", &sampling.samples.to_string()]);
    command.args(what).args(["--bytes", &bytes.to_string()]);
    let line = json_lines("mpirun", &output(&mut command)?)?;
    let line = line
        .into_iter()
        .next()
        .context("rank 0 printed no figures")?;
    Ok(serde_json::from_value(line)?)
}

/// Seconds of a call on so many processes, and how many elements of all results were wrong.
///
/// # Errors
/// There is no mpirun, or the processes fail.
pub(crate) fn measure(
    op: Op,
    ranks: usize,
    bytes: usize,
    sampling: Sampling,
) -> Result<(Spread, usize)> {
    let what = ["collective", &op.name()];
    let Figures { samples, wrong } = start(what, ranks, bytes, sampling)?;
    Ok((Spread::of(samples), wrong))
}

/// Samples of a step with computation behind an all_reduce.
///
/// # Errors
/// There is no mpirun, or the processes fail.
pub(crate) fn overlap(
    compute: Compute,
    ranks: usize,
    bytes: usize,
    sampling: Sampling,
) -> Result<Vec<Step>> {
    Ok(start(["overlap", compute.name()], ranks, bytes, sampling)?.samples)
}

/// One process of those.
///
/// # Errors
/// The group has failed.
pub fn rank(args: &RankArgs) -> Result<()> {
    let RankArgs {
        bytes, sampling, ..
    } = *args;
    let outcomes = run(Ranks::OrAlone(1), |group| match args.what {
        What::Collective { op } => {
            let (samples, wrong) = collectives::time(&*group, op, bytes, sampling)?;
            let wrong = crate::ranks::sum(&*group, wrong)?;
            Ok(serde_json::to_string(&Figures { samples, wrong })?)
        }
        What::Overlap { compute } => {
            let samples = overlap::time(&*group, compute, bytes, sampling)?;
            anyhow::Ok(serde_json::to_string(&Figures { samples, wrong: 0 })?)
        }
    })?;
    match outcomes.first() {
        Some((0, figures)) => println!("{figures}"),
        Some(_) => {}
        None => anyhow::bail!("this process has no rank"),
    }
    Ok(())
}

/// Microseconds of the plain C program, on so many processes.
///
/// # Errors
/// It fails.
pub(crate) fn plain_c(
    program: &CProgram,
    ranks: usize,
    bytes: usize,
    sampling: Sampling,
) -> Result<f64> {
    let calls = ((2e8 / bytes as f64) as usize).clamp(2, 2000);
    let mut command = mpirun(ranks, program.path());
    command.args([bytes, sampling.samples as usize, calls].map(|n| n.to_string()));
    let lines = json_lines("mpi_coll", &output(&mut command)?)?;
    ensure!(lines.len() == 1, "mpi_coll printed {} lines", lines.len());
    number(&lines[0], "microseconds")
}
