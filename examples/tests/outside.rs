//! What the README says about projects of one's own, done: its blocks are taken out of it and made projects outside
//! this workspace. The whole one is checked, with its profile; its program is built and run with the crate that it uses.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const REMARK: &str = "phalanx: the kernels were built without optimisation";
const PROFILE: &str = "[profile.dev.package.\"*\"]\nopt-level = 3\n";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .unwrap()
}

/// The first block of code in the README's section that begins with this fence.
fn block(fence: &str) -> String {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let section = readme.split("## Use it in your project\n").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let block = section
        .split(fence)
        .nth(1)
        .unwrap_or_else(|| panic!("no {fence} in {section}"));
    block.split("```").next().unwrap().to_owned()
}

/// A project in a folder of its own that is in no workspace, and goes when this does.
struct Project(PathBuf);

impl Project {
    /// With `dependencies` as the end of its `Cargo.toml`, its paths pointing here.
    fn new(name: &str, dependencies: &str, main: &str) -> Project {
        let folder = std::env::temp_dir().join(format!("phalanx-{name}-{}", std::process::id()));
        fs::create_dir_all(folder.join("src")).unwrap();
        let here = root();
        let dependencies = dependencies.replace("../phalanx", here.to_str().unwrap());
        let manifest = format!(
            "[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n{dependencies}"
        );
        fs::write(folder.join("Cargo.toml"), manifest).unwrap();
        fs::write(folder.join("src/main.rs"), main).unwrap();
        // The versions that are known to be there without a network.
        fs::copy(here.join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
        Project(folder)
    }

    /// What cargo makes of it, below this workspace's own folder for tests, so that only the first time is long.
    fn cargo(&self, chore: &[&str]) -> Output {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("outside");
        let mut cargo = Command::new(env!("CARGO"));
        cargo
            .args(chore)
            .args(["--quiet", "--offline"])
            .current_dir(&self.0);
        cargo
            .env("CARGO_TARGET_DIR", target)
            .env_remove("RUSTFLAGS");
        // What nobody looks at here, and costs a good part of the time.
        cargo.env("CARGO_PROFILE_DEV_DEBUG", "0");
        cargo.env("CARGO_INCREMENTAL", "0");
        cargo.output().unwrap()
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_readmes_block_makes_a_project() {
    let (toml, main) = (block("```toml\n"), block("```rust,no_run\n"));
    assert!(toml.ends_with(PROFILE), "{toml}");
    // Of what is only checked, the macros alone would be optimised, for a minute: another setting shows where it arrives.
    let toml = toml.replace("opt-level = 3", "overflow-checks = false");
    let output = Project::new("outside", &toml, &main).cargo(&["check", "--message-format=json"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{stderr}");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let messages = stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    let kernels: Vec<Value> = messages
        .filter(|message: &Value| message["target"]["name"] == "phalanx_tensor")
        .collect();
    assert!(!kernels.is_empty(), "{stdout}");
    for kernels in kernels {
        assert_eq!(kernels["profile"]["overflow_checks"], false, "{kernels}");
    }
}

/// What the profile is for.
#[test]
fn an_optimised_build_makes_no_remark() {
    let output = Command::new(env!("CARGO_BIN_EXE_collectives"))
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && !stderr.contains(REMARK),
        "{stderr}"
    );
}

/// Built without optimisation, which is done soon; and that is said.
#[test]
fn the_readmes_main_prints_sentences() {
    // All that it uses.
    let toml = "[dependencies]\nphalanx-tensor = { path = \"../phalanx/tensor\" }\n";
    let project = Project::new("outside-slow", toml, &block("```rust,no_run\n"));
    let output = project.cargo(&["run"]);
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert_eq!(stdout, "[3.0, 3.0, 3.0, 3.0]\n", "{stderr}");
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    // Nothing but the remark, once, and the sentence: no structure of fields.
    let (remark, error) = stderr.split_once('\n').unwrap_or_default();
    assert!(
        remark.starts_with(REMARK) && remark.contains("[profile.dev.package.\"*\"] opt-level = 3"),
        "{stderr}"
    );
    assert_eq!(
        error,
        "Error: matmul: shapes [2, 3] and [2, 3] do not fit: the last axis of the first must be as long as the \
         last but one of the second\n"
    );
}
