//! Runs what stands in `benches/peers`: PyTorch's side of the comparison, and the C programs that show the limits.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;

/// Whom to compare with.
#[derive(Args, Clone, Debug)]
pub struct PeerArgs {
    /// A Python interpreter that has PyTorch: runs the same work there, in turn, and prints the ratios
    #[arg(long, value_name = "PYTHON")]
    pub peer: Option<PathBuf>,
    /// Run the peer with real-time priority (`chrt -f 1`, needs root), which gloo's polling threads profit from
    #[arg(long, requires = "peer")]
    pub realtime: bool,
}

impl PeerArgs {
    /// Runs `script` with `args` where a peer was asked for, and returns the lines of JSON that it prints.
    ///
    /// # Errors
    /// The script does not start, fails, or prints no JSON.
    pub fn run<A: AsRef<OsStr>>(&self, script: &str, args: &[A]) -> Result<Vec<Value>> {
        let Some(python) = &self.peer else {
            return Ok(Vec::new());
        };
        let mut command = match self.realtime {
            true => {
                let mut command = Command::new("chrt");
                command.args(["-f", "1"]).arg(python);
                command
            }
            false => Command::new(python),
        };
        command
            .arg("-W")
            .arg("ignore")
            .arg(folder().join(script))
            .args(args);
        let lines = json_lines(script, &output(&mut command)?)?;
        ensure!(!lines.is_empty(), "{script} printed no figures");
        Ok(lines)
    }

    /// As [`run`](Self::run), for a script that prints one line; nothing where no peer was asked for.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn figures<A: AsRef<OsStr>>(&self, script: &str, args: &[A]) -> Result<Option<Value>> {
        Ok(self.run(script, args)?.pop())
    }
}

/// A C program of `benches/peers`, built for this machine.
pub struct CProgram {
    path: PathBuf,
}

impl CProgram {
    /// Builds `benches/peers/<name>.c`. Nothing, and a line on stderr, where there is no C compiler.
    ///
    /// # Errors
    /// The compiler rejects the program.
    pub fn build(name: &str) -> Result<Option<Self>> {
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        CProgram::build_with(compiler, name)
    }

    /// As [`build`](Self::build), by this compiler.
    ///
    /// # Errors
    /// As [`build`](Self::build).
    pub fn build_with(compiler: impl Into<OsString>, name: &str) -> Result<Option<Self>> {
        let compiler = compiler.into();
        if Command::new(&compiler).arg("--version").output().is_err() {
            let compiler = Path::new(&compiler).display();
            let why = format_args!("there is no C compiler ({compiler})");
            phalanx_comm::report(format_args!("SKIPPED {name}.c: {why}"));
            return Ok(None);
        }
        let bin = std::env::current_exe()?.with_file_name("peers");
        std::fs::create_dir_all(&bin)?;
        let path = bin.join(name);
        let mut command = Command::new(compiler);
        command.args(["-O3", "-march=native", "-pthread"]);
        output(
            command
                .arg(folder().join(name).with_extension("c"))
                .arg("-o")
                .arg(&path),
        )?;
        Ok(Some(CProgram { path }))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs the program and returns the lines of JSON that it prints.
    ///
    /// # Errors
    /// The program does not start, fails, or prints no JSON.
    pub fn run(&self, args: &[String]) -> Result<Vec<Value>> {
        let name = self.path.display().to_string();
        json_lines(&name, &output(Command::new(&self.path).args(args))?)
    }
}

/// The number that `figures` has under `key` (`a/b` for the `b` of `a`).
///
/// # Errors
/// There is none.
pub fn number(figures: &Value, key: &str) -> Result<f64> {
    let value = figures.pointer(&format!("/{key}")).and_then(Value::as_f64);
    value.with_context(|| format!("the peer's figures lack {key}: {figures}"))
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers")
}

pub(crate) fn output(command: &mut Command) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("cannot start {name}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last: Vec<_> = said.trim().lines().rev().take(5).collect();
        let last: Vec<_> = last.into_iter().rev().collect();
        bail!("{name} ended with {}: {}", output.status, last.join("\n"));
    }
    Ok(output)
}

pub(crate) fn json_lines(name: &str, output: &Output) -> Result<Vec<Value>> {
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).with_context(|| format!("{name} printed {line}")))
        .collect()
}
