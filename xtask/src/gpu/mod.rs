//! `cargo xtask test-multi-gpu`: the tests of cards, on the cards of this machine or on simulated ones.
//!
//! Each test program is a process of its own, one at a time. On simulated cards, each finding of the simulated device is
//! a failure.

mod ahead;
pub mod bundle;
mod cards;
mod findings;
pub mod kernels;
mod nvrtc;
pub mod programs;
pub mod simulator;

use std::ffi::OsString;
use std::fmt;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result};

use self::cards::Driver;
use self::findings::judged;
use self::nvrtc::Nvrtc;
use self::simulator::{Simulator, search};
use crate::cargo::{root, watch};
use crate::lines;
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
        let kernels = root().join("target/kernels");
        environment.push(("PHALANX_KERNEL_CACHE", kernels.into()));
        // There are cards, so a test that finds none has a fault.
        environment.push(("PHALANX_REQUIRE_CARDS", self.count().to_string().into()));
        environment
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

/// Runs every test program, with as many seeds as the cards have use for.
fn test(cards: &Cards, nvrtc: &Nvrtc, seeds: u64) -> Result<Report> {
    let mut report = Report::default();
    let seeds = match cards {
        Cards::Real(_) => 1,
        Cards::Simulated(_) => seeds,
    };
    for (program, path) in programs::tests(false)? {
        // The cases of a table are many, and each is one operation: it has no order that a seed could change.
        let seeds = if program.is_table { 1 } else { seeds };
        for seed in 0..seeds {
            let (name, what) = match cards {
                Cards::Real(_) => (program.name(), "on real cards".to_owned()),
                Cards::Simulated(_) => (
                    format!("{} {seed}", program.name()),
                    format!("on simulated cards, with the seed {seed}"),
                ),
            };
            let start = Instant::now();
            let mut command = Command::new(&path);
            command.envs(cards.environment(seed, nvrtc));
            command.envs(program.environment.iter().copied());
            command.args(program.arguments());
            command.current_dir(root().join(program.folder));
            let tally = run_test(&mut command, &name, cards)?;
            report.add(name, what, &tally, Some(start.elapsed()));
        }
    }
    Ok(report)
}

/// Runs a test program, and asks the simulated device what it has found.
fn run_test(command: &mut Command, name: &str, cards: &Cards) -> Result<Tally> {
    println!("\n== {name}");
    let mut tally = Tally::default();
    // What a test says that it skips is among the output of those that passed.
    let status = watch(command.arg("--show-output"), |line| tally.read(line))
        .with_context(|| format!("the test program {name}"))?;
    if !status.success() && tally.failed == 0 {
        lines::report(format_args!("error: {name} ended with {status}"))?;
        tally.failed += 1;
    }
    if status.success() && tally.passed == 0 && tally.skipped.is_empty() {
        lines::report(format_args!("error: {name} has no test that ran"))?;
        tally.failed += 1;
    }
    for line in cards.findings().map_or(Vec::new(), |f| judged(&f)) {
        println!("{line}");
        tally.read(&line);
    }
    Ok(tally)
}
