//! `bench startup`: from the start of the process to the end of the first DDP step, and the memory held then.

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use clap::Args;
use phalanx_examples::cli::ranks;
use serde::Serialize;

use crate::ddp;
use crate::peer::{PeerArgs, number};
use crate::sample::Spread;
use crate::table::{Table, figure, ratio};
use crate::work::Work;

/// What to start.
#[derive(Args, Clone, Debug)]
pub struct StartupArgs {
    /// Workloads
    #[arg(long, value_delimiter = ',', value_enum, default_value = "mlp")]
    pub work: Vec<Work>,
    /// Ranks
    #[arg(long, default_value = "2", value_parser = ranks)]
    pub ranks: usize,
    /// Number of starts; the median counts
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub samples: u32,
    /// End with one line of JSON per row
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    peer: PeerArgs,
}

/// What the process that is started does. It is this program, called with `first-step`.
#[derive(Args, Clone, Debug)]
pub struct FirstStepArgs {
    /// The workload
    #[arg(long, value_enum)]
    pub work: Work,
    /// Ranks
    #[arg(long, value_parser = ranks)]
    pub ranks: usize,
}

#[derive(Serialize)]
struct Row {
    bench: &'static str,
    work: Work,
    ranks: usize,
    seconds: f64,
    min: f64,
    max: f64,
    rss_mib_per_rank: f64,
    peer_seconds: Option<f64>,
    peer_over_ours: Option<f64>,
    peer_rss_mib_per_rank: Option<f64>,
}

/// Takes one DDP step and prints when it was done, in nanoseconds since 1970.
///
/// # Errors
/// The step fails.
pub fn first_step(args: &FirstStepArgs) -> Result<()> {
    ddp::one_step(args.work, args.ranks)?;
    println!("{} {}", now()?, resident_bytes()?);
    Ok(())
}

/// Runs the benchmark.
///
/// # Errors
/// A start, or a peer, fails.
pub fn run(args: &StartupArgs) -> Result<()> {
    let columns = [
        "work",
        "ranks",
        "seconds",
        "min",
        "max",
        "MiB/rank",
        "peer s",
        "peer/ours",
        "peer MiB/rank",
    ];
    let title = "process start to the end of the first DDP step; peak resident memory over ranks";
    let mut table = Table::new(title, &columns, args.json)?;
    for &work in &args.work {
        let starts = (0..args.samples)
            .map(|_| start(work, args.ranks))
            .collect::<Result<Vec<_>>>()?;
        let (seconds, bytes): (Vec<_>, Vec<_>) = starts.into_iter().unzip();
        let ours = Spread::of(seconds);
        let options = ["--work", work.name(), "--ranks", &args.ranks.to_string()];
        let peer = args.peer.figures("startup.py", &options)?;
        let of_peer = |key| peer.as_ref().map(|peer| number(peer, key)).transpose();
        let peer_seconds = of_peer("seconds")?;
        let row = Row {
            bench: "startup",
            work,
            ranks: args.ranks,
            seconds: ours.median,
            min: ours.min,
            max: ours.max,
            rss_mib_per_rank: Spread::of(bytes).median / args.ranks as f64 / f64::from(1 << 20),
            peer_seconds,
            peer_over_ours: peer_seconds.map(|peer| peer / ours.median),
            peer_rss_mib_per_rank: of_peer("rss_mib_per_rank")?,
        };
        let cells = [
            work.name().to_owned(),
            args.ranks.to_string(),
            figure(row.seconds),
            figure(row.min),
            figure(row.max),
            figure(row.rss_mib_per_rank),
            figure(row.peer_seconds),
            ratio(row.peer_over_ours),
            figure(row.peer_rss_mib_per_rank),
        ];
        table.row(&cells, &row)?;
    }
    table.finish()
}

/// Starts the process once: seconds to the end of its first step, and its peak resident memory in bytes.
fn start(work: Work, ranks: usize) -> Result<(f64, f64)> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([
        "first-step",
        "--work",
        work.name(),
        "--ranks",
        &ranks.to_string(),
    ]);
    let begun = now()?;
    let output = command
        .output()
        .context("cannot start this program once more")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let failed = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "the first step failed: {}",
        failed.trim()
    );
    let (done, bytes) = said
        .trim()
        .split_once(' ')
        .context("the first step printed no figures")?;
    Ok((
        done.parse::<u128>()?.saturating_sub(begun) as f64 * 1e-9,
        bytes.parse()?,
    ))
}

fn now() -> Result<u128> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos())
}

/// The most memory that this process has held in RAM, in bytes; 0 where the system does not say.
fn resident_bytes() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let Some(line) = line else { return Ok(0) };
    let kibibytes = line.trim().trim_end_matches(" kB").parse::<u64>();
    Ok(kibibytes.context("VmHWM is no number")? * 1024)
}
