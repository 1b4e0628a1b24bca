//! The programs that want cards: which there are, and their builds.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cargo::{cargo, executables};

/// The feature with which they are built.
const FEATURE: &str = "cuda";

/// A program of a package.
pub struct Program {
    package: &'static str,
    /// As cargo names it: `test` or `bin`.
    pub kind: &'static str,
    target: &'static str,
    /// The libraries of CUDA that it needs, beside the driver and NVRTC.
    pub needs: &'static [&'static str],
}

impl Program {
    const fn test(package: &'static str) -> Program {
        Program {
            package,
            kind: "test",
            target: "cuda",
            needs: &[],
        }
    }

    const fn bin(package: &'static str, target: &'static str) -> Program {
        Program {
            package,
            kind: "bin",
            target,
            needs: &[],
        }
    }

    /// The folder of its package, in which cargo would start it.
    pub fn folder(&self) -> &'static str {
        self.package.strip_prefix("phalanx-").unwrap_or_default()
    }

    /// `tensor-cuda`.
    pub fn name(&self) -> String {
        format!("{}-{}", self.folder(), self.target)
    }

    pub fn is_test(&self) -> bool {
        self.kind == "test"
    }

    /// Builds it; where it is.
    ///
    /// # Errors
    /// It does not build.
    pub fn build(&self, release: bool) -> Result<PathBuf> {
        let chore = match self.is_test() {
            true => &["test", "--no-run"][..],
            false => &["build"],
        };
        let mut command = cargo(chore);
        command.args(["--quiet", "--package", self.package]);
        command.args(["--features", FEATURE]);
        command.arg(format!("--{}", self.kind)).arg(self.target);
        if release {
            command.arg("--release");
        }
        let mut built = executables(&mut command)?.into_iter();
        let found = built.find(|(name, _)| name == self.target);
        let (_, path) = found.with_context(|| format!("{} was not built", self.name()))?;
        Ok(path)
    }
}

/// All of them. One that is not in the workspace, or whose package does not have the feature, is left out.
const PROGRAMS: &[Program] = &[
    Program::test("phalanx-tensor"),
    Program::test("phalanx-autograd"),
    Program::test("phalanx-parallel"),
    Program::bin("phalanx-examples", "ddp"),
    Program::bin("phalanx-benches", "phalanx-bench"),
];

/// Those of [`PROGRAMS`] that are there.
///
/// # Errors
/// Cargo does not tell what is there.
pub fn programs() -> Result<Vec<&'static Program>> {
    let output = cargo(["metadata", "--no-deps", "--format-version=1"]).output()?;
    ensure!(output.status.success(), "cargo metadata failed");
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let there = |program: &&Program| is_there(program, &metadata);
    Ok(PROGRAMS.iter().filter(there).collect())
}

fn is_there(program: &Program, metadata: &Value) -> bool {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let packages = list(&metadata["packages"]);
    let package = packages.iter().find(|p| p["name"] == program.package);
    package.is_some_and(|package| {
        let target = |target: &Value| {
            target["name"] == program.target && list(&target["kind"]).contains(&program.kind.into())
        };
        package["features"].get(FEATURE).is_some() && list(&package["targets"]).iter().any(target)
    })
}
