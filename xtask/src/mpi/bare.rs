//! Drills under a bare mpirun, without our launcher between it and the user: what the terminal shows, and a start of which
//! nothing comes.

use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{LIMIT, Outcome};
use crate::job::{self, MARK};
use crate::lines::read_all;

/// What a bare mpirun has said and ended with.
pub(super) struct Bare {
    pub(super) code: Option<i32>,
    pub(super) stdout: String,
    pub(super) stderr: String,
    pub(super) time: Duration,
}

/// Runs Open MPI's `mpirun` with these words.
fn mpirun(words: &[&str]) -> Result<Bare> {
    let mut command = Command::new("mpirun");
    command
        .args(["--oversubscribe", "--bind-to", "none", "-x", MARK])
        .args(words)
        .envs([
            ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
            ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
        ]);
    listen(&mut command)
}

/// Runs a launcher; by force it ends after [`LIMIT`], and nothing of it stays.
pub(super) fn listen(launcher: &mut Command) -> Result<Bare> {
    let mark = format!("{}-bare", std::process::id());
    let start = Instant::now();
    let mut child = launcher
        .env(MARK, &mark)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", launcher.get_program().display()))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let readers = [
        thread::spawn(move || read_all(stdout)),
        thread::spawn(move || read_all(stderr)),
    ];
    let status = loop {
        match child.try_wait() {
            Ok(None) if start.elapsed() <= LIMIT => thread::sleep(Duration::from_millis(10)),
            Ok(Some(status)) => break Ok(status),
            // Too late, or lost sight of: nothing of it may stay.
            Ok(None) | Err(_) => {
                job::kill(|m| m == mark);
                break child.kill().and_then(|()| child.wait());
            }
        }
    };
    let time = start.elapsed();
    job::kill(|m| m == mark);
    let status = status?;
    let [stdout, stderr] = readers.map(|reader| reader.join().ok().context("its reader panicked"));
    Ok(Bare {
        code: status.code(),
        stdout: stdout?,
        stderr: stderr?,
        time,
    })
}

/// Four ranks fail at the same time, since one cannot write its picture, and say so on one stderr: each line is whole.
pub fn whole_lines(ddp: &Path) -> Result<Outcome> {
    const RUNS: usize = 12;
    let program = ddp.display().to_string();
    let why = "cannot write /nowhere/x.svg: No such file or directory (os error 2)";
    for run in 0..RUNS {
        let said = mpirun(&["-n", "4", &program, "--plot", "/nowhere/x.svg"])?;
        let stderr = &said.stderr;
        let is_whole = |rank: usize| {
            let line = match rank {
                0 => format!("error: rank 0: {why}"),
                _ => format!("error: rank {rank}: rank 0 failed: {why}"),
            };
            stderr.lines().any(|said| said == line)
        };
        let whole = (0..4).filter(|&rank| is_whole(rank)).count();
        ensure!(
            whole == 4,
            "run {run}: {whole} of 4 lines are whole\n{stderr}"
        );
        ensure!(said.code == Some(1), "code {:?}\n{stderr}", said.code);
    }
    Ok(Outcome::Passed(format!("{RUNS} runs")))
}

/// Ranks that were started with other numbers would train their replicas apart: each says which rank, and in what it
/// differs.
pub fn other_arguments(ddp: &Path) -> Result<Outcome> {
    let program = ddp.display().to_string();
    let first = ["-n", "1", &program, "--lr", "0.05"];
    let second = [":", "-n", "1", &program, "--lr", "0.01"];
    let said = mpirun(&[&first[..], &second[..]].concat())?;
    let stderr = &said.stderr;
    let part = "the ranks have different arguments: rank 1 has learning rate 0.01, where rank 0 has learning rate 0.05";
    let said_by = stderr.lines().filter(|line| line.contains(part)).count();
    ensure!(said_by == 2, "{said_by} of 2 ranks say `{part}`\n{stderr}");
    ensure!(said.code == Some(1), "code {:?}\n{stderr}", said.code);
    Ok(Outcome::Passed(format!("code 1, {:.1?}", said.time)))
}

/// A process of the job has ended, and well, before it started MPI: the other would wait in `MPI_Init` for ever. `deadline`
/// is the one that the program gives its start.
pub fn start(program: &Path, deadline: Duration) -> Result<Outcome> {
    let program = program.display().to_string();
    let said = mpirun(&["-n", "1", &program, "start", ":", "-n", "1", "/bin/true"])?;
    let stderr = &said.stderr;
    for part in [
        "rank 0 of 2 waited",
        "for MPI to start",
        "has not called MPI_Init",
    ] {
        let (code, time, stdout) = (said.code, said.time, &said.stdout);
        ensure!(
            stderr.contains(part),
            "it does not say `{part}`: code {code:?} after {time:.1?}\n{stdout}{stderr}"
        );
    }
    ensure!(said.code == Some(1), "code {:?}\n{stderr}", said.code);
    let limit = deadline + Duration::from_secs(10);
    ensure!(
        said.time < limit,
        "it took {:.1?}, more than {limit:?}\n{stderr}",
        said.time
    );
    Ok(Outcome::Passed(format!("code 1, {:.1?}", said.time)))
}
