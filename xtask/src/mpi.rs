//! The tests that need mpirun: the conformance suite at several numbers of ranks, the example `ddp` against its
//! threads, messages of more than 2³¹ elements, and drills in which a rank goes wrong.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::cargo::cargo;
use crate::hosts::Hosts;
use crate::job::{End, Job, Running};
use crate::signals;

/// What to test.
#[derive(clap::Args)]
pub struct Args {
    /// Spread the ranks over so many hosts, which are network namespaces of this machine.
    #[arg(long)]
    hosts: Option<usize>,
}

/// The deadline of `comm/tests/drill.rs`.
const DEADLINE: Duration = Duration::from_secs(3);
/// After the deadline, everything ends within this.
const GRACE: Duration = Duration::from_secs(3);

/// A way to go wrong: what rank 1 does, what the others must say, and whether it shows at once.
struct Drill {
    name: &'static str,
    says: &'static str,
    code: Option<u8>,
    at_once: bool,
}

const DRILLS: &[Drill] = &[
    drill("panic", "rank 1 panicked: the dog ate my gradients", true),
    drill("error", "rank 1 failed: no such file: weights", true),
    drill("return", "rank 1 returned without the call", true),
    Drill {
        code: Some(7),
        ..drill("exit", "rank 1 returned without the call", true)
    },
    Drill {
        code: None, // mpirun's code for the signal
        ..drill("kill", "mpirun noticed that process rank 1", true)
    },
    drill("loop", "for rank 1: ", false),
    drill("shapes", "rank 1 called all_reduce(sum) of f32 [4]", true),
    drill("order", "rank 1 called barrier", true),
];

const fn drill(name: &'static str, says: &'static str, at_once: bool) -> Drill {
    Drill {
        name,
        says,
        code: Some(1),
        at_once,
    }
}

/// The test programs of the crate `comm`, and the example `ddp`.
struct Programs {
    suite: PathBuf,
    drill: PathBuf,
    ddp: PathBuf,
}

impl Programs {
    fn build() -> Result<Programs> {
        let mut tests = cargo(["test", "--release", "--package", "phalanx-comm", "--no-run"]);
        tests.args(["--features", "mpi", "--test", "mpi", "--test", "drill"]);
        let mut ddp = cargo(["build", "--release", "--package", "phalanx-examples"]);
        ddp.args(["--features", "mpi", "--bin", "ddp"]);
        let mut built = executables(&mut tests)?;
        built.extend(executables(&mut ddp)?);
        let find = |name: &str| {
            let found = built.iter().find(|(n, _)| n == name);
            found
                .map(|(_, path)| path.clone())
                .with_context(|| format!("{name} was not built"))
        };
        Ok(Programs {
            suite: find("mpi")?,
            drill: find("drill")?,
            ddp: find("ddp")?,
        })
    }
}

/// Builds, and returns what was built, by name.
fn executables(command: &mut Command) -> Result<Vec<(String, PathBuf)>> {
    let output = command
        .arg("--message-format=json-render-diagnostics")
        .stderr(std::process::Stdio::inherit())
        .output()?;
    ensure!(output.status.success(), "the build failed");
    let text = String::from_utf8_lossy(&output.stdout);
    let built = text.lines().filter_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let path = message["executable"].as_str()?;
        Some((message["target"]["name"].as_str()?.to_owned(), path.into()))
    });
    Ok(built.collect())
}

