//! `cargo xtask launch`: builds an example with MPI and starts it as processes, on this machine or on several "hosts"
//! that it makes of it.

use std::io::{self, Write, stdout};
use std::process::ExitCode;

use anyhow::{Result, ensure};

use crate::cargo::{artifacts, cargo, of_tests, program_of};
use crate::hosts::Hosts;
use crate::job::Job;
use crate::lines::{Line, report};
use crate::machine;
use crate::signals;

/// The most processes that are started: each has threads, files and memory of its own.
const MOST_RANKS: usize = 1024;

/// What to start, and how often.
#[derive(clap::Args)]
pub struct Args {
    /// Number of ranks, each a process
    #[arg(short = 'n', long, default_value = "2")]
    ranks: usize,
    /// Spread them over so many hosts: network namespaces of this machine (needs root and ip)
    #[arg(long, value_name = "N")]
    hosts: Option<usize>,
    /// Take the build of the tests
    #[arg(long, hide = true)]
    tests: bool,
    /// An example: ddp, collectives, ...
    example: String,
    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    ensure!(
        (1..=MOST_RANKS).contains(&args.ranks),
        "-n is {}; it should be at least 1 and at most {MOST_RANKS} processes on one machine",
        args.ranks
    );
    if let Some(hosts) = args.hosts {
        ensure!(
            (1..=args.ranks).contains(&hosts),
            "--hosts is {hosts}; it should be at least 1 and at most the number of ranks, {}",
            args.ranks
        );
    }
    if let Some(obstacle) = machine::obstacle() {
        anyhow::bail!("{obstacle}");
    }
    let mut build = match args.tests {
        true => of_tests(&["build", "--test=cells"]),
        // As the README has it.
        false => {
            let package = ["build", "--release", "--package=phalanx-examples"];
            let mut build = cargo(package);
            build.arg("--features=mpi");
            build
        }
    };
    build.args(["--quiet", "--bin", &args.example]);
    let program = &program_of(&artifacts(&mut build)?, "examples", "bin", &args.example)?;
    signals::catch();
    let hosts = args.hosts.map(Hosts::new).transpose()?;
    let job = Job {
        program,
        args: &args.args,
        ranks: args.ranks,
        hosts: hosts.as_ref(),
        limit: None,
    };
    let mut is_heard = true;
    let end = job.run(
        |line| {
            // Whom nobody listens to any more, as under `| head`, has no reason to go on.
            if pass_on(line).is_err() && is_heard {
                is_heard = false;
                signals::interrupt();
            }
        },
        || (),
    )?;
    Ok(ExitCode::from(end.code))
}

/// Writes a rank's line where it belongs.
fn pass_on(line: &Line) -> io::Result<()> {
    match line.is_error {
        true => report(line),
        false => writeln!(stdout(), "{line}"),
    }
}
