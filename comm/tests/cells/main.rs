//! The drill: six phases in the life of a group by six ways in which a rank goes wrong (`table.rs`), on threads and on
//! processes. What the others hold is a typed error that names the culprit, and they hold it while the culprit's loop
//! still runs; afterwards the same process runs a second world.
//!
//! `cargo test --test cells` plays the cells on threads, each in a process of its own, so that nothing can hang; with the
//! feature `nccl` and `PHALANX_TEST_DEVICE=cuda:0` each thread has a card. Under mpirun, `cargo xtask mpi` starts a job for
//! each: `--cells mpi` lists them, `--play` is what a rank of the job runs, and `--judge` says whether the job went as the
//! table wants it. `cargo xtask drill` prints all as tables.

mod cards;
mod children;
mod judge;
mod play;
mod reads;
mod site;
mod table;

use judge::{End, SECOND};
use phalanx_comm::env::Start;
use phalanx_comm::{LaunchConfig, LaunchError, OnFailure, Ranks, RunConfig, report, run};
use site::{Site, WRONG};
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use table::{Backend, CULPRIT, Cell, END_AFTER, Fault, Must, ON_PURPOSE, Phase, RANKS, START};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["--cells", backend] => backend.parse().map(cells),
        ["--play", cell, folder] => cell.parse().map(|cell| play(cell, Path::new(folder))),
        ["--judge", backend, cell, code, by_force, at] => {
            judge(backend, cell, [code, by_force, at])
        }
        _ if words.contains(&"--list") => Ok(list()),
        // The other options of libtest, which cargo passes on, mean nothing here.
        _ => {
            let words = args.into_iter().filter(|word| !word.starts_with('-'));
            Ok(children::run(&words.collect::<Vec<_>>()))
        }
    };
    done.unwrap_or_else(|error| {
        report(format_args!("error: {error}"));
        ExitCode::FAILURE
    })
}

/// Lists the cells of threads, as libtest does.
fn list() -> ExitCode {
    Cell::all(Backend::on(cards::first_device())).for_each(|cell| println!("{cell}: test"));
    ExitCode::SUCCESS
}

/// Lists the cells of a backend; behind a colon, why one does not apply.
fn cells(backend: Backend) -> ExitCode {
    for cell in Cell::all(backend) {
        match cell.must(backend) {
            Must::NotApply(why) => println!("{cell}: {why}"),
            _ => println!("{cell}"),
        }
    }
    ExitCode::SUCCESS
}

/// Judges a job of which all lines come from stdin.
fn judge(backend: &str, cell: &str, [code, by_force, at]: [&str; 3]) -> Result<ExitCode, String> {
    let (backend, cell): (Backend, Cell) = (backend.parse()?, cell.parse()?);
    let mut said = String::new();
    let read = std::io::stdin().read_to_string(&mut said);
    read.map_err(|error| error.to_string())?;
    let end = End {
        said,
        code: code.parse().ok(),
        by_force: by_force == "true",
        at: at.parse().map_err(|_| format!("{at} is no time"))?,
    };
    let say = |judgement: judge::Judgement| match judgement {
        Ok(text) => println!("ok {text}"),
        Err(why) => println!("FAILED {why}"),
    };
    say(end.judge(cell, backend));
    end.judge_second(cell, backend).map(say);
    Ok(ExitCode::SUCCESS)
}

/// Plays a cell: on all its ranks where it is started alone, on one under mpirun; then a second run.
fn play(cell: Cell, folder: &Path) -> ExitCode {
    let (backend, rank) = match Start::detect() {
        Ok(Start::Mpi(process)) => (Backend::Mpi, process.rank),
        _ => (Backend::on(cards::first_device()), 0),
    };
    let must = cell.must(backend);
    let site = Site::new(cell, must, folder);
    // One line for a panic, and no time for a backtrace.
    std::panic::set_hook(Box::new(|info| report(info)));
    let never_starts = backend == Backend::Mpi && cell.phase == Phase::Before;
    if never_starts && rank == CULPRIT {
        return before(&site);
    }
    let start = match must {
        Must::EndTheStart => START,
        _ => Duration::from_secs(20),
    };
    if let Err(error) = cards::warm_up() {
        println!("{WRONG}: {error}");
        return ExitCode::FAILURE;
    }
    let config = LaunchConfig::new(RANKS).device(cards::first_device());
    let config = config.deadline(cell.deadline(backend));
    let first = config.clone().start_deadline(start);
    let first = match must {
        Must::EndByPolicy => first.on_failure(OnFailure::EndAfter(END_AFTER)),
        _ => first,
    };
    let ranks = || RunConfig::new(Ranks::Exactly(RANKS));
    match run(ranks().launch(first), |g| play::play(&*g, &site, backend)) {
        Ok(_) => println!("{WRONG}: the run ends well"),
        Err(LaunchError::Ranks { first, .. }) => {
            // Who panics, or returns an error of its own, is the first to fail.
            let own = matches!(cell.fault, Fault::Panic | Fault::Error);
            if backend != Backend::Mpi && own && first.rank != CULPRIT {
                println!("{WRONG}: the first to fail is {first}");
            }
        }
        Err(error) => println!("{WRONG}: the run ends with: {error}"),
    }
    if !matches!(must, Must::Hold(_)) {
        return ExitCode::FAILURE;
    }
    let config = config.deadline(Duration::from_secs(5));
    let second = run(ranks().launch(config), |g| {
        play::again(&*g).map(|()| g.rank())
    });
    match second {
        Ok(ranks) => {
            let say = |(rank, _)| println!("{SECOND} rank {rank} is well");
            ranks.into_iter().for_each(say);
        }
        Err(error) => println!("{SECOND} {error}"),
    }
    match cards::left() {
        Ok(0) => {}
        Ok(left) => println!("{SECOND} {left} bytes are left on the ranks' devices"),
        Err(error) => println!("{SECOND} {error}"),
    }
    ExitCode::from(cell.code(backend))
}

/// A process goes wrong before it starts MPI.
fn before(site: &Site) -> ExitCode {
    site.note_fault();
    match site.cell.fault {
        Fault::Panic => panic!("{ON_PURPOSE}"),
        Fault::Loop => site.compute(),
        // As if all were well: mpirun takes no notice.
        Fault::Gone => return ExitCode::SUCCESS,
        Fault::Error | Fault::Differs | Fault::Abort => {}
    }
    ExitCode::FAILURE
}
