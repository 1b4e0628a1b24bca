//! The conformance suite as one rank of an MPI world: `mpirun -n 3 …/mpi-…`. Prints what libtest prints, so that
//! the totals count.

mod cases;

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
            if ranks.iter().any(|(rank, _)| *rank == 0) {
                let n = cases::ALL.len();
                println!("\ntest result: ok. {n} passed; 0 failed; 0 ignored");
            }
            ExitCode::SUCCESS
        }
        Err(e) => {
            report(format_args!("error: {e}"));
            ExitCode::FAILURE
        }
    }
}
