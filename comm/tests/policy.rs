//! What happens to ranks that are threads, and make no call, when the world has failed. Processes: `drill.rs`.

mod child;

use child::again;
use phalanx_comm::{Error, FailureKind, LaunchConfig, LaunchError, OnFailure, launch};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

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

/// Runs the test's program in a process of its own, which ends with this line; and soon.
fn ends_with(child: Option<Command>, line: &str, program: impl FnOnce()) {
    let Some(mut child) = child else {
        return program();
    };
    // ThreadSanitizer is not to count threads that nobody has joined: it would change the code.
    let mut options = std::env::var("TSAN_OPTIONS").unwrap_or_default();
    options.push_str(" report_thread_leaks=0");
    let start = Instant::now();
    let output = child.env("TSAN_OPTIONS", options).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(line), "{stderr}");
    let time = start.elapsed();
    assert!(time < Duration::from_secs(30), "{time:?}: {stderr}");
}

fn at_once(ranks: usize) -> LaunchConfig {
    LaunchConfig::new(ranks).on_failure(OnFailure::EndAfter(Duration::from_millis(200)))
}

#[test]
fn a_rank_that_hangs_is_ended_with_its_process_where_the_policy_says_so() {
    let child = again("a_rank_that_hangs_is_ended_with_its_process_where_the_policy_says_so");
    let line = "rank 1 has not ended 200ms after the world has failed, so this process is ended: \
                rank 0 failed: load on rank 0: no such file\n";
    ends_with(child, line, || {
        let end = launch(at_once(3), |g| {
            match g.rank() {
                0 => return Err(failure(0)),
                1 => sleep(Duration::from_secs(60)),
                _ => {}
            }
            Ok(())
        });
        panic!("it returns: {end:?}");
    });
}

/// No rank says that it has failed: one aborts the world, another is told of it, and both return well.
#[test]
fn a_rank_that_hangs_is_ended_though_the_others_end_well() {
    let child = again("a_rank_that_hangs_is_ended_though_the_others_end_well");
    let line = "rank 1 has not ended 200ms after the world has failed, so this process is ended: \
                rank 2 aborted the group: the loss is NaN\n";
    ends_with(child, line, || {
        let end = launch(at_once(3), |g| {
            match g.rank() {
                // It saves what it has.
                0 => drop(g.barrier().and_then(|work| work.wait()).unwrap_err()),
                1 => sleep(Duration::from_secs(60)),
                _ => g.abort("the loss is NaN"),
            }
            Ok::<_, Error>(())
        });
        panic!("it returns: {end:?}");
    });
}

/// The one that is told goes on for ever, and nobody has ended.
#[test]
fn ranks_that_are_late_and_do_not_end_are_ended_with_their_process() {
    let child = again("ranks_that_are_late_and_do_not_end_are_ended_with_their_process");
    let line = "rank 0 has not ended 200ms after the world has failed, so this process is ended: \
                rank 0 waited 100ms";
    ends_with(child, line, || {
        let end = launch(at_once(2).deadline(Duration::from_millis(100)), |g| {
            if g.rank() == 0 {
                g.barrier()?.wait().unwrap_err();
            }
            sleep(Duration::from_secs(60));
            Ok::<_, Error>(())
        });
        panic!("it returns: {end:?}");
    });
}
