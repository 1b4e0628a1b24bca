//! `cargo xtask check`: formatting, tidiness, lints and documentation, with every warning an error.

use std::process::ExitCode;

use anyhow::Result;

use crate::cargo::{cargo, succeed};
use crate::features;
use crate::machine;
use crate::tidy;

pub fn run() -> Result<ExitCode> {
    succeed("formatting", &mut cargo(["fmt", "--all", "--check"]))?;
    tidy::run()?;
    // Without a backend there is other code, for when it is not there.
    clippy("clippy without backends", &["--workspace"])?;
    let all = ["--workspace", "--features", features::all()];
    clippy("clippy with all backends", &all)?;
    let mut doc = cargo(["doc", "--no-deps", "--quiet"]);
    let doc = doc.args(all).env("RUSTDOCFLAGS", "-D warnings");
    succeed("documentation", doc)?;
    println!("files, formatting, lints and documentation are clean");
    if let Some(why) = machine::obstacle() {
        println!("SKIPPED mpi (lints and documentation of the MPI backend): {why}");
    }
    Ok(ExitCode::SUCCESS)
}

fn clippy(what: &str, of: &[&str]) -> Result<()> {
    let mut lint = cargo(["clippy"]);
    lint.args(of).args(["--all-targets", "--quiet"]);
    succeed(what, lint.args(["--", "-D", "warnings"]))
}
