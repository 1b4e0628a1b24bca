//! The parts of `cargo xtask test`: what each needs, and the command that runs it.

use std::path::Path;
use std::process::Command;

use crate::cargo::{cargo, of_tests, root};
use crate::gpu;
use crate::hosts::Hosts;
use crate::machine;
use crate::mpi::mpich;

/// Tests that stand or fall together.
pub struct Part {
    pub name: &'static str,
    pub what: &'static str,
    /// Whether it takes so long that it runs only where it is asked for.
    pub long: bool,
    /// The level of instructions that each of its test programs must say it keeps to.
    pub level: Option<&'static str>,
    /// The reason why this machine cannot run the part, if it cannot.
    pub obstacle: fn() -> Option<String>,
    pub command: fn() -> Command,
}

/// What most parts are like.
const PLAIN: Part = Part {
    name: "",
    what: "",
    long: false,
    level: None,
    obstacle: || None,
    command: || cargo(["test"]),
};

/// Which mistakes are made in each run.
const MISTAKES: &[&str] = &["--seed", "2", "--count", "20"];

pub const PARTS: &[Part] = &[
    Part {
        name: "workspace",
        what: "unit, integration and documentation tests of all crates, with the features of all backends and without a card",
        command: || without_cards(of_tests(&["test", "--no-fail-fast"])),
        ..PLAIN
    },
    // One build, which the first of these makes, run at each level.
    Part {
        name: "baseline",
        what: "phalanx-tensor in release, with the instructions that every processor has",
        level: Some("baseline"),
        command: || at_level("baseline"),
        ..PLAIN
    },
    Part {
        name: "avx2",
        what: "phalanx-tensor in release, with AVX2 at most",
        level: Some("avx2"),
        command: || at_level("avx2"),
        ..PLAIN
    },
    Part {
        name: "avx512",
        what: "phalanx-tensor in release, with AVX-512 and no matrix unit",
        level: Some("avx512"),
        command: || at_level("avx512"),
        ..PLAIN
    },
    Part {
        name: "amx",
        what: "phalanx-tensor in release, with AVX-512 and the matrix unit (AMX)",
        level: Some("amx"),
        command: || at_level("amx"),
        ..PLAIN
    },
    Part {
        name: "release",
        what: "the tests of all crates in release",
        long: true,
        command: || cargo(["test", "--workspace", "--no-fail-fast", "--release"]),
        ..PLAIN
    },
    Part {
        name: "ignored",
        what: "what cargo test ignores for its length: elementary functions over every f32, in release",
        long: true,
        command: || {
            let package = ["test", "--release", "--package", "phalanx-tensor"];
            let mut command = cargo(package);
            command.args(["--tests", "--no-fail-fast", "--", "--ignored"]);
            command
        },
        ..PLAIN
    },
    Part {
        name: "loom",
        what: "the local backend's slots in every order in which loom can run a few ranks",
        command: || loom("local::model"),
        ..PLAIN
    },
    Part {
        name: "loom-long",
        what: "the largest of these models with one more preemption",
        long: true,
        command: || {
            let mut command = loom("three_ranks_share_the_chunks");
            command.env("LOOM_MAX_PREEMPTIONS", "3");
            command
        },
        ..PLAIN
    },
    Part {
        name: "tsan",
        what: "the local backend under ThreadSanitizer",
        obstacle: sanitizer_obstacle,
        command: || thread_sanitizer("phalanx-comm", &["--tests"]),
        ..PLAIN
    },
    Part {
        name: "tsan-tensor",
        what: "phalanx-tensor's tests of threads under ThreadSanitizer",
        obstacle: sanitizer_obstacle,
        command: || {
            let mut command = thread_sanitizer("phalanx-tensor", OPERATIONS);
            // Words in the names of the tests: what compares teams, and a training step over all families.
            command.args(["--", "thread", "every_item", "training_loop"]);
            command
        },
        ..PLAIN
    },
    Part {
        name: "tsan-all",
        what: "all tests of phalanx-tensor under ThreadSanitizer",
        long: true,
        obstacle: sanitizer_obstacle,
        command: || thread_sanitizer("phalanx-tensor", &["--tests"]),
        ..PLAIN
    },
    Part {
        name: "asan",
        what: "phalanx-tensor's operations under AddressSanitizer, without pooled buffers",
        obstacle: sanitizer_obstacle,
        command: address_sanitizer,
        ..PLAIN
    },
    Part {
        name: "asan-base",
        what: "the same, with the instructions that every processor has",
        long: true,
        level: Some("baseline"),
        obstacle: sanitizer_obstacle,
        command: || held(address_sanitizer(), "baseline"),
    },
    Part {
        name: "asan-avx2",
        what: "the same, with AVX2 at most",
        long: true,
        level: Some("avx2"),
        obstacle: sanitizer_obstacle,
        command: || held(address_sanitizer(), "avx2"),
    },
    Part {
        name: "cuda-absent",
        what: "what the tests of cards say where there is no CUDA",
        obstacle: || gpu::has_cards().then(|| "this machine has a CUDA device".to_owned()),
        command: || {
            let mut command = without_cards(of_tests(&[
                "test",
                "--test=cuda",
                "--test=cards",
                "--no-fail-fast",
            ]));
            command.args(["--", "--show-output"]);
            command
        },
        ..PLAIN
    },
    // Before the tests of cards, which use what it compiles.
    Part {
        name: "kernels",
        what: "every kernel compiled for all architectures: none uses local memory without a reason",
        obstacle: gpu::kernels::obstacle,
        command: || chore(&["kernels"]),
        ..PLAIN
    },
    Part {
        name: "simulated",
        what: "the tests of CUDA devices, on four simulated ones that look for races",
        obstacle: gpu::obstacle,
        command: || {
            let cards = ["--simulate", "4", "--require", "4", "--check"];
            chore(&[&["test-multi-gpu"], &cards[..]].concat())
        },
        ..PLAIN
    },
    Part {
        name: "mutants",
        what: "20 small mistakes in the kernels and in the host's code for CUDA devices, each of which the tests must notice",
        obstacle: gpu::obstacle,
        command: || chore(&[&["mutate-cuda"], MISTAKES].concat()),
        ..PLAIN
    },
    Part {
        name: "bundle",
        what: "the tests of CUDA devices with kernels that were compiled before, as a machine without Rust runs them",
        obstacle: gpu::bundle::obstacle,
        command: || chore(&["bundle", "--simulate", "2"]),
        ..PLAIN
    },
    Part {
        name: "mpi",
        what: "the conformance suite, ddp and fault drills on processes, by mpirun",
        obstacle: machine::obstacle,
        command: || chore(&["mpi"]),
        ..PLAIN
    },
    Part {
        name: "drill",
        what: "a rank goes wrong at six times and in six ways, on processes, by mpirun",
        obstacle: machine::obstacle,
        command: || chore(&["drill", "--backend", "mpi"]),
        ..PLAIN
    },
    Part {
        name: "fuzz",
        what: "60 scenes in which a rank goes wrong, made from seeds, on processes, by mpirun",
        obstacle: machine::obstacle,
        command: || chore(&["fuzz", "--scenes", "60"]),
        ..PLAIN
    },
    Part {
        name: "fuzz-long",
        what: "300 more of them",
        long: true,
        obstacle: machine::obstacle,
        command: || chore(&["fuzz", "--first", "60", "--scenes", "300"]),
        ..PLAIN
    },
    Part {
        name: "mpich",
        what: "the conformance suite on processes, built for MPICH and started by its mpirun",
        long: true,
        obstacle: mpich::obstacle,
        command: || chore(&["mpich"]),
        ..PLAIN
    },
    Part {
        name: "hosts",
        what: "the same over 2 hosts, which are network namespaces",
        obstacle: || machine::obstacle().or_else(Hosts::obstacle),
        command: || chore(&["mpi", "--hosts", "2"]),
        ..PLAIN
    },
];

