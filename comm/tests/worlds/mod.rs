//! Worlds of processes that fail, one after the other in the same job: each rank is told the same, and the next world
//! begins as if nothing had been. Beside them, worlds that show what dropped works and groups leave behind.

use phalanx_comm::backends::mpi;
use phalanx_comm::{
    DType, Error, FailureKind, LaunchConfig, LaunchError, Name, ProcessGroup, Ranks, ReduceOp,
    Result, RunConfig, Stands, Tensor, run,
};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

/// Of worlds that are to fail by it.
const DEADLINE: Duration = Duration::from_millis(1500);
/// Of all others.
const LONG: Duration = Duration::from_secs(60);

/// A test on all ranks, and how many it needs.
pub struct World {
    pub name: &'static str,
    pub ranks: usize,
    pub test: fn(),
}

pub const ALL: &[World] = &[
    world(
        "a_circle_across_groups_is_told",
        4,
        a_circle_across_groups_is_told,
    ),
    world(
        "a_chain_of_messages_is_followed",
        3,
        a_chain_of_messages_is_followed,
    ),
    world(
        "a_circle_of_messages_is_told",
        2,
        a_circle_of_messages_is_told,
    ),
    world(
        "a_rank_may_be_helped_by_a_thread_of_its_own",
        2,
        a_rank_may_be_helped_by_a_thread_of_its_own,
    ),
    world("a_drop_does_not_wait", 2, a_drop_does_not_wait),
    world(
        "what_is_left_undone_is_told",
        2,
        what_is_left_undone_is_told,
    ),
    world(
        "what_all_have_dropped_is_told",
        2,
        what_all_have_dropped_is_told,
    ),
    world("a_handle_keeps_to_its_run", 2, a_handle_keeps_to_its_run),
    world("a_work_keeps_to_its_run", 2, a_work_keeps_to_its_run),
    world(
        "work_in_flight_keeps_nobody",
        2,
        work_in_flight_keeps_nobody,
    ),
    world(
        "groups_leave_nothing_behind",
        1,
        groups_leave_nothing_behind,
    ),
];

const fn world(name: &'static str, ranks: usize, test: fn()) -> World {
    World { name, ranks, test }
}

type End<T> = Result<Vec<(usize, T)>, LaunchError<Error>>;

/// A world with this deadline.
fn launch<T: Send>(
    deadline: Duration,
    program: impl Fn(&dyn ProcessGroup) -> Result<T> + Sync,
) -> End<T> {
    launch_shared(deadline, |group| program(&*group))
}

/// … of which a program may keep the handle.
fn launch_shared<T: Send>(
    deadline: Duration,
    program: impl Fn(Arc<dyn ProcessGroup>) -> Result<T> + Sync,
) -> End<T> {
    let config = LaunchConfig::new(1).deadline(deadline);
    let config = RunConfig::new(Ranks::OrAlone(1)).launch(config);
    run(config, program)
}

/// What this rank's program ended with, in a world that has failed. All ranks end with the same.
fn failure<T: Send>(end: End<T>) -> Error {
    let error = match end {
        Ok(_) => panic!("it ended well"),
        Err(LaunchError::Ranks { first, .. }) => match first.kind {
            FailureKind::Error(error) => error,
            kind => panic!("{kind:?}"),
        },
        Err(error) => panic!("{error}"),
    };
    let text = error.to_string();
    let all = launch(LONG, |g| {
        let bytes = text.bytes().map(i64::from);
        let sum = bytes.fold(0, |sum: i64, byte| sum.wrapping_mul(31).wrapping_add(byte));
        let mine = Tensor::from_slice(&[sum], [1], g.device())?;
        Ok(g.all_gather(mine)?.wait()?.to_vec::<i64>()?)
    });
    let all = all.unwrap_or_else(|e| panic!("the world after `{text}`: {e}"));
    assert!(all[0].1.iter().all(|sum| *sum == all[0].1[0]), "{text}");
    error
}

