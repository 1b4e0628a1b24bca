//! `cargo xtask test-multi-gpu`: the tests of cards, on the cards of this machine or on simulated ones.
//!
//! Each test program is a process of its own, one at a time on real cards. On simulated cards, each finding of the simulated
//! device is a failure.

pub mod ahead;
pub mod bundle;
mod cards;
mod findings;
pub mod kernels;
mod nvrtc;
pub mod programs;
pub mod simulator;

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use anyhow::{Context, Result};

use self::cards::Driver;
use self::findings::judged;
use self::nvrtc::Nvrtc;
use self::programs::Program;
use self::simulator::{Simulator, search};
use crate::cargo::{root, watch};
use crate::machine::in_lanes;
use crate::report::Report;
use crate::tally::Tally;

/// So many cards are simulated where nobody says how many.
const SIMULATED: usize = 2;

/// On which cards to test.
#[derive(clap::Args)]
pub struct Args {
    /// Use this many simulated cards, whether there are real ones or not.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=64))]
    simulate: Option<u64>,
    /// Fail where fewer cards than this take part, real or simulated.
    #[arg(long, value_name = "N", default_value = "0")]
    require: usize,
    /// Run each program with this many orders of what is not ordered (on simulated cards).
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// Look for races in global memory too: between the threads of a block, and between blocks (on simulated cards).
    #[arg(long)]
    check: bool,
}

/// The folder with the compiled kernels of test programs.
fn kernels() -> PathBuf {
    root().join("target/kernels")
}

/// What the tests run on.
pub enum Cards {
    Real(Driver),
    Simulated(Simulator),
}

impl Cards {
    /// How many there are.
    fn count(&self) -> usize {
        match self {
            Cards::Real(driver) => driver.cards.len(),
            Cards::Simulated(simulator) => simulator.gpus,
        }
    }

    /// What a test program finds in its environment.
    pub fn environment(&self, seed: u64, nvrtc: &Nvrtc) -> Vec<(&'static str, OsString)> {
        let folder = nvrtc.folder.as_deref();
        let mut environment = match self {
            Cards::Real(_) => vec![("LD_LIBRARY_PATH", search([folder]))],
            Cards::Simulated(simulator) => simulator.environment(seed, folder),
        };
        environment.push(("PHALANX_KERNEL_CACHE", kernels().into()));
        // There are cards, so a test that finds none has a fault.
        environment.push(("PHALANX_REQUIRE_CARDS", self.count().to_string().into()));
        environment
    }

    /// The same for programs that run beside others.
    fn beside(&self, number: usize) -> Cards {
        match self {
            Cards::Real(driver) => Cards::Real(driver.clone()),
            Cards::Simulated(simulator) => Cards::Simulated(simulator.beside(number)),
        }
    }

    /// What simulated ones have found since the last call.
    pub fn findings(&self) -> Option<Vec<String>> {
        match self {
            Cards::Real(_) => None,
            Cards::Simulated(simulator) => Some(simulator.findings()),
        }
    }
}

impl fmt::Display for Cards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cards::Real(driver) => driver.fmt(f),
            Cards::Simulated(simulator) => {
                write!(f, "simulated cards: {}, and no real one", simulator.gpus)?;
                match simulator.checks {
                    true => write!(f, ", which look for races in global memory"),
                    false => Ok(()),
                }
            }
        }
    }
}

/// Whether this machine has a card.
pub fn has_cards() -> bool {
    Driver::find().is_some()
}

/// Why simulated cards cannot be had here, if they cannot. Fetches what is not here.
pub fn obstacle() -> Option<String> {
    simulator::nvrtc().err()
}

/// Cards for a chore that wants so many: the real ones, or simulated ones; with NVRTC for their kernels. Or why there are
/// none.
///
/// # Errors
/// The simulated device does not build.
pub fn for_ranks(ranks: usize) -> Result<Result<(Cards, Nvrtc), String>> {
    let real = Driver::find().filter(|driver| driver.cards.len() >= ranks);
    Ok(match real {
        Some(driver) => Nvrtc::find().map(|nvrtc| (Cards::Real(driver), nvrtc)),
        None => match simulator::nvrtc() {
            Ok(nvrtc) => Ok((Cards::Simulated(Simulator::build(ranks)?), nvrtc)),
            Err(why) => Err(why),
        },
    })
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let real = match args.simulate {
        Some(_) => None,
        None => Driver::find(),
    };
    let found = match &real {
        Some(_) => Nvrtc::find(),
        None => simulator::nvrtc(),
    };
    let nvrtc = match found {
        Ok(nvrtc) => nvrtc,
        Err(why) if real.is_some() => anyhow::bail!("there are cards, but {why}"),
        Err(why) => {
            println!("SKIPPED: the tests of cards: none is real, none can be simulated: {why}");
            if args.require > 0 {
                println!("MISSING --require {}, but no card took part", args.require);
            }
            return Ok(code(args.require == 0));
        }
    };
    let cards = match real {
        Some(driver) => Cards::Real(driver),
        None => {
            if args.simulate.is_none() {
                println!(
                    "THERE IS NO CARD HERE: the tests run on simulated ones, which prove less"
                );
            }
            let gpus = match args.simulate {
                Some(gpus) => usize::try_from(gpus)?,
                None => SIMULATED.max(args.require.min(64)),
            };
            let simulator = Simulator::build(gpus)?;
            Cards::Simulated(match args.check {
                true => simulator.checking(),
                false => simulator,
            })
        }
    };
    if args.check && matches!(cards, Cards::Real(_)) {
        println!("SKIPPED: --check: real cards do not look for races");
    }
    ahead::lend(&kernels())?;
    let report = test(&cards, &nvrtc, args.seeds)?;
    print!("\n{report}");
    println!("ON {cards}; {nvrtc}");
    let enough = cards.count() >= args.require;
    if !enough {
        println!(
            "MISSING --require {}, but {} took part",
            args.require,
            cards.count()
        );
    }
    println!("{}", report.totals());
    Ok(code(report.is_good() && enough))
}