/// The tests of phalanx-tensor in release, at a level of instructions.
fn at_level(level: &str) -> Command {
    let mut command = cargo(["test", "--release", "--package", "phalanx-tensor"]);
    command.args(["--tests", "--no-fail-fast"]);
    held(command, level)
}

/// The tests of phalanx-tensor, held to a level of instructions (`tensor/tests/level`).
fn held(mut command: Command, level: &str) -> Command {
    command.env("PHALANX_TEST_LEVEL", level);
    command
}

/// This program, for a chore that runs tests.
fn chore(args: &[&str]) -> Command {
    let this = std::env::current_exe().unwrap_or_else(|_| "cargo".into());
    let mut command = Command::new(this);
    command.args(args).current_dir(root());
    command
}

/// The feature `cuda` where there is neither a driver nor a simulated one, and no real card is seen: all tests run on the
/// CPU, and those of cards say that they are skipped.
fn without_cards(mut command: Command) -> Command {
    command.env_remove("LD_LIBRARY_PATH");
    command.env_remove("PHALANX_REQUIRE_CARDS");
    command.env("CUDA_VISIBLE_DEVICES", "");
    command
}

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The models in `comm/src/backends/local/model`, which say how many orders they have tried: a build of its own, in a
/// folder of its own.
fn loom(models: &str) -> Command {
    let package = ["test", "--profile", "loom", "--package", "phalanx-comm"];
    let mut command = cargo(package);
    command.args(["--lib", "--target-dir", "target/loom"]);
    command.args(["--", "--nocapture", models]);
    command.env("RUSTFLAGS", "--cfg phalanx_loom");
    command
}

