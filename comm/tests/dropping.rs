//! A work that nobody waits for: dropping it waits for nobody either, and the group finishes the operation.

use phalanx_comm::{
    DType, Device, Error, LaunchConfig, LaunchError, ProcessGroup, ReduceOp, Result, Tensor, launch,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// How rank 1 leaves rank 0 alone.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Error,
    Panic,
    Abort,
    Return,
}

/// What rank 0 has issued, and drops.
#[derive(Debug, Clone, Copy)]
enum What {
    Recv,
    Send,
    Collective,
}

const ALL: [What; 3] = [What::Recv, What::Send, What::Collective];
/// Of worlds in which nothing may depend on it.
const PATIENCE: Duration = Duration::from_secs(100);
/// In which all ends, on a slow machine, too.
const SOON: Duration = Duration::from_secs(30);

fn ones(g: &dyn ProcessGroup, len: usize) -> Result<Tensor> {
    Ok(Tensor::ones([len], DType::F32, g.device())?)
}

/// A world on devices of its own, whose memory no other test uses.
fn apart(n: usize, first: usize) -> LaunchConfig {
    LaunchConfig::new(n)
        .deadline(PATIENCE)
        .device(Device::cpu(first))
}

/// Both ends, of which rank 0 drops its own.
fn issue(g: &dyn ProcessGroup, what: What, len: usize) -> Result<()> {
    let recv = |from| g.recv([len].into(), DType::F32, from, 0);
    let sum = match (what, g.rank()) {
        (What::Recv, 0) => return recv(1).map(drop),
        (What::Send, 0) => return g.send(ones(g, len)?, 1, 0).map(drop),
        (What::Collective, 0) => {
            return g.all_reduce(ones(g, len)?, ReduceOp::Sum).map(drop);
        }
        (What::Recv, _) => return g.send(ones(g, len)?, 0, 0)?.wait(),
        (What::Send, _) => recv(0)?.wait()?,
        (What::Collective, _) => g.all_reduce(ones(g, len)?, ReduceOp::Sum)?.wait()?,
    };
    let want = if matches!(what, What::Send) {
        1.0
    } else {
        g.size() as f32
    };
    assert!(sum.to_vec::<f32>()?.iter().all(|x| *x == want), "{what:?}");
    Ok(())
}

fn own_error(rank: usize) -> Error {
    Error::InvalidArgument {
        op: "test",
        rank,
        reason: "on purpose".into(),
    }
}

/// Rank 1 comes when rank 0 has dropped its work, and not before: it gets all that it would have got, and what rank 0
/// would have got is freed at its next call.
#[test]
fn a_drop_waits_for_nobody_and_takes_nothing_from_the_others() {
    for what in ALL {
        for len in [4, 300_000] {
            let has_dropped = AtomicBool::new(false);
            let config = apart(2, 100);
            let end = launch(config, |g| {
                let start = Instant::now();
                while g.rank() == 1 && !has_dropped.load(SeqCst) {
                    assert!(start.elapsed() < SOON, "the drop of a {what:?} waits");
                    std::thread::yield_now();
                }
                issue(&*g, what, len)?;
                has_dropped.store(true, SeqCst);
                g.barrier()?.wait()?;
                g.barrier()?.wait()?; // a call after the operation is done
                let live = g.device().memory()?.live;
                assert_eq!(live, 0, "{what:?} of {len}, rank {}", g.rank());
                Ok::<_, Error>(())
            });
            end.unwrap_or_else(|e| panic!("{what:?} of {len}: {e}"));
        }
    }
}

/// All have dropped it: the last one to look carries it out.
#[test]
fn what_all_have_dropped_is_done_all_the_same() {
    let end = launch(apart(3, 200), |g| {
        for _ in 0..100 {
            drop(g.all_reduce(ones(&*g, 200_000)?, ReduceOp::Sum)?);
            g.barrier()?.wait()?;
        }
        g.barrier()?.wait()?;
        g.barrier()?.wait()?;
        // What one rank is still busy with is no more than the last one.
        let live = g.device().memory()?.live;
        assert!(live <= 2 * 800_000, "{live} bytes live");
        Ok::<_, Error>(())
    });
    end.unwrap();
}

fn leave(g: &dyn ProcessGroup, way: Way) -> Result<()> {
    std::thread::sleep(Duration::from_millis(30));
    match way {
        Way::Error => Err(own_error(1)),
        Way::Panic => panic!("on purpose"),
        Way::Abort => {
            g.abort("on purpose");
            Ok(())
        }
        Way::Return => Ok(()),
    }
}

/// The failure that the drop kept quiet about.
#[test]
fn the_next_wait_hears_of_the_failure() {
    quiet();
    for way in [Way::Error, Way::Panic, Way::Abort, Way::Return] {
        for what in ALL {
            let start = Instant::now();
            let end = launch(LaunchConfig::new(2).deadline(PATIENCE), |g| {
                match g.rank() {
                    0 => {
                        issue(&*g, what, 4)?;
                        g.barrier()?.wait()
                    }
                    _ => leave(&*g, way),
                }
            });
            let took = start.elapsed();
            let e = end.expect_err("rank 0 was left alone").to_string();
            assert!(e.contains("rank 1"), "{way:?}, {what:?}: {e}");
            let on_purpose = e.contains("on purpose");
            assert_eq!(on_purpose, way != Way::Return, "{way:?}, {what:?}: {e}");
            assert!(took < SOON, "{way:?}, {what:?}: {took:?}");
        }
    }
}