fn code(good: bool) -> ExitCode {
    match good {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// A run of a test program.
struct Run {
    program: &'static Program,
    path: PathBuf,
    seed: u64,
}

/// Runs every test program, with as many seeds as the cards have use for. On simulated cards, those without deadlines run side
/// by side, since a program that waits for its card leaves a core to others; then the rest runs, each alone.
fn test(cards: &Cards, nvrtc: &Nvrtc, seeds: u64) -> Result<Report> {
    let report = Mutex::new(Report::default());
    let mut runs = Vec::new();
    for (program, path) in programs::tests(false)? {
        let seeds = match cards {
            Cards::Simulated(_) if program.takes_seeds => seeds,
            _ => 1,
        };
        runs.extend((0..seeds).map(|seed| Run {
            program,
            path: path.clone(),
            seed,
        }));
    }
    let beside = |run: &Run| run.program.runs_beside_others && matches!(cards, Cards::Simulated(_));
    let (beside, alone): (Vec<Run>, Vec<Run>) = runs.into_iter().partition(beside);
    let next = AtomicUsize::new(0);
    in_lanes(
        || beside.get(next.fetch_add(1, Relaxed)),
        |lane, run| run.go(&cards.beside(lane), nvrtc, &report, false),
    )?;
    for run in &alone {
        run.go(cards, nvrtc, &report, true)?;
    }
    Ok(report.into_inner().expect("no lane has panicked"))
}

impl Run {
    /// Runs it, and asks the simulated device what it has found. `live`: its output is printed as it comes, and not when it
    /// has ended.
    fn go(&self, cards: &Cards, nvrtc: &Nvrtc, report: &Mutex<Report>, live: bool) -> Result<()> {
        let Run {
            program,
            path,
            seed,
        } = self;
        let (name, what) = match cards {
            Cards::Real(_) => (program.name(), "on real cards".to_owned()),
            Cards::Simulated(_) => (
                format!("{} {seed}", program.name()),
                format!("on simulated cards, with the seed {seed}"),
            ),
        };
        let mut command = Command::new(path);
        command.envs(cards.environment(*seed, nvrtc));
        command.envs(program.environment.iter().copied());
        command.args(program.arguments());
        command.current_dir(root().join(program.folder));
        // What a test says that it skips is among the output of those that passed.
        command.arg("--show-output");
        let start = Instant::now();
        let mut tally = Tally::default();
        let mut lines = Vec::new();
        let status = match live {
            true => {
                println!("\n== {name}");
                watch(&mut command, |line| tally.read(line))
            }
            false => command
                .stderr(Stdio::inherit())
                .output()
                .map(|output| {
                    let text = String::from_utf8_lossy(&output.stdout);
                    lines.extend([String::new(), format!("== {name}")]);
                    lines.extend(text.lines().map(str::to_owned));
                    output.status
                })
                .map_err(anyhow::Error::from),
        };
        let status = status.with_context(|| format!("the test program {name}"))?;
        lines.iter().for_each(|line| tally.read(line));
        let took = start.elapsed();
        if !status.success() && tally.failed == 0 {
            lines.push(format!("error: {name} ended with {status}"));
            tally.fail(&name, format_args!("it ended with {status}"));
        }
        if status.success() && tally.passed == 0 && tally.skipped.is_empty() {
            lines.push(format!("error: {name} has no test that ran"));
            tally.fail(&name, "it has no test that ran");
        }
        for line in cards.findings().map_or(Vec::new(), |f| judged(&f)) {
            tally.read(&line);
            lines.push(line);
        }
        let mut report = report.lock().expect("no lane has panicked");
        lines.iter().for_each(|line| println!("{line}"));
        report.add(name, what, &tally, Some(took));
        Ok(())
    }
}