fn ones(g: &dyn ProcessGroup, len: usize) -> Result<Tensor> {
    Ok(Tensor::ones([len], DType::F32, g.device())?)
}

/// Rank 0 leaves out a reduction of its half of the world, and goes on to a barrier of all.
fn a_circle_across_groups_is_told() {
    let start = Instant::now();
    let end = launch(DEADLINE, |g| {
        let part = g.split(Some((g.rank() / 2) as u32), 0)?;
        let part = part.expect("all have a color");
        if g.rank() > 0 {
            let sum = part.all_reduce(ones(g, 3)?, ReduceOp::Sum)?;
            // A part of one rank, where their number is odd, has nobody to wait for.
            sum.wait()?;
        }
        g.barrier()?.wait()
    });
    let took = start.elapsed();
    let error = failure(end);
    assert!(matches!(error, Error::Deadlock { .. }), "{error}");
    let want = "ranks 0, 1 wait for each other: rank 0 waits in barrier (number 1 of group world) for rank 1, which \
                waits in all_reduce(sum) of f32 [3] (number 0 of group world/0:0) for rank 0";
    assert_eq!(error.to_string(), want);
    assert!(took < DEADLINE, "{took:?}");
}

/// Each rank waits for a message of the one before it, and the first one computes.
fn a_chain_of_messages_is_followed() {
    let end = launch(DEADLINE, |g| {
        match g.rank() {
            0 => {
                g.set_activity(Name::new("a long sum"));
                sleep(DEADLINE.mul_f64(1.5));
            }
            me => drop(g.recv([4].into(), DType::F32, me - 1, 0)?.wait()?),
        }
        g.barrier()?.wait()
    });
    let error = failure(end);
    let text = error.to_string();
    let Error::DeadlineExceeded { rank, chain, .. } = error else {
        panic!("{text}");
    };
    assert_eq!(chain.len(), rank, "{text}");
    let last = "for rank 0, which waits in no call, but is in a long sum: rank ";
    assert!(text.contains(last), "{text}");
    let link = "which waits in recv(from 0, tag 0) of f32 [4] (number 0 of group world) for rank 0";
    assert!(rank < 2 || text.contains(link), "{text}");
}

fn a_circle_of_messages_is_told() {
    let start = Instant::now();
    let end = launch(DEADLINE, |g| {
        let next = (g.rank() + 1) % g.size();
        g.recv([4].into(), DType::F32, next, 0)?.wait()
    });
    let took = start.elapsed();
    let error = failure(end);
    match &error {
        Error::Deadlock { chain } => assert!(chain.len() >= 2, "{error}"),
        _ => panic!("{error}"),
    }
    assert!(took < DEADLINE, "{took:?}");
}

/// A circle of waits that another thread of a rank resolves is none: whether that thread has made the call for which the
/// other one waits, or has only looked at it.
fn a_rank_may_be_helped_by_a_thread_of_its_own() {
    let deadline = 2 * DEADLINE;
    let helped = |waits_elsewhere: bool| {
        let end = launch(deadline, |g| {
            let other = match g.rank() {
                me @ 0..2 => 1 - me,
                _ => return Ok(()),
            };
            let mut work = g.recv([3].into(), DType::F32, other, 0)?;
            if g.rank() == 1 {
                work.wait()?;
                return g.send(ones(g, 3)?, other, 0)?.wait();
            }
            let help = || {
                sleep(deadline.mul_f64(0.7));
                g.send(ones(g, 3)?, other, 0)?.wait()
            };
            scope(|scope| {
                if waits_elsewhere {
                    let waiter = scope.spawn(|| work.wait());
                    let sent = help();
                    return waiter.join().expect("no panic").and(sent);
                }
                let (sender, receiver) = channel();
                let helper = scope.spawn(move || {
                    work.poll()?;
                    sender.send(work).expect("it is received");
                    help()
                });
                let got = receiver.recv().expect("it is sent").wait();
                let sent = helper.join().expect("no panic");
                got.and(sent)
            })
        });
        end.unwrap_or_else(|e| panic!("{e}"));
    };
    [true, false].into_iter().for_each(helped);
}

