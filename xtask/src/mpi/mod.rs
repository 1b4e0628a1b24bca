//! The tests that need mpirun: the conformance suite at several numbers of ranks, data-parallel training against
//! PyTorch's values, against one process and against threads, pipelines against one process, messages of more than 2³¹
//! elements, data that moves while the ranks compute, and drills in which a rank goes wrong.

mod bare;
pub mod cells;
mod drills;
mod folder;
pub mod fuzz;
pub mod mpich;

pub use self::drills::nothing_left;

use std::fmt;
use std::iter::repeat_n;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use self::drills::DRILLS;
use crate::cargo::{artifacts, of_tests, program_of};
use crate::hosts::Hosts;
use crate::job::{End, Job};
use crate::lines::Line;
use crate::signals;

/// What to test.
#[derive(clap::Args)]
pub struct Args {
    /// Spread the ranks over so many hosts, which are network namespaces of this machine.
    #[arg(long)]
    hosts: Option<usize>,
    /// Only tests whose names contain this.
    #[arg(long, default_value = "")]
    only: String,
    /// Each test so many times.
    #[arg(long, default_value = "1")]
    times: usize,
}

/// The test programs of the crates `comm` and `parallel`, and the examples `ddp`, `pipeline` and `ddp_pipeline`.
struct Programs {
    unit: PathBuf,
    suite: PathBuf,
    drill: PathBuf,
    cells: PathBuf,
    parallel: PathBuf,
    runtime: PathBuf,
    pipeline_drill: PathBuf,
    ddp: PathBuf,
    pipeline: PathBuf,
    ddp_pipeline: PathBuf,
}

impl Programs {
    fn build() -> Result<Programs> {
        let tests =
            ["mpi", "drill", "cells", "ddp", "runtime"].map(|name| format!("--test={name}"));
        let mut programs =
            of_tests(&["build", "--bin=ddp", "--bin=pipeline", "--bin=ddp_pipeline"]);
        let programs = artifacts(programs.args(tests))?;
        let units = artifacts(&mut of_tests(&["test", "--no-run", "--lib"]))?;
        Ok(Programs {
            unit: program_of(&units, "comm", "lib", "phalanx_comm")?,
            suite: program_of(&programs, "comm", "test", "mpi")?,
            drill: program_of(&programs, "comm", "test", "drill")?,
            cells: program_of(&programs, "comm", "test", "cells")?,
            parallel: program_of(&programs, "parallel", "test", "ddp")?,
            runtime: program_of(&programs, "parallel", "test", "runtime")?,
            pipeline_drill: program_of(&programs, "parallel", "test", "drill")?,
            ddp: program_of(&programs, "examples", "bin", "ddp")?,
            pipeline: program_of(&programs, "examples", "bin", "pipeline")?,
            ddp_pipeline: program_of(&programs, "examples", "bin", "ddp_pipeline")?,
        })
    }
}

/// A test's name, and the test.
type Test<'a> = (String, Box<dyn Fn() -> Result<Outcome> + 'a>);

/// How a test went well.
pub enum Outcome {
    /// With a figure or two.
    Passed(String),
    /// It did not run, for this reason.
    Skipped(String),
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let programs = Programs::build()?;
    signals::catch();
    let hosts = args.hosts.map(Hosts::new).transpose()?;
    let mut counts = Tests::default();
    let tests = tests(&programs, hosts.as_ref())?;
    let wanted = tests.iter().filter(|(name, _)| name.contains(&args.only));
    for (name, run) in wanted.flat_map(|test| repeat_n(test, args.times)) {
        let outcome = run();
        // It ended because of Ctrl-C, and says nothing of the library.
        if signals::seen().is_some() {
            break;
        }
        counts.count(name, outcome);
    }
    drop(tests);
    drop(hosts);
    if let Some(signal) = signals::seen() {
        return Ok(ExitCode::from(u8::try_from(128 + signal)?));
    }
    counts.count("nothing is left", nothing_left());
    Ok(counts.end())
}

