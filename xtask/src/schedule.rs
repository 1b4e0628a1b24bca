//! `cargo xtask schedule`: builds the program that makes pipeline plans and hands it our arguments.
//!
//! The command line lives there, in `examples/src/bin/schedule.rs`, and only there.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::cargo::{cargo, exit_code, root, status};

/// Which plan, and what to do with it (`--help` lists the options).
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
        "phalanx-examples",
    ]);
    command
        .args(["--bin", "schedule", "--manifest-path"])
        .arg(root().join("Cargo.toml"))
        .arg("--")
        .args(&args.args)
        // Files are named from where the user is.
        .current_dir(std::env::current_dir().context("there is no current folder")?);
    Ok(exit_code(status(&mut command)?))
}
