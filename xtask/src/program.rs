//! Chores that are a program of the workspace: `cargo xtask bench`, `cargo xtask schedule`. They build it with
//! optimisation and hand it our arguments.
//!
//! The command lines live in those programs, and only there.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::cargo::{cargo, exit_code, root, status};

/// What the program is to do (`--help` lists the options).
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Times the library, and its peers beside it.
pub fn bench(args: &Args) -> Result<ExitCode> {
    // `--backend mpi` needs MPI to build, and cards need a crate that all else does without.
    let mut features = Vec::new();
    for (feature, words) in [
        ("mpi", &["mpi", "--backend=mpi"][..]),
        ("nccl", &["card", "cuda", "nccl", "--backend=nccl"]),
    ] {
        let asks = |arg: &OsString| {
            let arg = arg.to_string_lossy();
            let device = arg.strip_prefix("--device=").unwrap_or(&arg);
            words.contains(&&*arg) || feature == "nccl" && device.starts_with("cuda")
        };
        if args.args.iter().any(asks) {
            features.extend(["--features", feature]);
        }
    }
    run("phalanx-benches", "phalanx-bench", &features, args)
}

/// Makes, proves, predicts and draws pipeline plans.
pub fn schedule(args: &Args) -> Result<ExitCode> {
    run("phalanx-examples", "schedule", &[], args)
}

fn run(package: &str, program: &str, build: &[&str], args: &Args) -> Result<ExitCode> {
    let mut command = cargo(["run", "--quiet", "--release", "--manifest-path"]);
    command
        .arg(root().join("Cargo.toml"))
        .args(["--package", package, "--bin", program])
        .args(build)
        .arg("--")
        .args(&args.args)
        // Files are named from where the user is.
        .current_dir(std::env::current_dir().context("there is no current folder")?);
    Ok(exit_code(status(&mut command)?))
}
