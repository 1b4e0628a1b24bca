//! The programs that want cards: which there are, and their builds.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cargo::{artifacts, cargo, root};
use crate::features;

/// A program of the workspace.
#[derive(Debug)]
pub struct Program {
    /// The folder of its package, in which cargo would start it.
    pub folder: &'static str,
    /// As cargo names it: `test` or `bin`.
    pub kind: &'static str,
    target: &'static str,
    /// The libraries of CUDA that it needs, beside the driver and NVRTC.
    pub needs: &'static [&'static str],
    /// Whether it is a table of cases that any device runs: the environment names the card.
    pub is_table: bool,
    /// Whether something in it has no order of its own, so that it is run with several seeds where that is asked for: not a
    /// table whose cases are one operation each.
    pub takes_seeds: bool,
    /// Whether it may run beside others: not where it has deadlines, which a busy machine would miss.
    pub runs_beside_others: bool,
    /// What it finds in its environment.
    pub environment: &'static [(&'static str, &'static str)],
}

/// All of them. A test program is there if its package has one.
const PROGRAMS: &[Program] = &[
    test("tensor"),
    test("autograd"),
    Program {
        needs: &["libcublasLt.so", "libnccl.so.2"],
        ..program("comm", "test", "cards")
    },
    // Its cells: each is a process of its own, in which a rank goes wrong.
    Program {
        needs: &["libcublasLt.so", "libnccl.so.2"],
        runs_beside_others: false,
        takes_seeds: true,
        ..table("comm", "cells")
    },
    Program {
        runs_beside_others: false,
        ..test("parallel")
    },
    // Whole trainings: the search for races in global memory would take too long, and finds no more in them than in the
    // operations of which they are made.
    Program {
        environment: &[("PHALANX_SIMULATOR_CHECK", "0")],
        ..test("examples")
    },
    table("tensor", "ops"),
    table("autograd", "gradients"),
    // Some of its tests let ranks differ: their calls are compared before NCCL sees them.
    Program {
        needs: &["libcublasLt.so", "libnccl.so.2"],
        environment: &[
            ("PHALANX_TEST_DEVICE", "cuda:0"),
            ("PHALANX_SIMULATOR_CHECK", "0"),
            ("PHALANX_COMM_DEBUG", "1"),
        ],
        runs_beside_others: false,
        takes_seeds: true,
        ..table("parallel", "ddp")
    },
    Program {
        needs: &["libcublasLt.so", "libnccl.so.2"],
        runs_beside_others: false,
        takes_seeds: true,
        ..table("parallel", "runtime")
    },
    Program {
        needs: &["libcublasLt.so", "libnccl.so.2"],
        takes_seeds: true,
        ..table("parallel", "split")
    },
    bin("examples", "ddp"),
    bin("benches", "phalanx-bench"),
];

const fn program(folder: &'static str, kind: &'static str, target: &'static str) -> Program {
    Program {
        folder,
        kind,
        target,
        needs: &["libcublasLt.so"],
        is_table: false,
        takes_seeds: true,
        runs_beside_others: false,
        environment: &[],
    }
}

/// A test program of this name is for cards, in whatever package.
const FOR_CARDS: &str = "cuda";

const fn test(folder: &'static str) -> Program {
    Program {
        runs_beside_others: true,
        ..program(folder, "test", FOR_CARDS)
    }
}

const fn table(folder: &'static str, target: &'static str) -> Program {
    // A table has large cases, too, for which the search for races in global memory takes too long; small cases of every
    // operation are among the tests of cards.
    Program {
        is_table: true,
        takes_seeds: false,
        runs_beside_others: true,
        environment: &[
            ("PHALANX_TEST_DEVICE", "cuda:0"),
            ("PHALANX_SIMULATOR_CHECK", "0"),
        ],
        ..program(folder, "test", target)
    }
}

const fn bin(folder: &'static str, target: &'static str) -> Program {
    program(folder, "bin", target)
}

impl Program {
    /// `tensor-cuda`.
    pub fn name(&self) -> String {
        format!("{}-{}", self.folder, self.target)
    }