/// Of what fits into a header, and of what does not: the work is done all the same.
fn a_drop_does_not_wait() {
    const LATE: Duration = Duration::from_millis(300);
    for len in [4, 1 << 20] {
        let end = launch(LONG, |g| {
            match g.rank() {
                0 => {
                    let start = Instant::now();
                    drop(g.recv([len].into(), DType::F32, 1, 0)?);
                    drop(g.send(ones(g, len)?, 1, 0)?);
                    assert!(start.elapsed() < LATE, "{:?}", start.elapsed());
                }
                1 => {
                    sleep(LATE);
                    g.send(ones(g, len)?, 0, 0)?.wait()?;
                    let got = g.recv([len].into(), DType::F32, 0, 0)?.wait()?;
                    assert!(got.to_vec::<f32>()?.iter().all(|x| *x == 1.0));
                }
                _ => {}
            }
            Ok(())
        });
        end.unwrap_or_else(|e| panic!("{e}"));
    }
}

/// Rank 0 sends something that nobody wants, and does not look whether somebody gets it.
fn what_is_left_undone_is_told() {
    let start = Instant::now();
    let end = launch(LONG, |g| {
        g.barrier()?.wait()?;
        if g.rank() == 0 {
            drop(g.send(ones(g, 4)?, 1, 5)?);
        }
        Ok(())
    });
    assert!(start.elapsed() < LONG / 4, "{:?}", start.elapsed());
    match end {
        Ok(ranks) => assert_ne!(ranks[0].0, 0, "rank 0 ended well"),
        Err(LaunchError::World(error)) => {
            let want = "rank 0 ended without having waited for send(to 1, tag 5) of f32 [4] (number 0 of \
                        group world), which was under way";
            assert_eq!(error.to_string(), want);
        }
        Err(error) => panic!("{error}"),
    }
}

/// All ranks drop a call on which they disagree, and return well: the launch has failed all the same.
fn what_all_have_dropped_is_told() {
    let end = launch(LONG, |g| {
        drop(g.all_reduce(ones(g, 1 + g.rank())?, ReduceOp::Sum)?);
        Ok(())
    });
    match end {
        Err(LaunchError::World(Error::Divergence { .. })) => {}
        end => panic!("{end:?}"),
    }
}

/// What a program leaves to the one after it.
fn kept<T>(place: &Mutex<Option<T>>) -> T {
    let kept = place.lock().expect("no panic").take();
    kept.expect("it was kept")
}

/// A handle that is kept says how its own run has failed, and changes nothing in a later one.
fn a_handle_keeps_to_its_run() {
    let place = Mutex::new(None);
    let end = launch_shared(LONG, |g| {
        *place.lock().expect("no panic") = Some(Arc::clone(&g));
        g.set_activity(Name::new("an earlier run"));
        if g.rank() == 0 {
            g.abort("on purpose");
        }
        g.barrier()?.wait()
    });
    let aborted = failure(end);
    assert!(matches!(aborted, Error::Aborted { .. }), "{aborted}");
    let old = kept(&place);
    let end = launch(DEADLINE, |g| {
        assert_eq!(old.health(), Some(aborted.clone()));
        assert_eq!(g.health(), None);
        if g.rank() == 0 {
            old.abort("too late");
            old.set_activity(Name::new("an earlier run"));
            sleep(DEADLINE.mul_f64(1.5));
        }
        g.barrier()?.wait()
    });
    // Rank 0 was late, and had not ended.
    match failure(end) {
        Error::DeadlineExceeded { chain, .. } => {
            let last = chain.last().expect("a chain");
            // What it said in an earlier run is no more; nor does what it says by that one's handle count.
            let activity = String::new();
            assert_eq!((last.rank, &last.stands), (0, &Stands::Runs { activity }));
        }
        error => panic!("{error}"),
    }
}

