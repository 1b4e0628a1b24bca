//! `cargo xtask launch`: builds an example with MPI and starts it as processes, on this machine or on several "hosts"
//! that it makes of it.

use std::process::ExitCode;

use anyhow::{Result, ensure};

use crate::cargo::{cargo, root, succeed};
use crate::hosts::Hosts;
use crate::job::{self, Job};
use crate::signals;

/// What to start, and how often.
#[derive(clap::Args)]
pub struct Args {
    /// Number of ranks, each a process
    #[arg(short = 'n', long, default_value = "2")]
    ranks: usize,
    /// Spread them over so many hosts: network namespaces of this machine (needs root and ip)
    #[arg(long, value_name = "N")]
    hosts: Option<usize>,
    /// An example: ddp, collectives, ...
    example: String,
    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    ensure!(args.ranks > 0, "a world of 0 ranks has nothing to run");
    if let Some(obstacle) = job::obstacle() {
        anyhow::bail!("{obstacle}");
    }
    let mut build = cargo([
        "build",
        "--quiet",
        "--release",
        "--package",
        "phalanx-examples",
    ]);
    build.args(["--features", "mpi", "--bin", &args.example]);
    succeed("the build", &mut build)?;
    signals::catch();
    let hosts = args.hosts.map(Hosts::new).transpose()?;
    let job = Job {
        program: &root().join("target/release").join(&args.example),
        args: &args.args,
        ranks: args.ranks,
        hosts: hosts.as_ref(),
        limit: None,
    };
    let end = job.run(
        |line| {
            let text = match line.rank {
                Some(rank) => format!("[{rank}] {}", line.text),
                None => line.text.clone(),
            };
            match line.is_error {
                true => eprintln!("{text}"),
                false => println!("{text}"),
            }
        },
        || (),
    )?;
    Ok(ExitCode::from(end.code))
}
