//! The options that every example takes, and how its ranks are started.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use phalanx_comm::env::Start;
use phalanx_comm::{LaunchConfig, ProcessGroup, Ranks, RunConfig};
use phalanx_tensor::Device;

/// The most ranks that one process runs: each has a thread and a replica of the model.
const MOST_RANKS: usize = 256;
/// The most compute threads of one process.
const MOST_THREADS: usize = 1024;

/// How many ranks there are, and where they run.
#[derive(Args, Clone, Debug)]
pub struct World {
    /// Number of ranks [default: what mpirun has started; else that of the example, and 1 on a card]
    #[arg(long, visible_alias = "ranks", value_name = "N", value_parser = at_least_one, allow_negative_numbers = true)]
    pub world_size: Option<usize>,
    /// Compute threads of each rank
    #[arg(long, value_name = "N", default_value = "1", value_parser = at_least_one, allow_negative_numbers = true)]
    pub threads: usize,
    /// What carries tensors between ranks [default: nccl between cards; else mpi under mpirun, and local without]
    #[arg(long, value_enum)]
    pub backend: Option<Backend>,
    /// What ranks compute on: cpu, or cuda, the cards of each host from the first on; cuda:1 for those from the second
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = device)]
    pub device: Device,
}

/// What carries messages between ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// Shared memory, between the threads of this process
    Local,
    /// MPI, between the processes that mpirun has started
    Mpi,
    /// NCCL, between cards
    Nccl,
}

impl Backend {
    /// Of a program that was started so, whose ranks compute on this device.
    fn of(start: Start, device: Device) -> Backend {
        match start {
            Start::Alone if device.is_cpu() => Backend::Local,
            Start::Torchrun(process) if process.size == 1 => Backend::Local,
            Start::Mpi(_) if device.is_cpu() => Backend::Mpi,
            Start::Alone | Start::Mpi(_) | Start::Torchrun(_) => Backend::Nccl,
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Backend::Local => "local",
            Backend::Mpi => "mpi",
            Backend::Nccl => "nccl",
        })
    }
}

/// What rank 0 brought back, and the world that it was in.
#[derive(Clone, Debug)]
pub struct Outcome<T> {
    /// What its program returned.
    pub result: T,
    /// The world's number of ranks.
    pub world_size: usize,
    /// What carried its tensors.
    pub backend: &'static str,
}

impl World {
    /// Runs `program` on every rank, which computes on its group's device. Under mpirun this process is one rank;
    /// started alone, it is all of them: `alone`, if the command line asks for no number. Brings back what rank 0
    /// returned, in the process where that one lives.
    ///
    /// # Errors
    /// A rank failed; the error names it. Or the world is not what the command line asks for.
    pub fn launch<T: Send>(
        &self,
        alone: usize,
        program: impl Fn(Arc<dyn ProcessGroup>) -> Result<T> + Send + Sync,
    ) -> Result<Option<Outcome<T>>> {
        // A machine may have a single card.
        let alone = if self.device.is_cpu() { alone } else { 1 };
        let start = Start::detect()?;
        let backend = Backend::of(start, self.device);
        if let Some(asked) = self.backend {
            ensure!(
                asked == backend,
                "the backend {asked} was asked for, but the device and the way this program was started give {backend}; \
                 start it by mpirun for mpi, by itself for local, and with --device cuda for nccl"
            );
        }
        let here = match start {
            Start::Alone => self.world_size.unwrap_or(alone),
            _ => 1,
        };
        ensure!(
            here <= MOST_RANKS,
            "--world-size {here} is more than one process runs, which is {MOST_RANKS}; mpirun starts ranks as \
             processes of their own"
        );
        ensure!(
            here * self.threads <= MOST_THREADS,
            "{here} ranks of --threads {} are more threads than one process runs, which is {MOST_THREADS}",
            self.threads
        );
        let ranks = self
            .world_size
            .map_or(Ranks::OrAlone(alone), Ranks::Exactly);
        let launch = LaunchConfig::new(1)
            .threads_per_rank(self.threads)
            .device(self.device);
        let config = RunConfig::new(ranks).launch(launch);
        let results = phalanx_comm::run(config, |group| {
            let (world_size, backend) = (group.size(), group.backend());
            program(group).map(|result| (result, world_size, backend))
        })?;
        let first = results.into_iter().find(|(rank, _)| *rank == 0);
        Ok(first.map(|(_, (result, world_size, backend))| Outcome {
            result,
            world_size,
            backend,
        }))
    }
}

/// Reads a device. Each rank has a CPU device of its own, so no number goes with `cpu`.
///
/// # Errors
/// A sentence that says what can be written.
pub fn device(text: &str) -> Result<Device, String> {
    match text.parse() {
        Ok(device @ Device::Cuda(_)) => Ok(device),
        Ok(device) if text == "cpu" => Ok(device),
        _ => Err("write cpu, cuda or cuda:1".into()),
    }
}

/// The kind of a device: each rank has one of its own.
pub fn kind(device: Device) -> &'static str {
    match device.is_cpu() {
        true => "cpu",
        false => "cuda",
    }
}

/// Prints a line on stdout, where results go.
///
/// # Errors
/// It cannot be written: nobody reads on, as behind `| head`, or the disk is full.
pub fn say(line: impl fmt::Display) -> Result<()> {
    writeln!(io::stdout(), "{line}").context("cannot write to stdout")
}

/// Prints a line on stderr, where everything else goes, in one piece. Where that cannot be written, nobody can be told.
pub fn remark(line: impl fmt::Display) {
    phalanx_comm::report(line);
}

/// Finds out, before the work is done, whether a file can be written to `path`. Creates it where it is
/// not there, and leaves it as it is where it is.
///
/// # Errors
/// It cannot; the error names it.
pub fn writable(path: &Path) -> Result<()> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.map(drop)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Ends a program: what went wrong as a sentence on stderr, and a code that says so.
pub fn exit(outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            remark(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Parses a count that cannot be 0.
///
/// # Errors
/// The text is no positive number, or none that makes sense; the error says what it should be.
pub fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse::<u64>() {
        // Products of two counts cannot overflow.
        Ok(count @ 1..=0xffff_ffff) => Ok(count as usize),
        _ => Err("it should be a whole number, at least 1 and less than 2^32".to_owned()),
    }
}

/// Parses a number of ranks that one process runs.
///
/// # Errors
/// The text is no such number; the error says what it should be.
pub fn ranks(text: &str) -> Result<usize, String> {
    count_up_to(MOST_RANKS, text)
}

/// Parses a number of compute threads.
///
/// # Errors
/// The text is no such number; the error says what it should be.
pub fn threads(text: &str) -> Result<usize, String> {
    count_up_to(MOST_THREADS, text)
}

fn count_up_to(most: usize, text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| (1..=most).contains(count));
    count.ok_or_else(|| format!("it should be a whole number, at least 1 and at most {most}"))
}

/// Parses a finite number that is not negative.
///
/// # Errors
/// The text is no such number; the error says what it should be.
pub fn not_negative(text: &str) -> Result<f64, String> {
    let number = text
        .parse()
        .ok()
        .filter(|number: &f64| number.is_finite() && *number >= 0.0);
    number.ok_or_else(|| "it should be a number, 0 or more".to_owned())
}