/// A work that is kept ends with its own run's failure, also where a later one has failed before.
fn a_work_keeps_to_its_run() {
    let place = Mutex::new(None);
    let end = launch(LONG, |g| {
        if g.rank() == 0 {
            *place.lock().expect("no panic") = Some(g.recv([4].into(), DType::F32, 1, 9)?);
        }
        Ok(g.rank())
    });
    let me = end.unwrap_or_else(|e| panic!("{e}"))[0].1;
    let end = launch(LONG, |g| {
        if g.rank() == 0 {
            g.abort("on purpose");
        }
        g.barrier()?.wait()
    });
    let aborted = failure(end);
    assert!(matches!(aborted, Error::Aborted { .. }), "{aborted}");
    if me == 0 {
        let (sender, receiver) = channel();
        let work = kept(&place);
        std::thread::spawn(move || sender.send(work.wait().map(drop)));
        let end = receiver.recv_timeout(LONG / 4).expect("it ends");
        assert!(matches!(end, Err(Error::RankReturned { .. })), "{end:?}");
    }
}

/// A rank that returns an error of its own, with work in flight, does so at once.
fn work_in_flight_keeps_nobody() {
    let start = Instant::now();
    let end = launch(LONG, |g| {
        if g.rank() == 0 {
            let _in_flight = g.recv([1 << 20].into(), DType::F32, 1, 0)?;
            return Err(Error::InvalidArgument {
                op: "test",
                rank: 0,
                reason: "on purpose".into(),
            });
        }
        g.barrier()?.wait()
    });
    let took = start.elapsed();
    assert!(took < LONG / 4, "{took:?}");
    match end {
        Err(LaunchError::Ranks { first, .. }) => {
            let text = first.to_string();
            assert!(text.contains("test on rank 0: on purpose"), "{text}");
        }
        end => panic!("{:?}", end.map(|_| ())),
    }
}

/// A thousand groups and ten thousand messages: nothing is left of them.
fn groups_leave_nothing_behind() {
    const GROUPS: usize = 1000;
    const MESSAGES: usize = 10_000;
    const BATCH: usize = 100;
    let g = mpi::world(LONG).unwrap_or_else(|e| panic!("{e}"));
    let work = || -> Result<()> {
        for at in 0..GROUPS {
            let color = (g.rank() + at) % 2;
            let part = g.split(Some(color as u32), 0)?.expect("all have a color");
            part.barrier()?.wait()?;
            if part.size() > 1 {
                let (me, n) = (part.rank(), part.size());
                let sent = part.send(ones(&*g, 2)?, (me + 1) % n, 0)?;
                part.recv([2].into(), DType::F32, (me + n - 1) % n, 0)?
                    .wait()?;
                sent.wait()?;
            }
        }
        for _ in 0..MESSAGES / BATCH {
            let mut sent = Vec::new();
            if g.size() > 1 {
                let (me, n) = (g.rank(), g.size());
                for _ in 0..BATCH {
                    sent.push(g.send(ones(&*g, 2)?, (me + 1) % n, 0)?);
                    drop(g.recv([2].into(), DType::F32, (me + n - 1) % n, 0)?);
                }
            }
            sent.into_iter().try_for_each(|work| work.wait())?;
        }
        g.barrier()?.wait()
    };
    let footprint = || mpi::footprint().expect("MPI has been started");
    let before = footprint();
    work().unwrap_or_else(|e| panic!("{e}"));
    let after = footprint();
    assert_eq!(after.groups, before.groups, "{before:?}, {after:?}");
    // Others may have begun what this rank has ended: the last calls of each.
    assert!(after.operations <= 2 * g.size(), "{before:?}, {after:?}");
    assert!(after.parcels <= 4 * g.size(), "{before:?}, {after:?}");
    assert!(after.epochs <= 3, "{before:?}, {after:?}");
}