/// The panics of these tests are on purpose, and asserted; all others are printed.
fn quiet() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if info.payload().downcast_ref::<&str>() != Some(&"on purpose") {
            hook(info);
        }
    }));
}

/// A program that leaves by `?` with works in flight gives its own error, at once.
#[test]
fn who_leaves_with_works_in_flight_says_why() {
    for what in ALL {
        let start = Instant::now();
        let end = launch(LaunchConfig::new(2).deadline(PATIENCE), |g| {
            if g.rank() == 1 {
                return g.barrier()?.wait();
            }
            let _first = g.all_reduce(ones(&*g, 3)?, ReduceOp::Sum);
            issue(&*g, what, 4)?;
            Err(own_error(0))
        });
        let took = start.elapsed();
        let Err(LaunchError::Ranks { first, .. }) = end else {
            panic!("{end:?}");
        };
        let text = first.to_string();
        // Rank 1 may have seen before that they disagree, where rank 0 was slow.
        let is_right = text.contains("on purpose") || text.contains("disagree");
        assert!(is_right, "{what:?}: {text}");
        assert!(took < SOON, "{what:?}: {took:?}");
    }
}

/// A rank that ends well before others have come to what it has dropped.
#[test]
fn who_ends_with_works_abandoned_fails_the_world() {
    for what in ALL {
        let end = launch(LaunchConfig::new(2).deadline(PATIENCE), |g| {
            if g.rank() == 0 {
                return issue(&*g, what, 4);
            }
            // A call, until it hears of it.
            let start = Instant::now();
            while start.elapsed() < SOON {
                g.split(None, 0).map(drop)?;
            }
            Ok(())
        });
        let Err(LaunchError::Ranks { first, others }) = end else {
            panic!("{what:?}: {end:?}");
        };
        // Unless rank 1 was there first: a split is no all_reduce.
        let text = first.to_string();
        let is_abandoned = text.starts_with("rank 1: rank 0 ended without having waited for ");
        let differs = matches!(what, What::Collective) && text.contains("disagree");
        assert!(is_abandoned || differs, "{what:?}: {text}");
        assert!(others.is_empty() || differs, "{what:?}: {text}");
    }
    // Nobody is left to hear of it but who has started them.
    let end = launch(LaunchConfig::new(2).deadline(PATIENCE), |g| {
        match g.rank() {
            0 => g.recv([1].into(), DType::U8, 1, 0).map(drop),
            _ => Ok(()),
        }
    });
    let Err(LaunchError::World(Error::Abandoned { rank: 0, call, .. })) = &end else {
        panic!("{end:?}");
    };
    assert_eq!(call, "recv(from 1, tag 0) of u8 [1]");
}

/// A program that catches its own panic, through which works were dropped: nothing is left of them.
#[test]
fn works_dropped_by_a_panic_are_given_back() {
    quiet();
    const ROUNDS: usize = 200;
    let caught = AtomicUsize::new(0);
    let end = launch(apart(2, 300), |g| {
        for _ in 0..ROUNDS {
            let run = catch_unwind(AssertUnwindSafe(|| -> Result<()> {
                let _work = g.all_reduce(ones(&*g, 50_000)?, ReduceOp::Sum)?;
                panic!("on purpose")
            }));
            caught.fetch_add(usize::from(run.is_err()), SeqCst);
            g.barrier()?.wait()?;
        }
        g.barrier()?.wait()?;
        g.barrier()?.wait()?;
        let live = g.device().memory()?.live;
        assert!(live <= 2 * 200_000, "{live} bytes live");
        Ok::<_, Error>(())
    });
    end.unwrap();
    assert_eq!(caught.into_inner(), 2 * ROUNDS);
}

/// The last to come wakes those who sleep in this operation, though others sleep in the next one.
#[test]
fn one_that_sleeps_is_woken_among_many() {
    let start = Instant::now();
    let config = LaunchConfig::new(5).deadline(Duration::from_secs(60));
    let end = launch(config, |g| {
        let ones = || Tensor::ones([9000], DType::F32, g.device());
        let sleep = |ms| std::thread::sleep(Duration::from_millis(ms));
        let (last, waiting) = (g.size() - 1, g.size() - 2);
        if g.rank() == last {
            sleep(60); // all others sleep by now: one in this operation, the rest in the next
        }
        let first = g.all_reduce(ones()?, ReduceOp::Sum)?;
        if g.rank() == waiting {
            first.wait()?;
            return g.barrier()?.wait();
        }
        g.barrier()?.wait()?;
        first.wait().map(drop)
    });
    end.unwrap();
    assert!(start.elapsed() < Duration::from_secs(20));
}
