//! Measurements between processes: this program starts itself under mpirun, and plain C beside it.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;
use phalanx_comm::{Ranks, run};
use serde::{Deserialize, Serialize};

use crate::collectives::{Op, time};
use crate::peer::{CProgram, json_lines, number, output};
use crate::sample::{Sampling, Spread};

/// What one rank times: the other side of `measure`.
#[derive(Args, Clone, Debug)]
pub struct RankArgs {
    #[arg(long, value_enum)]
    op: Op,
    #[arg(long)]
    bytes: usize,
    #[command(flatten)]
    sampling: Sampling,
}

#[derive(Serialize, Deserialize)]
struct Figures {
    samples: Vec<f64>,
    wrong: usize,
}

/// The command that runs `program` on so many processes of this machine.
fn mpirun(ranks: usize, program: &Path) -> Command {
    let mut command = Command::new("mpirun");
    command.args([
        "--oversubscribe",
        "--bind-to",
        "none",
        "-n",
        &ranks.to_string(),
    ]);
    command.arg(program);
    // In containers one is root.
    command.envs([
        ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
        ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
    ]);
    command
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
    let mut command = mpirun(ranks, &std::env::current_exe()?);
    command.args([
        "mpi-rank",
        "--op",
        &op.name(),
        "--bytes",
        &bytes.to_string(),
    ]);
    command.args(["--seconds", &sampling.seconds.to_string()]);
    command.args(["--samples", &sampling.samples.to_string()]);
    let line = json_lines("mpirun", &output(&mut command)?)?;
    let line = line
        .into_iter()
        .next()
        .context("rank 0 printed no figures")?;
    let Figures { samples, wrong } = serde_json::from_value(line)?;
    Ok((Spread::of(samples), wrong))
}

/// One process of `measure`.
///
/// # Errors
/// The group has failed.
pub fn rank(args: &RankArgs) -> Result<()> {
    let outcomes = run(Ranks::OrAlone(1), |group| {
        let (samples, wrong) = time(&*group, args.op, args.bytes, args.sampling)?;
        let wrong = crate::ranks::sum(&*group, wrong)?;
        anyhow::Ok(Figures { samples, wrong })
    })?;
    match outcomes.first() {
        Some((0, figures)) => println!("{}", serde_json::to_string(figures)?),
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
