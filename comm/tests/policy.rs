//! What happens to ranks that are threads, and make no call, when the world has failed. Processes: `drill.rs`.

use phalanx_comm::{Error, FailureKind, LaunchConfig, LaunchError, OnFailure, launch};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Tells the test below that it is the program that hangs.
const HANGS: &str = "PHALANX_TEST_HANGS";

fn failure(rank: usize) -> Error {
    Error::InvalidArgument {
        op: "load",
        rank,
        reason: "no such file".into(),
    }
}

#[test]
fn a_rank_that_computes_is_told_at_its_next_call() {
    let end = launch(2, |g| {
        if g.rank() == 1 {
            return Err(failure(1));
        }
        sleep(Duration::from_millis(300));
        g.barrier().map(drop)
    });
    let Err(LaunchError::Ranks { first, others }) = end else {
        panic!("{end:?}");
    };
    assert_eq!(first.to_string(), "load on rank 1: no such file");
    let [FailureKind::Error(Error::RankFailed { rank: 1, message })] =
        others.iter().map(|other| &other.kind).collect::<Vec<_>>()[..]
    else {
        panic!("{others:?}");
    };
    assert_eq!(message, &failure(1).to_string());
}

/// The test is its own program, started once more.
#[test]
fn a_rank_that_hangs_is_ended_with_its_process_where_the_policy_says_so() {
    if std::env::var_os(HANGS).is_some() {
        let at_once = OnFailure::EndAfter(Duration::from_millis(200));
        let end = launch(LaunchConfig::new(3).on_failure(at_once), |g| {
            match g.rank() {
                0 => return Err(failure(0)),
                1 => sleep(Duration::from_secs(60)),
                _ => {}
            }
            Ok(())
        });
        panic!("it returns: {end:?}");
    }
    let name = "a_rank_that_hangs_is_ended_with_its_process_where_the_policy_says_so";
    let start = Instant::now();
    let output = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(HANGS, "1")
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let line = "rank 1 has not ended 200ms after the world has failed, so this process is ended: \
                rank 0 failed: load on rank 0: no such file\n";
    assert!(stderr.contains(line), "{stderr}");
    assert!(
        start.elapsed() < Duration::from_secs(30),
        "{:?}",
        start.elapsed()
    );
}
