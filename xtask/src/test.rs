//! `cargo xtask test`: every test that this machine can run, in parts, with the totals at the end.
//!
//! A part that cannot run here is skipped, and the end of the output says so and why. `--require PART` makes
//! that a failure. The tests of another backend are one more row in [`PARTS`].

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::cargo::{cargo, root, watch};
use crate::hosts::Hosts;
use crate::lines::report;
use crate::machine;
use crate::tally::Tally;

/// What to test.
#[derive(clap::Args)]
pub struct Args {
    /// Fail when this part cannot run here (may be repeated).
    #[arg(long, value_name = "PART", value_parser = names())]
    require: Vec<String>,
    /// Leave this part out (may be repeated).
    #[arg(long, value_name = "PART", value_parser = names())]
    without: Vec<String>,
    /// Spread the ranks over hosts, which are network namespaces: the part `hosts`, required.
    #[arg(long, value_name = "N", value_parser = ["2"])]
    hosts: Option<String>,
}

/// Tests that stand or fall together: what they need, and the command that runs them.
struct Part {
    name: &'static str,
    what: &'static str,
    /// The reason why this machine cannot run the part, if it cannot.
    obstacle: fn() -> Option<String>,
    command: fn() -> Command,
}

const PARTS: &[Part] = &[
    Part {
        name: "workspace",
        what: "unit, integration and documentation tests of all crates",
        obstacle: || None,
        command: || cargo(["test", "--workspace", "--no-fail-fast"]),
    },
    Part {
        name: "tsan",
        what: "the local backend under ThreadSanitizer",
        obstacle: tsan_obstacle,
        command: tsan,
    },
    Part {
        name: "mpi",
        what: "the conformance suite, ddp and fault drills on processes, by mpirun",
        obstacle: machine::obstacle,
        command: || mpi(&[]),
    },
    Part {
        name: "hosts",
        what: "the same over 2 hosts, which are network namespaces",
        obstacle: || machine::obstacle().or_else(Hosts::obstacle),
        command: || mpi(&["--hosts", "2"]),
    },
];

const TSAN_TARGET: &str = "x86_64-unknown-linux-gnu";

/// This program, for the chore that runs them.
fn mpi(args: &[&str]) -> Command {
    let this = std::env::current_exe().unwrap_or_else(|_| "cargo".into());
    let mut command = Command::new(this);
    command.arg("mpi").args(args).current_dir(root());
    command
}

/// ThreadSanitizer comes with the nightly compiler; the standard library it ships serves.
fn tsan_obstacle() -> Option<String> {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        return Some(format!("it is set up for {TSAN_TARGET} alone"));
    }
    let nightly = cargo(["+nightly", "--version"]).output();
    let there = nightly.is_ok_and(|output| output.status.success());
    (!there).then(|| "there is no nightly toolchain (rustup toolchain install nightly)".to_owned())
}

fn tsan() -> Command {
    let mut command = cargo(["+nightly", "test", "--package", "phalanx-comm", "--tests"]);
    command.args([
        "--no-fail-fast",
        "--target",
        TSAN_TARGET,
        "--target-dir",
        "target/tsan",
    ]);
    command.env(
        "RUSTFLAGS",
        "-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer --cfg phalanx_tsan",
    );
    let suppressions = Path::new(root()).join("xtask/tsan.supp");
    command.env(
        "TSAN_OPTIONS",
        format!("suppressions={}", suppressions.display()),
    );
    command
}

fn names() -> clap::builder::PossibleValuesParser {
    PARTS
        .iter()
        .map(|part| part.name)
        .collect::<Vec<_>>()
        .into()
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let mut tally = Tally::default();
    let mut missing = Vec::new();
    for part in PARTS {
        let Part { name, what, .. } = part;
        let left_out = args.without.iter().any(|without| without == name);
        let obstacle = match left_out {
            true => Some("left out by --without".to_owned()),
            false => (part.obstacle)(),
        };
        if let Some(why) = obstacle {
            let is_required = args.require.iter().any(|required| required == name);
            if is_required || (args.hosts.is_some() && *name == "hosts") {
                missing.push(format!("--require {name}, but {why}"));
            }
            tally.skipped.push(format!("{name} ({what}): {why}"));
            continue;
        }
        println!("\n== {name}: {what}");
        let failed = tally.failed;
        let status = watch(&mut (part.command)(), |line| tally.read(line))?;
        if !status.success() && tally.failed == failed {
            // It did not build, or a test program died before it could count.
            report(format_args!("error: {name} ended with {status}"))?;
            tally.failed += 1;
        }
    }
    println!();
    for skipped in &tally.skipped {
        println!("SKIPPED {skipped}");
    }
    for missing in &missing {
        println!("MISSING {missing}");
    }
    println!("{tally}");
    let good = tally.failed == 0 && missing.is_empty();
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