/// How many tests there were, of each end.
#[derive(Default)]
struct Tests {
    passed: usize,
    failed: usize,
    ignored: usize,
}

impl Tests {
    /// Prints how a test went, as libtest does.
    fn count(&mut self, name: &str, outcome: Result<Outcome>) {
        match outcome {
            Ok(Outcome::Passed(figures)) => {
                println!("test {name} ... ok ({figures})");
                self.passed += 1;
            }
            Ok(Outcome::Skipped(why)) => {
                println!("test {name} ... ignored, {why}");
                self.ignored += 1;
            }
            Err(error) => {
                println!("test {name} ... FAILED: {error:#}");
                self.failed += 1;
            }
        }
    }

    /// Prints the totals.
    fn end(&self) -> ExitCode {
        let Tests {
            passed,
            failed,
            ignored,
        } = self;
        let word = if *failed == 0 { "ok" } else { "FAILED" };
        println!("\ntest result: {word}. {passed} passed; {failed} failed; {ignored} ignored");
        match failed {
            0 => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        }
    }
}

fn tests<'a>(programs: &'a Programs, hosts: Option<&'a Hosts>) -> Result<Vec<Test<'a>>> {
    let place = hosts.map_or(String::new(), |hosts| {
        format!(" over {} hosts", hosts.count)
    });
    let mut tests: Vec<Test<'a>> = Vec::new();
    let mut add = |name: String, test: Box<dyn Fn() -> Result<Outcome> + 'a>| {
        tests.push((name + &place, test));
    };
    if hosts.is_none() {
        let test = move || result(&programs.unit, &["backends::mpi", "--color=never"], 1, None);
        add("comm's unit tests of the backend".into(), Box::new(test));
    }
    for ranks in [1, 2, 3, 4] {
        let test = move || result(&programs.suite, &[], ranks, hosts);
        add(
            format!("the conformance suite on {ranks} ranks"),
            Box::new(test),
        );
    }
    for (filter, ranks) in [("golden", 2), ("equivalence", 4)] {
        // Of the threads of a process, only one may be a rank.
        let test = move || {
            let args = [filter, "--test-threads=1", "--color=never"];
            result(&programs.parallel, &args, ranks, hosts)
        };
        add(
            format!("parallel's ddp::{filter} on {ranks} ranks"),
            Box::new(test),
        );
    }
    if hosts.is_none() {
        for ranks in [2, 4] {
            let test = move || {
                let args = [
                    "equivalence",
                    "meshes",
                    "tied",
                    "--test-threads=1",
                    "--color=never",
                ];
                result(&programs.runtime, &args, ranks, None)
            };
            add(format!("pipelines on {ranks} ranks"), Box::new(test));
        }
        let test = || pipelines_fail(&programs.pipeline_drill);
        add("pipelines in which a rank fails".into(), Box::new(test));
    }
    // What moves between stages is the same for every model; the deep one takes ten times as long.
    let quick = &["--model", "mlp"][..];
    for (program, name, flag, runs) in [
        (
            &programs.ddp,
            "ddp",
            "--world-size",
            &[(2, &[][..]), (4, &[])][..],
        ),
        (
            &programs.pipeline,
            "pipeline",
            "--ranks",
            &[(2, quick), (4, if hosts.is_none() { &[] } else { quick })],
        ),
        (
            &programs.ddp_pipeline,
            "ddp_pipeline",
            "--ranks",
            &[(4, quick)],
        ),
    ] {
        for &(ranks, options) in runs {
            let test = move || as_threads(program, options, flag, ranks, hosts);
            let name = format!("the example {name} on {ranks} ranks as on {ranks} threads");
            add(name, Box::new(test));
        }
    }
    for drill in DRILLS {
        let test = move || drill.run(&programs.drill, hosts);
        add(format!("drill {}", drill.name), Box::new(test));
    }
    add(
        "drill ctrl-c".to_owned(),
        Box::new(move || drills::interrupt(&programs.ddp, hosts)),
    );
    match hosts {
        Some(Hosts { count, .. }) => {
            let test = move || drills::cable(&programs.drill, *count);
            add("drill link, a cable is cut,".to_owned(), Box::new(test));
            // One phase of the drill shows what is different here: how a failure gets from one host to the other.
            let cells = cells::list(&programs.cells)?.into_iter();
            for cell in cells.filter(|cell| cell.is_of("between")) {
                let name = format!("drill {}", cell.name);
                add(name, Box::new(move || cell.run(&programs.cells, hosts)));
            }
        }
        None => {
            let test = move || bare::start(&programs.drill, drills::DEADLINE);
            add(
                "drill start, a process ends before it,".into(),
                Box::new(test),
            );
            let test = move || bare::whole_lines(&programs.ddp);
            add("drill lines of four ranks".into(), Box::new(test));
            let test = move || bare::other_arguments(&programs.ddp);
            add("drill arguments that differ".into(), Box::new(test));
            let test = move || overlap(&programs.drill);
            add("overlap beside a short wait".to_owned(), Box::new(test));
            let test = move || large(&programs.drill);
            add("more than 2^31 elements".to_owned(), Box::new(test));
        }
    }
    Ok(tests)
}

