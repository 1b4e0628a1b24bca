//! `cargo xtask check`: formatting, tidiness, lints and documentation, with every warning an error.

use std::process::ExitCode;

use anyhow::Result;

use crate::cargo::{cargo, succeed};
use crate::features;
use crate::machine;
use crate::tidy;

/// The crate with code for when the backend is not there.
const PLAIN: &str = "phalanx-comm";

pub fn run() -> Result<ExitCode> {
    succeed("formatting", &mut cargo(["fmt", "--all", "--check"]))?;
    tidy::run()?;
    let obstacle = machine::obstacle();
    let features: &[&str] = match obstacle {
        None => &["--features", features::MPI],
        Some(_) => &[],
    };
    clippy("clippy", &[&["--workspace"], features].concat())?;
    if obstacle.is_none() {
        clippy("clippy without MPI", &["--package", PLAIN])?;
    }
    let all = ["--workspace", "--features", features::all()];
    clippy("clippy with all backends", &all)?;
    let mut doc = cargo(["doc", "--workspace", "--no-deps", "--quiet"]);
    let doc = doc.args(features).env("RUSTDOCFLAGS", "-D warnings");
    succeed("documentation", doc)?;
    println!("files, formatting, lints and documentation are clean");
    if let Some(why) = obstacle {
        println!("SKIPPED mpi (lints and documentation of the MPI backend): {why}");
    }
    Ok(ExitCode::SUCCESS)
}

fn clippy(what: &str, of: &[&str]) -> Result<()> {
    let mut lint = cargo(["clippy"]);
    lint.args(of).args(["--all-targets", "--quiet"]);
    succeed(what, lint.args(["--", "-D", "warnings"]))
}
