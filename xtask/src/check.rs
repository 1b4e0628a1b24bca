//! `cargo xtask check`: formatting, tidiness, lints and documentation, with every warning an error.

use std::process::ExitCode;

use anyhow::Result;

use crate::cargo::{cargo, succeed};
use crate::tidy;

pub fn run() -> Result<ExitCode> {
    succeed("formatting", &mut cargo(["fmt", "--all", "--check"]))?;
    tidy::run()?;
    let lint = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ];
    succeed("clippy", &mut cargo(lint))?;
    let mut doc = cargo(["doc", "--workspace", "--no-deps", "--quiet"]);
    succeed("documentation", doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    println!("files, formatting, lints and documentation are clean");
    Ok(ExitCode::SUCCESS)
}