/// No test takes so long, unless it hangs.
const LIMIT: Duration = Duration::from_secs(300);

/// So many pipelines fail, each in a job of its own …
const PIPELINES: u64 = 50;
/// … of which none takes longer: its ranks' deadline is 1.5 s, and a rank that stalls does so for 2 s.
const PIPELINE_LIMIT: Duration = Duration::from_secs(8);

/// So many of them at a time: each waits for its deadline, mostly.
const AT_A_TIME: usize = 2;

/// A rank fails at an action of the plan; each rank is told what the drill expects, and the job ends by itself.
fn pipelines_fail(program: &Path) -> Result<Outcome> {
    let next = AtomicU64::new(0);
    let run = || -> Result<Duration> {
        let mut longest = Duration::ZERO;
        while signals::seen().is_none() {
            let seed = next.fetch_add(1, Relaxed);
            if seed >= PIPELINES {
                break;
            }
            // Where one goes wrong, no other lane starts another.
            let ended = pipeline_fails(program, seed);
            let ended = ended.inspect_err(|_| next.store(PIPELINES, Relaxed));
            longest = longest.max(ended?);
        }
        Ok(longest)
    };
    let longest = thread::scope(|scope| -> Result<Duration> {
        let lanes: Vec<_> = (0..AT_A_TIME).map(|_| scope.spawn(run)).collect();
        let mut longest = Duration::ZERO;
        for lane in lanes {
            longest = longest.max(lane.join().expect("no lane has panicked")?);
        }
        Ok(longest)
    })?;
    Ok(Outcome::Passed(format!(
        "{PIPELINES} of them, the longest took {longest:.1?}"
    )))
}

/// One of them, made from a seed; how long it took.
fn pipeline_fails(program: &Path, seed: u64) -> Result<Duration> {
    let ranks = 2 + (seed % 3) as usize;
    let (end, said) = listen(program, &[&seed.to_string()], ranks, None, |_| ())?;
    let told = (0..ranks).all(|rank| said.count(Some(rank), "told of ") == 1);
    ensure!(
        end.code == 0 && told && !end.by_force && end.time < PIPELINE_LIMIT,
        "the seed {seed}: code {}, after {:.1?}\n{said}",
        end.code,
        end.time
    );
    Ok(end.time)
}

/// All that a job has said.
#[derive(Default)]
struct Said(Vec<Line>);

impl Said {
    /// How many lines with this in them are of this rank; `None` is the launcher.
    fn count(&self, rank: Option<usize>, text: &str) -> usize {
        let lines = self.0.iter().filter(|line| line.rank == rank);
        lines.filter(|line| line.text.contains(text)).count()
    }

