//! The options that every example takes, and how its ranks are started.

use std::fmt;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use clap::{Args, ValueEnum};
use phalanx_comm::{LaunchConfig, ProcessGroup};

/// How many ranks there are, and where they run.
#[derive(Args, Clone, Debug)]
pub struct World {
    /// Number of ranks
    #[arg(long, value_name = "N", default_value = "2", value_parser = at_least_one)]
    pub world_size: usize,
    /// Compute threads of each rank
    #[arg(long, value_name = "N", default_value = "1", value_parser = at_least_one)]
    pub threads: usize,
    /// What carries messages between ranks
    #[arg(long, value_enum, default_value_t = Backend::Local)]
    pub backend: Backend,
    /// The kind of device that each rank computes on
    #[arg(long, value_enum, default_value_t = DeviceKind::Cpu)]
    pub device: DeviceKind,
}

/// What carries messages between ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// Shared memory, between the threads of this process
    Local,
}

/// The kind of device that a rank computes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceKind {
    /// A virtual CPU device
    Cpu,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Backend::Local => "local",
        })
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DeviceKind::Cpu => "cpu",
        })
    }
}

impl World {
    /// Runs `program` on every rank, which computes on its group's device; what each returned, in rank order.
    ///
    /// # Errors
    /// A rank failed; the error names it.
    pub fn launch<T: Send>(
        &self,
        program: impl Fn(Arc<dyn ProcessGroup>) -> Result<T> + Send + Sync,
    ) -> Result<Vec<T>> {
        match (self.backend, self.device) {
            (Backend::Local, DeviceKind::Cpu) => {
                let config = LaunchConfig::new(self.world_size).threads_per_rank(self.threads);
                Ok(phalanx_comm::launch(config, program)?)
            }
        }
    }
}

/// Ends a program: what went wrong as a sentence on stderr, and a code that says so.
pub fn exit(outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Parses a count that cannot be 0.
///
/// # Errors
/// The text is no positive number; the error says what it should be.
pub fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("it should be a whole number, at least 1".to_owned()),
        Ok(count) => Ok(count),
    }
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