    /// With what it is started. An index out of range concerns the whole card, so the cases of a table
    /// come one after the other.
    pub fn arguments(&self) -> impl Iterator<Item = &'static str> {
        self.is_table.then_some("--test-threads=1").into_iter()
    }
}

/// Builds the test programs; each with where it is.
///
/// # Errors
/// One does not build, or is not among [`PROGRAMS`].
pub fn tests(release: bool) -> Result<Vec<(&'static Program, PathBuf)>> {
    let tests = PROGRAMS.iter().filter(|program| program.kind == "test");
    let mut targets: Vec<_> = tests.map(|t| format!("--test={}", t.target)).collect();
    targets.sort_unstable();
    targets.dedup();
    let chore = ["test", "--no-run"].into_iter();
    let chore = chore.chain(targets.iter().map(String::as_str));
    build(&chore.collect::<Vec<_>>(), "test", release)
}

/// Builds the other programs.
///
/// # Errors
/// As [`tests`].
pub fn bins(release: bool) -> Result<Vec<(&'static Program, PathBuf)>> {
    let bins = PROGRAMS.iter().filter(|program| program.kind == "bin");
    let bins: Vec<_> = bins.map(|bin| format!("--bin={}", bin.target)).collect();
    // Without a test or an example, cargo would choose other features for what they depend on, and build it once more.
    let chore = ["build", "--example=kernels"].into_iter();
    let chore = chore.chain(bins.iter().map(String::as_str));
    build(&chore.collect::<Vec<_>>(), "bin", release)
}

fn build(chore: &[&str], kind: &str, release: bool) -> Result<Vec<(&'static Program, PathBuf)>> {
    let mut command = cargo(chore);
    // All builds name the whole workspace, so that they share what they depend on. What is carried to another machine finds
    // no MPI there.
    let features = match release {
        true => features::CARDS,
        false => features::all(),
    };
    command.args(["--quiet", "--workspace", "--features", features]);
    if release {
        command.arg("--release");
    }
    let artifacts = artifacts(&mut command)?;
    let of_kind = artifacts
        .iter()
        .filter(|artifact| artifact["target"]["kind"][0] == kind);
    let mut built = of_kind
        .filter_map(|artifact| known(artifact, kind).transpose())
        .collect::<Result<Vec<_>>>()?;
    // In the order of the table.
    built.sort_by_key(|(program, _)| PROGRAMS.iter().position(|p| p.name() == program.name()));
    Ok(built)
}

/// The program that an artifact is; `None` if it is no program.
fn known(artifact: &Value, kind: &str) -> Result<Option<(&'static Program, PathBuf)>> {
    let Some(path) = artifact["executable"].as_str() else {
        return Ok(None);
    };
    let (target, source) = (&artifact["target"]["name"], &artifact["target"]["src_path"]);
    let is_it = |program: &&Program| {
        let folder = root().join(program.folder);
        let source = source.as_str().map(Path::new);
        program.kind == kind
            && *target == program.target
            && source.is_some_and(|s| s.starts_with(folder))
    };
    let program = PROGRAMS.iter().find(is_it);
    // Tables and others have names that other packages may use for what wants no cards.
    if program.is_none() && *target != FOR_CARDS {
        return Ok(None);
    }
    let program = program.with_context(|| {
        format!("xtask/src/gpu/programs.rs does not know of the program {target} in {source}")
    })?;
    Ok(Some((program, path.into())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_program_that_is_not_in_the_table_is_an_error() {
        let artifact = |folder: &str| {
            let source = root().join(folder).join("tests/cuda.rs");
            json!({"executable": "/x", "target": {"name": "cuda", "src_path": source}})
        };
        let found = known(&artifact("tensor"), "test").unwrap().unwrap();
        assert_eq!(found.0.name(), "tensor-cuda");
        assert!(known(&artifact("benches"), "test").is_err());
        assert!(
            known(&json!({"executable": null}), "test")
                .unwrap()
                .is_none()
        );
    }
}
