//! The scenes of `divergence.rs` on processes: whatever one rank does wrong, every live rank gets one and the same
//! error, which names that rank, and none gets it later than a second after the deadline.
//!
//! `cargo xtask fuzz` starts a job for each scene: `--play FOLDER SEED` is one of its ranks, and leaves a file that says
//! what it heard; `--judge FOLDER SEED RANKS` compares them.

mod scenes;

use phalanx_comm::{Error, LaunchConfig, ProcessGroup, Ranks, RunConfig, env::Start, report, run};
use scenes::{Crime, Scene, is_right};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

/// Where nobody waits in vain, all have heard within this; a verdict waits a second at most for those that have not come.
const AT_ONCE: Duration = Duration::from_secs(3);
/// Beyond the deadline, nobody hears later.
const SLACK: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<u64>().map_err(|e| format!("{text}: {e}"));
    let done = match words[..] {
        ["--play", folder, seed] => number(seed).and_then(|seed| play(Path::new(folder), seed)),
        ["--judge", folder, seed, ranks] => number(seed).and_then(|seed| {
            let ranks = number(ranks)? as usize;
            println!("{}", judge(Path::new(folder), seed, ranks)?);
            Ok(())
        }),
        _ => {
            println!("fuzz_mpi: started alone, there is nobody to go wrong for");
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(format_args!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// What a rank leaves behind.
struct Heard {
    /// When the scene began for it, and when it ended, in nanoseconds since 1970.
    began: u64,
    ended: u64,
    /// The fatal error, if it heard of one.
    error: Option<Told>,
}

/// An error, as one rank heard of it.
#[derive(Debug, PartialEq)]
struct Told {
    /// Whether it is a right one, and refuses all further work.
    is_right: bool,
    /// Whether it says that ranks wait for each other.
    is_circle: bool,
    text: String,
}

impl Heard {
    fn write(&self) -> String {
        let Heard { began, ended, .. } = self;
        match &self.error {
            None => format!("{began} {ended}"),
            Some(Told {
                is_right,
                is_circle,
                text,
            }) => format!("{began} {ended} {is_right} {is_circle} {text}"),
        }
    }

    fn read(text: &str) -> Option<Heard> {
        let mut parts = text.splitn(5, ' ');
        let (began, ended) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let error = match (parts.next(), parts.next(), parts.next()) {
            (Some(is_right), Some(is_circle), Some(text)) => Some(Told {
                is_right: is_right.parse().ok()?,
                is_circle: is_circle.parse().ok()?,
                text: text.to_owned(),
            }),
            _ => None,
        };
        Some(Heard {
            began,
            ended,
            error,
        })
    }
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |time| time.as_nanos() as u64)
}

/// Plays one rank's part.
fn play(folder: &Path, seed: u64) -> Result<(), String> {
    std::panic::set_hook(Box::new(|info| report(info)));
    // How many ranks there are says the launcher, and the scene depends on it.
    let ranks = match Start::detect() {
        Ok(Start::Mpi(process)) => process.size,
        _ => return Err("mpirun has not started it".into()),
    };
    let mut scene = Scene::random(seed, ranks);
    scene.is_on_processes = true;
    let config = LaunchConfig::new(ranks).deadline(scene.deadline());
    let config = RunConfig::new(Ranks::Exactly(ranks)).launch(config);
    let end = run(config, |g| {
        let file = folder.join(g.rank().to_string());
        // All have started MPI: the time of that is no part of the scene.
        g.barrier()?.wait()?;
        let began = now();
        let end = scene.play(&g);
        let error = end.as_ref().err().filter(|error| error.is_fatal());
        let error = error.map(|error| judge_own(&*g, &scene, error));
        let of_rank = Heard {
            began,
            ended: now(),
            error,
        };
        let left = std::fs::write(&file, of_rank.write());
        left.unwrap_or_else(|e| report(format_args!("{}: {e}", file.display())));
        end
    });
    // As a program ends that fails: with the error, and a code of its own.
    end.map(drop).map_err(|error| error.to_string())
}

/// What a rank makes of its error.
fn judge_own(g: &dyn ProcessGroup, scene: &Scene, error: &Error) -> Told {
    let again = g.barrier().map(drop);
    let refuses = again.as_ref() == Err(error);
    Told {
        is_right: refuses && is_right(error, scene),
        is_circle: matches!(error, Error::Deadlock { .. }),
        text: error.to_string(),
    }
}

/// Compares what the ranks of a scene have left; a few words, or what is wrong.
fn judge(folder: &Path, seed: u64, ranks: usize) -> Result<String, String> {
    let mut scene = Scene::random(seed, ranks);
    scene.is_on_processes = true;
    let say = format!("seed {seed}: {scene:?}");
    let read = |rank: usize| {
        let text = std::fs::read_to_string(folder.join(rank.to_string())).ok()?;
        Some((rank, Heard::read(&text)?))
    };
    let all: Vec<(usize, Heard)> = (0..ranks).filter_map(read).collect();
    let errors: Vec<(usize, &Told)> = all
        .iter()
        .filter_map(|(rank, heard)| Some((*rank, heard.error.as_ref()?)))
        .collect();
    let told = |what: &str| Err(format!("{say}: {what}: {errors:?}"));
    if errors.len() + scene.silent() < ranks {
        return told("not all ranks have heard of it");
    }
    if errors.iter().any(|(_, error)| *error != errors[0].1) {
        return told("the ranks have not heard the same");
    }
    if !errors[0].1.is_right {
        return told("it is not the right error");
    }
    let began = all.iter().map(|(_, heard)| heard.began).max();
    let innocent = all.iter().filter(|(rank, _)| *rank != scene.culprit);
    let ended = innocent.map(|(_, heard)| heard.ended).max();
    let took = ended.unwrap_or(0).saturating_sub(began.unwrap_or(0));
    let took = Duration::from_nanos(took);
    let waits = matches!(scene.crime, Crime::Late | Crime::Recv | Crime::Missing);
    let limit = match waits {
        true => scene.deadline() + SLACK,
        false => AT_ONCE,
    };
    match took <= limit {
        true => {
            // `cargo xtask fuzz` counts these words.
            let circle = if errors[0].1.is_circle {
                " in a circle"
            } else {
                ""
            };
            Ok(format!(
                "{:?}{circle} of {ranks} ranks, {took:.1?}",
                scene.crime
            ))
        }
        false => told(&format!("it took {took:.1?}, more than {limit:?}")),
    }
}