pub fn run(args: &Args) -> Result<ExitCode> {
    signals::catch();
    let programs = Programs::build()?;
    let (mut passed, mut failed, mut ignored) = (0, 0, 0);
    let mut test = |name: &str, outcome: Result<Outcome>| match outcome {
        Ok(Outcome::Passed(figures)) => {
            println!("test {name} ... ok ({figures})");
            passed += 1;
        }
        Ok(Outcome::Skipped(why)) => {
            println!("test {name} ... ignored, {why}");
            ignored += 1;
        }
        Err(error) => {
            println!("test {name} ... FAILED: {error:#}");
            failed += 1;
        }
    };
    let hosts = args.hosts.map(Hosts::new).transpose()?;
    let place = args
        .hosts
        .map_or(String::new(), |n| format!(" over {n} hosts"));
    for ranks in [1, 2, 3, 4] {
        let outcome = suite(&programs.suite, ranks, hosts.as_ref());
        test(
            &format!("the conformance suite on {ranks} ranks{place}"),
            outcome,
        );
    }
    for ranks in [2, 4] {
        let outcome = ddp(&programs.ddp, ranks, hosts.as_ref());
        test(
            &format!("ddp on {ranks} ranks{place} is ddp on {ranks} threads"),
            outcome,
        );
    }
    for drill in DRILLS {
        let outcome = drilled(&programs.drill, drill, hosts.as_ref());
        test(&format!("drill {}{place}", drill.name), outcome);
    }
    match &hosts {
        Some(hosts) => test(
            "drill link: the cable is cut",
            cable(&programs.drill, hosts),
        ),
        None => test("more than 2^31 elements", large(&programs.drill)),
    }
    drop(hosts);
    test("nothing is left", nothing_left());
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {word}. {passed} passed; {failed} failed; {ignored} ignored");
    Ok(match failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

enum Outcome {
    /// With a figure or two.
    Passed(String),
    /// With the reason.
    Skipped(String),
}

/// Runs a job; what it ended with, and all that it said.
fn listen(
    program: &Path,
    args: &[&str],
    ranks: usize,
    hosts: Option<&Hosts>,
    tick: impl FnMut(&Running, &str),
) -> Result<(End, String)> {
    let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
    let job = Job {
        program,
        args: &args,
        ranks,
        hosts,
    };
    let said = std::cell::RefCell::new(String::new());
    let mut tick = tick;
    let end = job.run(
        |line| {
            said.borrow_mut().push_str(&line.text);
            said.borrow_mut().push('\n');
        },
        |running| tick(running, &said.borrow()),
    )?;
    Ok((end, said.into_inner()))
}

fn suite(program: &Path, ranks: usize, hosts: Option<&Hosts>) -> Result<Outcome> {
    let (end, said) = listen(program, &[], ranks, hosts, |_, _| ())?;
    let line = said
        .lines()
        .find(|line| line.starts_with("test result: ok."));
    ensure!(end.code == 0, "code {}\n{said}", end.code);
    let line = line.with_context(|| format!("no result\n{said}"))?;
    Ok(Outcome::Passed(
        line["test result: ok. ".len()..].to_owned(),
    ))
}

/// Trains as processes and as threads; the parameters are equal bit for bit.
fn ddp(program: &Path, ranks: usize, hosts: Option<&Hosts>) -> Result<Outcome> {
    let args = ["--json", "--epochs", "1"];
    let (end, said) = listen(program, &args, ranks, hosts, |_, _| ())?;
    ensure!(end.code == 0, "code {}\n{said}", end.code);
    let alone = Command::new(program)
        .args(args)
        .args(["--world-size", &ranks.to_string()])
        .output()?;
    let keys = ["parameters_sha256", "test_accuracy", "train_loss"];
    let summary = |text: &str| -> Result<Vec<Value>> {
        let line = text.lines().rfind(|line| line.starts_with('{'));
        let line: Value = serde_json::from_str(line.context("no summary")?)?;
        Ok(keys.iter().map(|key| line[key].clone()).collect())
    };
    let (theirs, ours) = (
        summary(&String::from_utf8_lossy(&alone.stdout))?,
        summary(&said)?,
    );
    ensure!(
        theirs == ours,
        "{keys:?}: {ours:?}, but {theirs:?} as threads"
    );
    Ok(Outcome::Passed(format!("parameters {}", ours[0])))
}

fn drilled(program: &Path, drill: &Drill, hosts: Option<&Hosts>) -> Result<Outcome> {
    let (end, said) = listen(program, &[drill.name], 3, hosts, |_, _| ())?;
    let limit = match drill.at_once {
        true => GRACE,
        false => DEADLINE + GRACE,
    };
    judge(&end, &said, drill.says, drill.code, end.time, limit)
}

/// A cable is cut while large reductions go on.
fn cable(program: &Path, hosts: &Hosts) -> Result<Outcome> {
    let mut cut: Option<Instant> = None;
    let mut failure = None;
    let (end, said) = listen(program, &["link"], hosts.count, Some(hosts), |_, said| {
        if cut.is_none() && said.matches("reduced").count() >= 3 {
            failure = hosts.cut(2).err();
            cut = Some(Instant::now());
        }
    })?;
    if let Some(failure) = failure {
        return Err(failure);
    }
    let cut = cut.with_context(|| format!("no reduction has ended\n{said}"))?;
    judge(
        &end,
        &said,
        "for rank 1: ",
        None,
        cut.elapsed(),
        DEADLINE + GRACE,
    )
}

fn judge(
    end: &End,
    said: &str,
    says: &str,
    code: Option<u8>,
    time: Duration,
    limit: Duration,
) -> Result<Outcome> {
    ensure!(said.contains(says), "nobody says `{says}`\n{said}");
    ensure!(end.code != 0, "the code is 0\n{said}");
    if let Some(code) = code {
        ensure!(end.code == code, "code {}, not {code}\n{said}", end.code);
    }
    ensure!(
        time <= limit,
        "it took {time:.1?}, more than {limit:?}\n{said}"
    );
    Ok(Outcome::Passed(format!("code {}, {time:.1?}", end.code)))
}

/// Needs three buffers of 2 GiB, and room to breathe.
fn large(program: &Path) -> Result<Outcome> {
    const NEEDED: u64 = 12 << 20;
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let free = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    if free.is_none_or(|free| free < NEEDED) {
        return Ok(Outcome::Skipped("it needs 12 GiB of free memory".into()));
    }
    let (end, said) = listen(program, &["large"], 2, None, |_, _| ())?;
    ensure!(end.code == 0, "code {}\n{said}", end.code);
    Ok(Outcome::Passed(format!("{:.1?}", end.time)))
}

/// No namespace, no file in shared memory, of this process.
fn nothing_left() -> Result<Outcome> {
    let id = std::process::id();
    for (folder, name) in [
        ("/run/netns", format!("phx{id}-")),
        ("/dev/shm", format!("phalanx-{id}-")),
    ] {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        for entry in entries {
            if entry.file_name().to_string_lossy().starts_with(&name) {
                bail!("{} is left", entry.path().display());
            }
        }
    }
    let mark = format!("PHALANX_JOB={id}-");
    let processes = std::fs::read_dir("/proc")?.flatten();
    for process in processes {
        let environment = std::fs::read(process.path().join("environ")).unwrap_or_default();
        let is_ours = |v: &[u8]| v.starts_with(mark.as_bytes());
        if environment.split(|&b| b == 0).any(is_ours) {
            bail!("process {} is left", process.file_name().to_string_lossy());
        }
    }
    Ok(Outcome::Passed("no process, namespace or file".into()))
}
