//! `cargo xtask fuzz`: scenes in which a rank goes wrong, made from seeds (`comm/tests/fuzz_mpi.rs`), each a job of
//! 2 to 5 processes. The program plays a rank, and compares what the ranks have heard.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Result, anyhow, bail, ensure};

use super::folder::Folder;
use super::nothing_left;
use crate::cargo::{artifacts, of_tests, program_of};
use crate::job::Job;
use crate::{machine, signals};

/// No scene takes so long, unless a rank hangs.
const LIMIT: Duration = Duration::from_secs(30);

/// Which scenes to play.
#[derive(clap::Args)]
pub struct Args {
    /// How many
    #[arg(long, default_value = "60")]
    scenes: u64,
    /// The seed of the first; a failure names its seed
    #[arg(long, default_value = "0")]
    first: u64,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    if let Some(obstacle) = machine::obstacle() {
        bail!("{obstacle}");
    }
    let mut build = of_tests(&["build", "--quiet", "--test=fuzz_mpi"]);
    let program = &program_of(&artifacts(&mut build)?, "comm", "test", "fuzz_mpi")?;
    signals::catch();
    let (mut passed, mut failed) = (0, 0);
    // Ranks that wait for each other may come to the deadline before that is seen, where the machine is busy. If all did,
    // nobody would look for circles any more.
    let (mut waits, mut circles) = (0_usize, 0_usize);
    let mut test = |name: &str, end: Result<String>| match end {
        Ok(text) => {
            println!("test {name} ... ok ({text})");
            passed += 1;
        }
        Err(error) => {
            println!("test {name} ... FAILED: {error:#}");
            failed += 1;
        }
    };
    for seed in args.first..args.first.saturating_add(args.scenes) {
        let end = scene(program, seed);
        if let Ok(text) = &end {
            waits += usize::from(text.starts_with("Recv"));
            circles += usize::from(text.contains(" in a circle "));
        }
        if let Some(signal) = signals::seen() {
            return Ok(ExitCode::from(u8::try_from(128 + signal)?));
        }
        test(&format!("scene {seed}"), end);
    }
    if waits > 0 {
        let told = match circles {
            0 => Err(anyhow!(
                "ranks waited for each other in {waits} scenes, and were told of the deadline alone"
            )),
            _ => Ok(format!("{circles} scenes")),
        };
        test("circles are told", told);
    }
    test("nothing is left", nothing_left().map(|_| String::new()));
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {word}. {passed} passed; {failed} failed");
    Ok(ExitCode::from(u8::from(failed > 0)))
}

/// Plays a scene, by a world of its own: a world that has failed is the last one of its processes.
fn scene(program: &Path, seed: u64) -> Result<String> {
    // Each crime meets each number of ranks.
    let ranks = 2 + (seed % 4) as usize;
    let (folder, seed) = (Folder::new(&format!("scene-{seed}"))?, seed.to_string());
    let path = folder.path().display().to_string();
    let job = Job {
        program,
        args: &["--play".to_owned(), path.clone(), seed.clone()],
        ranks,
        hosts: None,
        limit: Some(LIMIT),
    };
    let mut said = String::new();
    let end = job.run(|line| said += &format!("{line}\n"), || ())?;
    let judge = Command::new(program)
        .args(["--judge", &path, &seed, &ranks.to_string()])
        .output()?;
    let why = String::from_utf8_lossy(&judge.stderr);
    ensure!(judge.status.success(), "{}\n{said}", why.trim_end());
    ensure!(!end.by_force, "it does not end by itself\n{said}");
    Ok(String::from_utf8_lossy(&judge.stdout).trim_end().to_owned())
}
