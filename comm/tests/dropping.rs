//! A work that nobody waits for: dropping it waits, but not longer than the group lives.

use phalanx_comm::{DType, Error, LaunchConfig, ProcessGroup, ReduceOp, Tensor, launch};
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
enum Dropped {
    Recv,
    Send,
    Collective,
}

fn issue_and_drop(g: &dyn ProcessGroup, what: Dropped) -> phalanx_comm::Result<()> {
    let t = Tensor::ones([4], DType::F32, g.device())?;
    match what {
        Dropped::Recv => drop(g.recv([4].into(), DType::F32, 1, 0)?),
        Dropped::Send => drop(g.send(t, 1, 0)?),
        Dropped::Collective => drop(g.all_reduce(t, ReduceOp::Sum)?),
    }
    Ok(())
}

fn leave(g: &dyn ProcessGroup, way: Way) -> phalanx_comm::Result<()> {
    // Rank 0 is asleep in its drop by then; if it is not, there is nothing to wait for.
    std::thread::sleep(Duration::from_millis(30));
    match way {
        Way::Error => Err(Error::InvalidArgument {
            op: "test",
            rank: 1,
            reason: "on purpose".into(),
        }),
        Way::Panic => panic!("on purpose"),
        Way::Abort => {
            g.abort("on purpose");
            Ok(())
        }
        Way::Return => Ok(()),
    }
}

#[test]
fn a_drop_ends_when_the_group_fails() {
    std::panic::set_hook(Box::new(|_| {})); // asserted below
    for way in [Way::Error, Way::Panic, Way::Abort, Way::Return] {
        for what in [Dropped::Recv, Dropped::Send, Dropped::Collective] {
            let start = Instant::now();
            let end = launch(
                LaunchConfig::new(2).deadline(Duration::from_secs(100)),
                |g| match g.rank() {
                    0 => {
                        issue_and_drop(&*g, what)?;
                        g.barrier().map(drop) // hears of the failure that the drop kept quiet about
                    }
                    _ => leave(&*g, way),
                },
            );
            let took = start.elapsed();
            let e = end.expect_err("rank 0 was left alone").to_string();
            assert!(e.contains("rank 1"), "{way:?}, {what:?}: {e}");
            let on_purpose = e.contains("on purpose");
            assert_eq!(on_purpose, way != Way::Return, "{way:?}, {what:?}: {e}");
            assert!(
                took < Duration::from_secs(20),
                "{way:?}, {what:?}: {took:?}"
            );
        }
    }
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
