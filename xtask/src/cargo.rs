//! How chores start programs: from the root of the workspace, each command echoed before it runs.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::features;
use crate::lines::report;

/// The root of the workspace: the folder above this package.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a folder of the workspace")
}

/// The cargo that started us, in the workspace's root. `+toolchain` as first argument picks another toolchain.
pub fn cargo<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Command {
    let mut args = args.into_iter().peekable();
    let toolchain = args
        .peek()
        .is_some_and(|a| a.as_ref().as_encoded_bytes().starts_with(b"+"));
    // `$CARGO` is the cargo of one toolchain; only rustup's proxy understands `+toolchain`.
    let own = std::env::var_os("CARGO").filter(|_| !toolchain);
    let mut command = Command::new(own.unwrap_or_else(|| "cargo".into()));
    if toolchain {
        // rustup names its pick here, and a pick in the environment would win over `+toolchain`.
        command
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("RUSTC")
            .env_remove("RUSTDOC");
    }
    command.args(args).current_dir(root());
    command
}

/// A build of test programs, with all backends that build here. All builds name the whole workspace, and a test: cargo
/// chooses the features of what they depend on by the packages that it hears of and by whether there is a test, and would
/// build phalanx-tensor once more for each.
pub fn of_tests(chore: &[&str]) -> Command {
    let mut command = cargo(chore);
    command.args(["--workspace", "--features", features::all()]);
    command
}

/// Runs `command` with our own streams.
pub fn status(command: &mut Command) -> Result<ExitStatus> {
    echo(command);
    command
        .status()
        .with_context(|| format!("cannot start {}", program(command)))
}

/// Runs `command`; anything but success is an error that names `what`.
pub fn succeed(what: &str, command: &mut Command) -> Result<()> {
    let status = status(command)?;
    ensure!(status.success(), "{what} failed ({status})");
    Ok(())
}

/// Runs `command`, passing its stdout on and showing each line to `each`.
pub fn watch(command: &mut Command, mut each: impl FnMut(&str)) -> Result<ExitStatus> {
    echo(command);
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", program(command)))?;
    let stdout = child.stdout.take().expect("stdout was asked for");
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("cannot read the command's output")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        each(&line);
    }
    Ok(child.wait()?)
}

/// Builds, and returns what cargo says of each artifact.
pub fn artifacts(command: &mut Command) -> Result<Vec<Value>> {
    let output = command
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "the build failed");
    let text = String::from_utf8_lossy(&output.stdout);
    let messages = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    Ok(messages
        .filter(|message: &Value| message["reason"] == "compiler-artifact")
        .collect())
}

/// The program among artifacts that is of this kind and name, and comes from this folder of the workspace.
pub fn program_of(built: &[Value], folder: &str, kind: &str, name: &str) -> Result<PathBuf> {
    let folder = root().join(folder);
    let mut found = built.iter().filter(|artifact| {
        let target = &artifact["target"];
        let source = target["src_path"].as_str().map(Path::new);
        target["kind"][0] == kind
            && target["name"] == name
            && source.is_some_and(|source| source.starts_with(&folder))
    });
    let path = found.find_map(|artifact| artifact["executable"].as_str());
    Ok(path
        .with_context(|| format!("{name} was not built"))?
        .into())
}

/// Builds, and returns what was built, by name.
pub fn executables(command: &mut Command) -> Result<Vec<(String, PathBuf)>> {
    let artifacts = artifacts(command)?.into_iter();
    let built = artifacts.filter_map(|message| {
        let path = message["executable"].as_str()?;
        Some((message["target"]["name"].as_str()?.to_owned(), path.into()))
    });
    Ok(built.collect())
}

/// The exit code of a child as our own.
pub fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    code.map_or(ExitCode::FAILURE, ExitCode::from)
}

fn echo(command: &Command) {
    let args: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
    let name = Path::new(command.get_program())
        .file_stem()
        .unwrap_or_default();
    // Where it cannot be written, nobody looks.
    let _ = report(format_args!(
        "$ {} {}",
        name.to_string_lossy(),
        args.join(" ")
    ));
}

fn program(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}
