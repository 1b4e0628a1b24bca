//! Ranks that wait for each other across groups: the error follows the chain, and a circle is no matter of the
//! deadline.

use phalanx_comm::{
    DType, Error, FailureKind, LaunchConfig, LaunchError, Link, Name, ProcessGroup, ReduceOp,
    Result, Stands, Tensor, launch,
};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Runs it on `n` ranks, which all fail: with one and the same error. Returns it, and how long it took.
fn fails(
    n: usize,
    deadline: Duration,
    program: impl Fn(&Arc<dyn ProcessGroup>) -> Result<()> + Sync,
) -> (Error, Duration) {
    let start = Instant::now();
    let end = launch(LaunchConfig::new(n).deadline(deadline), |g| program(&g));
    let took = start.elapsed();
    let Err(LaunchError::Ranks { first, others }) = end else {
        panic!("all wait in vain: {end:?}");
    };
    let heard = [first]
        .into_iter()
        .chain(others)
        .map(|rank| match rank.kind {
            FailureKind::Error(error) => error,
            other => panic!("rank {}: {other:?}", rank.rank),
        });
    let heard: Vec<Error> = heard.collect();
    assert_eq!(heard.len(), n, "{heard:?}");
    assert!(heard.iter().all(|e| *e == heard[0]), "{heard:?}");
    (heard[0].clone(), took)
}

fn ranks(chain: &[Link]) -> Vec<usize> {
    chain.iter().map(|link| link.rank).collect()
}

fn ones(g: &dyn ProcessGroup) -> Result<Tensor> {
    Ok(Tensor::ones([3], DType::F32, g.device())?)
}

/// Long, so that no test of a circle may wait for it.
const PATIENCE: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_collective_left_out_in_a_part_is_a_circle_with_the_whole() {
    let (error, took) = fails(4, PATIENCE, |g| {
        let part = g.split(Some(g.rank() as u32 / 2), 0)?.expect("a color");
        if g.rank() != 0 {
            part.all_reduce(ones(&**g)?, ReduceOp::Sum)?.wait()?;
        }
        g.barrier()?.wait()
    });
    assert!(took < SOON, "{took:?}");
    let Error::Deadlock { chain } = &error else {
        panic!("{error}");
    };
    assert_eq!(ranks(chain), [0, 1]);
    assert_eq!(
        error.to_string(),
        "ranks 0, 1 wait for each other: rank 0 waits in barrier (number 1 of group world) for rank 1, which waits in \
         all_reduce(sum) of f32 [3] (number 0 of group world/0:0) for rank 0"
    );
}

#[test]
fn all_who_receive_before_they_send_are_a_circle() {
    let (error, took) = fails(3, PATIENCE, |g| {
        let (me, n) = (g.rank(), g.size());
        let got = g.recv([3].into(), DType::F32, (me + 1) % n, 0)?.wait()?;
        g.send(got, (me + n - 1) % n, 0)?.wait()
    });
    assert!(took < SOON, "{took:?}");
    let Error::Deadlock { chain } = &error else {
        panic!("{error}");
    };
    assert_eq!(ranks(chain), [0, 1, 2]);
    let text = error.to_string();
    let first = "ranks 0, 1, 2 wait for each other: rank 0 waits in recv(from 1, tag 0) of f32 [3] (number 0 of group \
                 world) for rank 1, which waits in recv(from 2";
    assert!(text.starts_with(first), "{text}");
}

/// Rank 0 computes for longer than the deadline; the others wait for it, or for who waits for it.
#[test]
fn who_is_late_is_named_through_the_chain() {
    let deadline = Duration::from_millis(500);
    let (error, took) = fails(3, deadline, |g| {
        let me = g.rank();
        if me == 0 {
            let before = g.set_activity(Name::new("a long sum"));
            assert_eq!(before, Name::EMPTY);
            let sum = g.set_activity(Name::new("something else"));
            assert_eq!(sum.as_str(), "a long sum");
            g.set_activity(sum);
            sleep(4 * deadline);
            return g.barrier()?.wait();
        }
        // Rank 2 waits for rank 1, which waits for rank 0; rank 2 is asleep first, and its deadline ends first.
        if me == 1 {
            sleep(deadline / 4);
        }
        let from = me - 1;
        g.recv([3].into(), DType::F32, from, 0)?.wait().map(drop)
    });
    assert!(took < 4 * deadline + SOON, "{took:?}");
    let Error::DeadlineExceeded { chain, .. } = &error else {
        panic!("{error}");
    };
    // Where the machine had no core for rank 2, rank 1 was first.
    let last = chain.last().expect("a chain");
    assert_eq!(last.rank, 0, "{error}");
    let activity = "a long sum".to_owned();
    assert_eq!(last.stands, Stands::Runs { activity }, "{error}");
    let text = error.to_string();
    if text.starts_with("rank 2") {
        assert!(
            text.contains(
                "for rank 1, which waits in recv(from 0, tag 0) of f32 [3] (number 0 of group world) for rank 0, which \
                 waits in no call, but is in a long sum"
            ),
            "{text}"
        );
    }
}

/// A circle of waits that another thread of a rank resolves is none.
#[test]
fn a_rank_may_be_helped_by_a_thread_of_its_own() {
    // The pause between two looks is a tenth of it.
    let deadline = Duration::from_secs(10);
    let end = launch(LaunchConfig::new(2).deadline(deadline), |g| {
        let other = 1 - g.rank();
        let recv = || g.recv([3].into(), DType::F32, other, 0);
        if g.rank() == 1 {
            recv()?.wait()?;
            return g.send(ones(&*g)?, other, 0)?.wait();
        }
        std::thread::scope(|scope| {
            let (sender, receiver) = std::sync::mpsc::channel();
            let helper = scope.spawn({
                let g = &g;
                move || {
                    let mut work = g.recv([3].into(), DType::F32, other, 0)?;
                    work.poll()?; // it calls, before the other thread does
                    sender.send(work).expect("it is received");
                    sleep(deadline / 2);
                    g.send(ones(&**g)?, other, 0)?.wait()
                }
            });
            let work = receiver.recv().expect("it is sent");
            let got = work.wait();
            let sent = helper.join().expect("no panic");
            got.and(sent)
        })
    });
    end.unwrap();
}

/// Waits that end, but each after many looks, are no circle; nor are those that come again.
#[test]
fn slow_ranks_are_no_circle() {
    let deadline = Duration::from_secs(2);
    let end = launch(LaunchConfig::new(3).deadline(deadline), |g| {
        let part = g.split(Some(g.rank() as u32 / 2), 0)?.expect("a color");
        for round in 0..3 {
            if g.rank() == round % 3 {
                sleep(deadline / 2);
            }
            part.all_reduce(ones(&*g)?, ReduceOp::Sum)?.wait()?;
            g.barrier()?.wait()?;
        }
        Ok::<_, Error>(())
    });
    end.unwrap();
}
