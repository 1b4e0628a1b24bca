//! The examples where nobody reads what they print: behind `| head`, or on a full disk.

use std::fs::File;
use std::process::{Command, Output, Stdio};

/// Each example, with arguments that keep it short.
const PROGRAMS: [(&str, &[&str]); 3] = [
    (env!("CARGO_BIN_EXE_collectives"), &[]),
    (
        env!("CARGO_BIN_EXE_ddp"),
        &["--model", "mlp", "--epochs", "1", "--batch-size", "5000"],
    ),
    (
        env!("CARGO_BIN_EXE_schedule"),
        &["--kind", "1f1b", "--json"],
    ),
];

fn run(program: &str, args: &[&str], stdout: Stdio) -> Output {
    let mut command = Command::new(program);
    command.args(args).stdout(stdout).stderr(Stdio::piped());
    command.spawn().unwrap().wait_with_output().unwrap()
}

fn ends_with_a_sentence(output: &Output, cause: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let last = said.lines().last().unwrap_or_default();
    assert!(
        last.starts_with("error: ") && last.contains(cause),
        "{said}"
    );
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn a_reader_that_goes_away_ends_them_with_a_sentence() {
    for (program, args) in PROGRAMS {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = run(program, args, writer.into());
        ends_with_a_sentence(&output, "cannot write to stdout: Broken pipe");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_ends_them_with_a_sentence() {
    for (program, args) in PROGRAMS {
        let full = File::create("/dev/full").unwrap();
        let output = run(program, args, full.into());
        ends_with_a_sentence(&output, "cannot write to stdout: No space left");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_stderr_that_is_full_stops_nothing() {
    let (program, args) = PROGRAMS[1];
    let mut command = Command::new(program);
    command
        .args(args)
        .stderr(File::create("/dev/full").unwrap());
    assert!(command.output().unwrap().status.success());
}
