//! The cells of the drill (`comm/tests/cells`) on processes: a job for each. The program itself says which cells there
//! are, plays them, and judges what came of a job; here jobs are started, watched and ended.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};

use super::Outcome;
use super::folder::Folder;
use crate::hosts::Hosts;
use crate::job::Job;

/// The ranks of a cell.
const RANKS: usize = 3;
/// No cell takes so long, unless it hangs. It is ended by force then.
const LIMIT: Duration = Duration::from_secs(30);

/// A cell of the drill.
pub struct Cell {
    /// The phase and the fault: `between/panic`.
    pub name: String,
    /// Why it does not apply, if it does not.
    why_not: Option<String>,
}

/// The cells of processes, as the program lists them.
pub fn list(program: &Path) -> Result<Vec<Cell>> {
    let output = Command::new(program).args(["--cells", "mpi"]).output()?;
    ensure!(output.status.success(), "it does not list its cells");
    let text = String::from_utf8(output.stdout)?;
    let cell = |line: &str| match line.split_once(": ") {
        Some((name, why)) => Cell {
            name: name.to_owned(),
            why_not: Some(why.to_owned()),
        },
        None => Cell {
            name: line.to_owned(),
            why_not: None,
        },
    };
    Ok(text.lines().map(cell).collect())
}

impl Cell {
    /// Whether it belongs to this phase.
    pub fn is_of(&self, phase: &str) -> bool {
        self.name.split('/').next() == Some(phase)
    }

    /// Plays the cell as a job: what its ranks held, and that their processes then ran a second world.
    pub fn run(&self, program: &Path, hosts: Option<&Hosts>) -> Result<Outcome> {
        if let Some(why) = &self.why_not {
            return Ok(Outcome::Skipped(why.clone()));
        }
        let folder = Folder::new(&self.name)?;
        let args = ["--play", &self.name, &folder.path().display().to_string()].map(str::to_owned);
        let job = Job {
            program,
            args: &args,
            ranks: RANKS,
            hosts,
            limit: Some(LIMIT),
        };
        let mut said = String::new();
        let end = job.run(|line| said += &format!("{}\n", line.text), || ())?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let mut judge = Command::new(program)
            .args(["--judge", "mpi", &self.name])
            .args([end.code.to_string(), end.by_force.to_string()])
            .arg(now.as_nanos().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = judge.stdin.take();
        stdin.context("no stdin")?.write_all(said.as_bytes())?;
        let verdict = String::from_utf8(judge.wait_with_output()?.stdout)?;
        let mut lines = verdict.lines();
        let first = lines.next().unwrap_or_default();
        let Some(first) = first.strip_prefix("ok ") else {
            let why = first.strip_prefix("FAILED ").unwrap_or(first);
            bail!("{why}\n{said}");
        };
        // The second run.
        match lines.next().and_then(|line| line.strip_prefix("FAILED ")) {
            None => Ok(Outcome::Passed(first.to_owned())),
            Some(why) => bail!("{first}; but then, {why}"),
        }
    }
}
