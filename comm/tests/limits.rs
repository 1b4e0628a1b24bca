//! Numbers that make no sense, or that no machine has: a typed error at once, or no harm.

mod child;

use child::again;
use phalanx_comm::{
    DType, Error, LaunchConfig, LaunchError, OnFailure, ProcessGroup, Ranks, ReduceOp, Tensor,
    launch, run,
};
use std::time::{Duration, Instant};

/// A program that nobody is to run.
fn never(_: std::sync::Arc<dyn ProcessGroup>) -> Result<(), Error> {
    panic!("it runs")
}

/// Nothing is allocated before: 100,000 ranks would take 480 GB for their mailboxes.
#[test]
fn too_many_ranks_are_refused() {
    for asked in [4097, 100_000, usize::MAX] {
        let end = launch(asked, never);
        let Err(error @ LaunchError::TooManyRanks { .. }) = end else {
            panic!("{end:?}");
        };
        let text = error.to_string();
        let sentence = format!("{asked} ranks are more than one process runs as threads");
        assert!(text.starts_with(&sentence), "{text}");
        let end = run(Ranks::OrAlone(asked), never);
        assert!(
            matches!(end, Err(LaunchError::TooManyRanks { .. })),
            "{end:?}"
        );
    }
    assert!(matches!(launch(0, never), Err(LaunchError::NoRanks)));
}

#[test]
fn too_many_threads_are_refused() {
    for asked in [4097, usize::MAX] {
        let end = launch(LaunchConfig::new(2).threads_per_rank(asked), never);
        let Err(error @ LaunchError::TooManyThreads { .. }) = end else {
            panic!("{end:?}");
        };
        let text = error.to_string();
        assert!(
            text.starts_with(&format!("{asked} threads for each rank")),
            "{text}"
        );
    }
}

/// Longer than any clock counts; and no time at all, which is only missed by who has to wait.
#[test]
fn any_duration_is_a_deadline() {
    let forever = Duration::MAX;
    let config = LaunchConfig::new(2)
        .deadline(forever)
        .start_deadline(forever)
        .on_failure(OnFailure::EndAfter(forever))
        .threads_per_rank(0);
    let end = launch(config.clone(), |g| {
        if g.rank() == 1 {
            std::thread::sleep(Duration::from_millis(50)); // the other sleeps by now
        }
        g.barrier()?.wait()?;
        Ok::<_, Error>(g.deadline())
    });
    assert_eq!(end.unwrap(), [forever; 2]);
    // A failure, of which nobody is too late.
    let end = launch(config, |g| match g.rank() {
        0 => Err("on purpose".to_owned()),
        _ => {
            std::thread::sleep(Duration::from_millis(50));
            Ok(())
        }
    });
    assert_eq!(end.unwrap_err().to_string(), "rank 0: on purpose");
    let end = launch(LaunchConfig::new(1).deadline(Duration::ZERO), |g| {
        g.barrier()?.wait()
    });
    end.unwrap();
}

/// A single call's mistakes: its rank hears of them, and the group goes on.
#[test]
fn sizes_that_no_memory_has_are_refused() {
    let end = launch(2, |g| {
        let (me, device) = (g.rank(), g.device());
        let one = || Tensor::ones([1], DType::F64, device);
        let wide = Tensor::ones([1, 1], DType::F64, device)?.broadcast_to([1, 1 << 59])?;
        let none = Tensor::zeros([2, 0], DType::F64, device)?;
        let half = usize::MAX / 2;
        let errors = [
            g.recv([usize::MAX, 2].into(), DType::F64, 1 - me, 0).err(),
            g.recv([usize::MAX].into(), DType::F64, 1 - me, u32::MAX)
                .err(),
            g.recv([1].into(), DType::F64, usize::MAX, 0).err(),
            g.send(one()?, usize::MAX, 0).err(),
            g.scatter(None, [usize::MAX, 3].into(), DType::F64, 1 - me)
                .err(),
            g.all_gather(wide.clone()).err(),
            g.all_reduce(wide, ReduceOp::Sum).err(),
            g.all_to_all_v(one()?, &[half, half + 1], &[half, half + 2])
                .err(),
            g.all_to_all_v(none.clone(), &[1, 1], &[usize::MAX, 1])
                .err(),
            g.all_to_all_v(one()?, &[1 - me, me], &[1 - me, half]).err(),
            g.split(Some(u32::MAX), i32::MIN).err(),
            g.split(Some(1 << 31), i32::MAX).err(),
        ];
        for (i, error) in errors.iter().enumerate() {
            let error = error
                .as_ref()
                .unwrap_or_else(|| panic!("call {i} went through"));
            assert!(!error.is_fatal(), "call {i}: {error}");
        }
        // Counts of rows that have no elements are only numbers, as long as the rule for shapes holds.
        let rows = half / size_of::<f64>() - 1;
        let (send, recv) = match me {
            0 => ([1, 1], [1, rows]),
            _ => ([rows, 1], [1, 1]),
        };
        let mine = Tensor::zeros([send[0] + send[1], 0], DType::F64, device)?;
        let got = g.all_to_all_v(mine, &send, &recv)?.wait()?;
        assert_eq!(got.dims(), [recv[0] + recv[1], 0]);
        let group = g.split(Some(i32::MAX as u32), [i32::MAX, i32::MIN][me])?;
        let group = group.expect("every rank has a color");
        assert_eq!((group.size(), group.rank()), (2, 1 - me));
        g.all_reduce(one()?, ReduceOp::Sum)?
            .wait()?
            .item::<f64>()
            .map_err(Error::from)
    });
    assert_eq!(end.unwrap_or_else(|e| panic!("{e}")), [2.0; 2]);
}

