//! What the compiler does not check: that files introduce themselves and stay short, and that the crates keep to the
//! architecture's rules. `cargo xtask check` runs it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cargo::root;
use crate::host_access;

/// Lines from which a file has two ideas in it.
const LONGEST: usize = 500;

/// The library crates, and which of the others each may use.
const LAYERS: &[(&str, &[&str])] = &[
    ("tensor", &[]),
    ("autograd", &["tensor"]),
    ("comm", &["tensor"]),
    ("parallel", &["tensor", "autograd", "comm"]),
    ("xtask", &[]),
];

/// The files of the libraries that may read the environment.
const ENVIRONMENT: &[&str] = &["comm/src/env.rs", "tensor/src/cuda/cache.rs"];

/// Checks every file under version control; the error lists what is wrong.
pub fn run() -> Result<()> {
    let list = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(root())
        .output();
    let list = list.context("cannot start git")?;
    ensure!(
        list.status.success(),
        "git cannot list the files: this is no checkout"
    );
    let (mut files, mut wrong) = (Vec::new(), Vec::new());
    for name in String::from_utf8(list.stdout)?.split_terminator('\0') {
        // A file that was deleted, but not yet in the index, is not there to be checked.
        let Ok(text) = fs::read_to_string(root().join(name)) else {
            continue;
        };
        wrong.extend(
            judge(name, &text)
                .into_iter()
                .map(|fault| format!("{name}: {fault}")),
        );
        files.push((name.to_owned(), text));
    }
    wrong.extend(host_access::faults(&files));
    ensure!(
        wrong.is_empty(),
        "these files are not tidy:\n  {}",
        wrong.join("\n  ")
    );
    Ok(())
}

/// What is wrong with the file `name` that holds `text`.
fn judge(name: &str, text: &str) -> Vec<String> {
    let path = Path::new(name);
    let package = name.split('/').next().unwrap_or_default();
    let layer = LAYERS.iter().find(|(folder, _)| *folder == package);
    let mut faults = Vec::new();
    if path.extension().is_some_and(|extension| extension == "rs") {
        if !text.starts_with("//!") {
            faults.push("does not say in its first line, with //!, what lives here".to_owned());
        }
        let lines = text.lines().count();
        if lines > LONGEST {
            faults.push(format!(
                "has {lines} lines, more than {LONGEST}: two ideas in one file?"
            ));
        }
        let library = layer.is_some() && package != "xtask" && name.contains("/src/");
        if library && !ENVIRONMENT.contains(&name) && text.contains("env::var") {
            faults.push(format!(
                "reads the environment, which only {} may",
                ENVIRONMENT.join(" and ")
            ));
        }
        let above = matches!(package, "autograd" | "parallel") && name.contains("/src/");
        if above && text.contains("cfg(feature") {
            faults.push("depends on a feature, which autograd and parallel never do".to_owned());
        }
    }
    if let Some((_, allowed)) =
        layer.filter(|_| path.file_name().is_some_and(|f| f == "Cargo.toml"))
    {
        let used = text
            .lines()
            .filter_map(|line| line.strip_prefix("phalanx-"));
        for other in used.map(|rest| rest.split(['.', ' ', '=']).next().unwrap_or_default()) {
            if !allowed.contains(&other) {
                faults.push(format!(
                    "depends on phalanx-{other}, which stands beside or above it"
                ));
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(name: &str, text: &str) -> usize {
        judge(name, text).len()
    }

    #[test]
    fn files_introduce_themselves() {
        assert_eq!(faults("tensor/src/shape.rs", "//! Shapes.\n"), 0);
        assert_eq!(faults("tensor/src/shape.rs", "use std::fmt;\n"), 1);
        assert_eq!(faults("tensor/src/shape.md", "Shapes\n"), 0);
    }

    #[test]
    fn files_stay_short() {
        let lines = |count| "//!\n".repeat(count);
        assert_eq!(faults("tensor/src/shape.rs", &lines(LONGEST)), 0);
        assert_eq!(faults("tensor/src/shape.rs", &lines(LONGEST + 1)), 1);
    }

    #[test]
    fn libraries_leave_the_environment_alone() {
        let text = "//! Reads.\nlet home = std::env::var(\"HOME\");\n";
        assert_eq!(faults("comm/src/launch.rs", text), 1);
        assert_eq!(faults(ENVIRONMENT[0], text), 0);
        assert_eq!(faults("xtask/src/cargo.rs", text), 0);
        assert_eq!(faults("comm/tests/conformance.rs", text), 0);
    }

    #[test]
    fn features_stop_below_autograd() {
        let text = "//! Devices.\n#[cfg(feature = \"cuda\")]\nmod cuda;\n";
        assert_eq!(faults("tensor/src/lib.rs", text), 0);
        assert_eq!(faults("autograd/src/lib.rs", text), 1);
        assert_eq!(faults("autograd/tests/cuda.rs", text), 0);
    }

    #[test]
    fn layers_look_down_only() {
        let uses = |other| format!("[dependencies]\nphalanx-{other}.workspace = true\n");
        assert_eq!(faults("autograd/Cargo.toml", &uses("tensor")), 0);
        assert_eq!(faults("autograd/Cargo.toml", &uses("comm")), 1);
        assert_eq!(faults("comm/Cargo.toml", &uses("autograd")), 1);
        assert_eq!(faults("parallel/Cargo.toml", &uses("comm")), 0);
        assert_eq!(
            faults("tensor/Cargo.toml", "name = \"phalanx-tensor\"\n"),
            0
        );
        assert_eq!(faults("examples/Cargo.toml", &uses("parallel")), 0);
    }
}
