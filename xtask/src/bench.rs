//! `cargo xtask bench`: builds the benchmark program with optimisation and hands it our arguments.
//!
//! The command line lives there, in `benches/src/main.rs`, and only there.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;

use crate::cargo::{cargo, exit_code, status};

/// What to time: `gemm`, `collectives`, `train`, `ddp` or `startup`, and its options (`--help` lists them).
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let mut command = cargo([
        "run",
        "--quiet",
        "--release",
        "--package",
        "phalanx-benches",
    ]);
    // `--backend mpi` needs MPI to build; all else does without.
    if args
        .args
        .iter()
        .any(|arg| arg == "mpi" || arg == "--backend=mpi")
    {
        command.args(["--features", "mpi"]);
    }
    command
        .args(["--bin", "phalanx-bench", "--"])
        .args(&args.args);
    Ok(exit_code(status(&mut command)?))
}