/// What was announced, and cannot be received, would be taken for the next message: so it ends the world, on both ranks.
#[test]
fn an_announced_tensor_without_room_ends_the_world() {
    let end = launch(2, |g| {
        if g.rank() == 1 {
            return g.recv_any(0, 0)?.wait().map(drop);
        }
        let mut head = [0; 17]; // of the first type, in the host's memory, one axis
        (head[2], head[3]) = (1, i64::MAX);
        let head = Tensor::from_slice(&head, [17], g.device())?;
        g.send(head, 1, 0)?.wait()?;
        g.barrier()?.wait()
    });
    let Err(LaunchError::Ranks { first, others }) = end else {
        panic!("{end:?}");
    };
    assert_eq!(others.len(), 1);
    for failure in [&first, &others[0]] {
        let text = failure.to_string();
        assert!(
            text.contains("rank 1 aborted the group: recv_any from 0: "),
            "{text}"
        );
    }
}

/// Mailboxes are made by need: all that so many ranks have in so many groups would take
/// 240 MB beside all else. A process of its own, whose memory no other test takes.
#[test]
fn a_thousand_ranks_talk() {
    let Some(mut child) = again("a_thousand_ranks_talk") else {
        return talk();
    };
    let output = child.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
}

fn talk() {
    const RANKS: usize = if cfg!(phalanx_tsan) { 50 } else { 1000 };
    let end = launch(RANKS, |g| {
        let groups: Vec<_> = (0..4)
            .map(|_| g.split(Some(0), 0))
            .collect::<Result<_, _>>()?;
        let (me, group) = (
            g.rank(),
            groups[3].as_ref().expect("every rank has a color"),
        );
        if me == 0 {
            let mine = Tensor::ones([1], DType::F64, g.device())?;
            group.send(mine, RANKS - 1, 0)?.wait()?;
        } else if me == RANKS - 1 {
            group.recv([1].into(), DType::F64, 0, 0)?.wait()?;
        }
        g.barrier()?.wait()
    });
    end.unwrap_or_else(|e| panic!("{e}"));
    let peak = peak_megabytes();
    // ThreadSanitizer has memory of its own.
    let is_little = |peak| peak < 150 || cfg!(phalanx_tsan);
    assert!(peak.is_none_or(is_little), "{peak:?} MB");
}

/// 256 ranks meet forty times. Prints what that takes: memory must not grow by the square of the ranks.
#[test]
fn two_hundred_and_fifty_six_ranks_meet() {
    let Some(mut child) = again("two_hundred_and_fifty_six_ranks_meet") else {
        return meet();
    };
    let output = child.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let stdout = String::from_utf8_lossy(&output.stdout);
    stdout
        .lines()
        .filter(|line| line.contains("ranks"))
        .for_each(|line| println!("{line}"));
}

fn meet() {
    const RANKS: usize = if cfg!(phalanx_tsan) { 50 } else { 256 };
    const ROUNDS: usize = 20;
    let before = peak_megabytes();
    let start = Instant::now();
    let end = launch(RANKS, |g| {
        let begun = start.elapsed();
        let started = Instant::now();
        for _ in 0..ROUNDS {
            g.barrier()?.wait()?;
        }
        let barriers = started.elapsed();
        let started = Instant::now();
        for _ in 0..ROUNDS {
            let mine = Tensor::ones([256], DType::F32, g.device())?;
            let sum = g.all_reduce(mine, ReduceOp::Sum)?.wait()?;
            assert_eq!(sum.to_vec::<f32>()?, [RANKS as f32; 256]);
        }
        Ok::<_, Error>((begun, barriers, started.elapsed()))
    });
    let end = end.unwrap_or_else(|e| panic!("{e}"));
    let took = start.elapsed();
    let (begun, barriers, sums) = end[0];
    let peak = peak_megabytes();
    println!(
        "{RANKS} ranks: rank 0 began after {begun:?}, {ROUNDS} barriers took {barriers:?}, {ROUNDS} all_reduce of 1 KiB \
         {sums:?}, all {took:?}; peak {peak:?} MB, {before:?} before"
    );
    let is_little = |peak| peak < 25 || cfg!(phalanx_tsan);
    assert!(peak.is_none_or(is_little), "{peak:?} MB");
}

/// The most memory that this process has had, where the system tells.
fn peak_megabytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes / 1024)
}