/// Sanitizers come with the nightly compiler; the standard library it ships serves.
fn sanitizer_obstacle() -> Option<String> {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        return Some(format!("it is set up for {TARGET} alone"));
    }
    let nightly = cargo(["+nightly", "--version"]).output();
    let there = nightly.is_ok_and(|output| output.status.success());
    (!there).then(|| "there is no nightly toolchain (rustup toolchain install nightly)".to_owned())
}

/// A build of its own, in a folder of its own: the target is named so that build scripts stay as they are.
fn sanitized(package: &str, folder: &str, flags: &str) -> Command {
    let mut command = cargo(["+nightly", "test", "--no-fail-fast", "--package", package]);
    command.args(["--target", TARGET, "--target-dir", folder]);
    command.env("RUSTFLAGS", flags);
    // Reports name lines, and what is suppressed is named by functions that may have been inlined.
    command.env("CARGO_PROFILE_DEV_DEBUG", "line-tables-only");
    command
}

/// Memory that no machine has is refused, as the system does it: some tests ask for it. A sanitizer would end the process.
const REFUSE: &str = "allocator_may_return_null=1";

/// The programs that test phalanx-tensor's operations.
const OPERATIONS: &[&str] = &[
    "--lib",
    "--test=gemm",
    "--test=matrix_unit",
    "--test=ops",
    "--test=steady_state",
];

fn thread_sanitizer(package: &str, programs: &[&str]) -> Command {
    let flags = "-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer --cfg phalanx_tsan";
    let mut command = sanitized(package, "target/tsan", flags);
    command.args(programs);
    let suppressions = Path::new(root()).join("xtask/tsan.supp");
    let options = format!("suppressions={}:{REFUSE}", suppressions.display());
    command.env("TSAN_OPTIONS", options);
    command
}

fn address_sanitizer() -> Command {
    let flags = "-Zsanitizer=address --cfg phalanx_asan";
    let mut command = sanitized("phalanx-tensor", "target/asan", flags);
    // The last one holds the pool of buffers to its word, and here there is none.
    command.args(&OPERATIONS[..OPERATIONS.len() - 1]);
    // What statics own lives as long as the process.
    command.env("ASAN_OPTIONS", format!("detect_leaks=0:{REFUSE}"));
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn each_part_has_a_name_of_its_own() {
        let names: HashSet<_> = PARTS.iter().map(|part| part.name).collect();
        assert_eq!(names.len(), PARTS.len());
        assert!(PARTS.iter().all(|part| !part.what.is_empty()));
    }

    #[test]
    fn what_runs_at_a_level_asks_for_it() {
        for part in PARTS {
            let command = (part.command)();
            let asked = command
                .get_envs()
                .find(|(name, _)| *name == "PHALANX_TEST_LEVEL")
                .and_then(|(_, level)| level?.to_str().map(str::to_owned));
            assert_eq!(asked.as_deref(), part.level, "{}", part.name);
        }
    }
}
