//! A rank of a pipeline that fails at an action of the plan, on processes: `mpirun -n 3 …/drill-… SEED`. Each rank compares
//! what it is told with what it should be, and `cargo xtask mpi` how the job ends.

#[path = "support/faulty.rs"]
#[allow(dead_code, reason = "another test program uses the rest")]
mod faulty;
#[path = "runtime/models.rs"]
#[allow(dead_code, reason = "another test program uses the rest")]
mod models;
#[path = "support/ranks.rs"]
#[allow(dead_code, reason = "another test program uses the rest")]
mod ranks;
#[path = "support/rng.rs"]
mod rng;

use faulty::{Case, Fault, deadline};
use phalanx_comm::env::Start;
use phalanx_comm::{LaunchConfig, Ranks, RunConfig, report, run};
use rng::Rng;
use std::process::ExitCode;
use std::sync::OnceLock;

fn main() -> ExitCode {
    let seed = std::env::args().nth(1).and_then(|seed| seed.parse().ok());
    let (Some(seed), Ok(Start::Mpi(process))) = (seed, Start::detect()) else {
        println!("drill: started alone, there is nobody to go wrong for");
        return ExitCode::SUCCESS;
    };
    let case = Case::random(&mut Rng(seed), process.size);
    let launch = LaunchConfig::new(1).deadline(deadline());
    // The rank that fails ends the world itself, so its `run` gives an error whatever its program makes of it.
    let told = OnceLock::new();
    let end = run(RunConfig::new(Ranks::OrAlone(1)).launch(launch), |group| {
        let sentence = case.play(group).map_err(|error| error.to_string())?;
        let _ = told.set(sentence); // one rank, one sentence
        Ok::<_, String>(())
    });
    // A rank that panics is told nothing by its pipeline; its launch says what it died of.
    let panics = case.fault == Fault::Panic && process.rank == case.culprit();
    let (is_told, sentence) = match (told.into_inner(), end) {
        (Some(sentence), _) => (!panics && case.is_told(&sentence), sentence),
        (None, Err(error)) => {
            let sentence = error.to_string();
            (panics && sentence.contains("on purpose"), sentence)
        }
        (None, Ok(_)) => (false, "nothing".to_owned()),
    };
    let word = if is_told { "told" } else { "error: told" };
    report(format_args!("{word} of {}: {sentence}", case.name));
    match is_told {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
