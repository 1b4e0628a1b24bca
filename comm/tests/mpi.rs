//! The conformance suite as one rank of an MPI world, and then worlds that fail: `mpirun -n 3 …/mpi-…`. Prints what
//! libtest prints, so that the totals count.

mod cases;
mod worlds;

use phalanx_comm::{Error, LaunchConfig, Ranks, RunConfig, report, run};
use std::process::ExitCode;
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    let config = LaunchConfig::new(1).deadline(Duration::from_secs(60));
    let config = RunConfig::new(Ranks::OrAlone(1)).launch(config);
    let end = run(config, |group| {
        for (name, case) in cases::ALL {
            let start = Instant::now();
            case(&*group)?;
            group.barrier()?.wait()?;
            if group.rank() == 0 {
                println!("test {name} ... ok ({:?})", start.elapsed());
            }
        }
        Ok::<_, Error>(group.rank())
    });
    match end {
        Ok(ranks) => {
            let speaks = ranks.iter().any(|(rank, _)| *rank == 0);
            let (passed, ignored) = play(speaks);
            if speaks {
                let n = cases::ALL.len() + passed;
                println!("\ntest result: ok. {n} passed; 0 failed; {ignored} ignored");
            }
            ExitCode::SUCCESS
        }
        Err(e) => {
            report(format_args!("error: {e}"));
            ExitCode::FAILURE
        }
    }
}

/// Plays the worlds that there are ranks for, and returns how many there were, and how many were left out.
fn play(speaks: bool) -> (usize, usize) {
    let size = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"]
        .iter()
        .find_map(|v| std::env::var(v).ok());
    let size = size.and_then(|size| size.parse().ok()).unwrap_or(0);
    let (mut passed, mut ignored) = (0, 0);
    for world in worlds::ALL {
        if size < world.ranks {
            let (name, needs) = (world.name, world.ranks);
            println!(
                "test {name} ... ignored, it needs mpirun, and {needs} or more ranks of it, not {size}"
            );
            ignored += 1;
            continue;
        }
        let start = Instant::now();
        (world.test)();
        if speaks {
            println!("test {} ... ok ({:?})", world.name, start.elapsed());
        }
        passed += 1;
    }
    (passed, ignored)
}