    /// What follows this in the first line of this rank that begins with it.
    fn find(&self, rank: Option<usize>, start: &str) -> Option<&str> {
        let mut lines = self.0.iter().filter(|line| line.rank == rank);
        lines.find_map(|line| line.text.strip_prefix(start))
    }

    /// The bare lines, whosever they are.
    fn text(&self) -> String {
        let lines = self.0.iter().map(|line| line.text.clone() + "\n");
        lines.collect()
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// Runs a job; what it ended with, and all that it said. `tick` sees what it has said so far.
fn listen(
    program: &Path,
    args: &[&str],
    ranks: usize,
    hosts: Option<&Hosts>,
    mut tick: impl FnMut(&Said),
) -> Result<(End, Said)> {
    let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
    let job = Job {
        program,
        args: &args,
        ranks,
        hosts,
        limit: Some(LIMIT),
    };
    let said = std::cell::RefCell::new(Said::default());
    let end = job.run(
        |line| said.borrow_mut().0.push(line.clone()),
        || tick(&said.borrow()),
    )?;
    Ok((end, said.into_inner()))
}

/// Runs a test program; it passes if it says so, of at least one test.
fn result(program: &Path, args: &[&str], ranks: usize, hosts: Option<&Hosts>) -> Result<Outcome> {
    let (end, said) = listen(program, args, ranks, hosts, |_| ())?;
    ensure!(end.code == 0, "code {}\n{said}", end.code);
    passed(&said.text())
}

/// What the result in these lines says, which is that of a test program.
fn passed(text: &str) -> Result<Outcome> {
    const GOOD: &str = "test result: ok. ";
    let line = text.lines().find_map(|line| line.strip_prefix(GOOD));
    let counts = line.with_context(|| format!("no result\n{text}"))?;
    ensure!(!counts.starts_with("0 passed"), "there is no test\n{text}");
    let passed = counts.split(';').next().unwrap_or_default();
    Ok(Outcome::Passed(passed.to_owned()))
}

/// Trains as processes and as threads; the parameters are equal bit for bit.
fn as_threads(
    program: &Path,
    options: &[&str],
    flag: &str,
    ranks: usize,
    hosts: Option<&Hosts>,
) -> Result<Outcome> {
    let args = [&["--json", "--epochs", "1"], options].concat();
    let (end, said) = listen(program, &args, ranks, hosts, |_| ())?;
    ensure!(end.code == 0, "code {}\n{said}", end.code);
    let alone = Command::new(program)
        .args(&args)
        .args([flag, &ranks.to_string()])
        .output()?;
    let keys = ["parameters_sha256", "test_accuracy", "train_loss"];
    let summary = |text: &str| -> Result<Vec<Value>> {
        let line = text.lines().rfind(|line| line.starts_with('{'));
        let line: Value = serde_json::from_str(line.context("no summary")?)?;
        Ok(keys.iter().map(|key| line[key].clone()).collect())
    };
    let (theirs, ours) = (
        summary(&String::from_utf8_lossy(&alone.stdout))?,
        summary(&said.text())?,
    );
    ensure!(
        theirs == ours,
        "{keys:?}: {ours:?}, but {theirs:?} as threads"
    );
    ensure!(
        ours.iter().all(|value| !value.is_null()),
        "{keys:?}: {ours:?}"
    );
    Ok(Outcome::Passed(format!("parameters {}", ours[0])))
}

/// Data moves while two ranks compute.
fn overlap(program: &Path) -> Result<Outcome> {
    let (end, said) = listen(program, &["overlap"], 2, None, |_| ())?;
    ensure!(end.code == 0, "code {}\n{said}", end.code);
    Ok(Outcome::Passed(format!("{:.1?}", end.time)))
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
    let (end, said) = listen(program, &["large"], 2, None, |_| ())?;
    ensure!(end.code == 0, "code {}\n{said}", end.code);
    Ok(Outcome::Passed(format!("{:.1?}", end.time)))
}
