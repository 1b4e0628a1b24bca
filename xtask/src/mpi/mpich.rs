//! The conformance suite, built for MPICH and started by its launcher: another MPI than the one that all other tests run
//! on, with other handles, another order of messages, and another way to say how many ranks there are.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use super::bare::listen;
use super::{Outcome, Tests, passed};
use crate::cargo::{cargo, executables};
use crate::machine;

/// As Debian names it where Open MPI is installed, too.
const LAUNCHER: &str = "mpirun.mpich";
const COMPILER: &str = "mpicc.mpich";

/// Why there is no MPICH here to build for and to start, if there is none.
pub fn obstacle() -> Option<String> {
    let is_there = |program: &str, word: &str| {
        let output = Command::new(program).arg("--version").output();
        output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(word))
    };
    match (is_there(LAUNCHER, "HYDRA"), is_there(COMPILER, "gcc")) {
        (true, true) if machine::has_libclang() => None,
        (true, true) => Some("there is no libclang (Debian: libclang-dev)".into()),
        _ => Some("there is no MPICH (Debian: libmpich-dev mpich libclang-dev)".into()),
    }
}

pub fn run() -> Result<ExitCode> {
    // A folder of its own: the same crates, built for another MPI.
    let mut build = cargo(["test", "--no-run", "--release", "--features", "mpi"]);
    build
        .args(["--package", "phalanx-comm", "--test", "mpi"])
        .args(["--target-dir", "target/mpich"])
        .env("MPICC", COMPILER);
    let built = executables(&mut build)?;
    let program = built.iter().find(|(name, _)| name == "mpi");
    let (_, program) = program.context("mpi was not built")?;
    let mut tests = Tests::default();
    for ranks in [1, 2, 3, 4] {
        let outcome = suite(program, ranks);
        tests.count(
            &format!("the conformance suite on {ranks} ranks of MPICH"),
            outcome,
        );
    }
    Ok(tests.end())
}

fn suite(program: &std::path::Path, ranks: usize) -> Result<Outcome> {
    let mut command = Command::new(LAUNCHER);
    let said = listen(command.args(["-n", &ranks.to_string()]).arg(program))?;
    let (code, text) = (said.code, said.stdout + &said.stderr);
    anyhow::ensure!(
        code == Some(0),
        "code {code:?} after {:.1?}\n{text}",
        said.time
    );
    passed(&text)
}
