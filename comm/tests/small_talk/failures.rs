//! Ranks that go wrong, each in its way: every rank of the world hears the same.

use super::{PATIENCE, client, gathered, in_memory, met, number};
use phalanx_comm::backends::store::world;
use phalanx_comm::op::Difference;
use phalanx_comm::{
    DType, Device, Error, Label, MemoryStore, ProcessGroup, Result, StoreServer, Tensor,
};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

/// All ranks hear the same, and hear it again. Gives it back.
fn same(ends: Vec<Result<Error>>) -> Error {
    let errors: Vec<Error> = ends.into_iter().map(|end| end.unwrap()).collect();
    assert!(errors.iter().all(|error| *error == errors[0]), "{errors:?}");
    assert!(errors[0].is_fatal());
    errors[0].clone()
}

/// The error of a call, which all further calls give, too.
fn heard(group: &dyn ProcessGroup, end: Result<()>) -> Result<Error> {
    let error = end.expect_err("it went well");
    assert_eq!(group.barrier().map(drop).unwrap_err(), error);
    assert_eq!(
        group.all_gather(number(group, 1)?).map(drop).unwrap_err(),
        error
    );
    Ok(error)
}

#[test]
fn who_differs_is_named_to_all() {
    type Crime = fn(&dyn ProcessGroup, bool) -> Result<()>;
    let crimes: [(Difference, Crime); 6] = [
        (Difference::Operation, |group, odd| match odd {
            true => met(group),
            false => gathered(group),
        }),
        (Difference::Shape, |group, odd| {
            let tensor = Tensor::ones([if odd { 4 } else { 3 }], DType::F32, group.device())?;
            group.all_gather(tensor)?.wait().map(drop)
        }),
        (Difference::DType, |group, odd| {
            let dtype = if odd { DType::F64 } else { DType::F32 };
            group
                .broadcast(Tensor::ones([3], dtype, group.device())?, 0)?
                .wait()
                .map(drop)
        }),
        (Difference::Root, |group, odd| {
            group
                .broadcast(number(group, 1)?, usize::from(odd))?
                .wait()
                .map(drop)
        }),
        (Difference::Count, |group, odd| {
            let mut tensors = vec![number(group, 1)?];
            if odd {
                tensors.push(number(group, 2)?);
            }
            group.broadcast_many(tensors, 0)?.wait().map(drop)
        }),
        (Difference::Label, |group, odd| {
            let label = Label::new(1, u64::from(odd), 0);
            group.labelled(label).barrier()?.wait()
        }),
    ];
    for (what, crime) in crimes {
        for culprit in 0..3 {
            let error = same(in_memory(3, PATIENCE, |group| {
                met(group)?;
                let end = crime(group, group.rank() == culprit);
                heard(group, end)
            }));
            let Error::Divergence {
                group,
                sequence: 1,
                rank,
                difference,
                ..
            } = &error
            else {
                panic!("{error}");
            };
            assert_eq!(
                (&**group, *rank, *difference),
                ("world", culprit, what),
                "{error}"
            );
        }
    }
}

/// A call that nobody waits for is compared all the same, and the world hears of it in a later one.
#[test]
fn who_differs_in_a_call_that_all_drop_is_named() {
    let error = same(in_memory(3, PATIENCE, |group| {
        match group.rank() {
            1 => drop(group.barrier()?),
            _ => drop(group.all_gather(number(group, 1)?)?),
        }
        // When this one has met, all have issued the one before.
        let end = met(group).and_then(|()| met(group));
        heard(group, end)
    }));
    let Error::Divergence {
        sequence: 0,
        rank: 1,
        ..
    } = &error
    else {
        panic!("{error}");
    };
}

/// In a group that was split off, ranks are named by their number in the world, and the world hears of it.
#[test]
fn a_failure_within_a_group_is_the_worlds() {
    let error = same(in_memory(4, PATIENCE, |world| {
        let group = world.split(Some((world.rank() / 2) as u32), 0)?.unwrap();
        let end = match world.rank() {
            3 => met(&*group),
            2 => gathered(&*group),
            // They wait for nobody that differs.
            _ => met(world),
        };
        heard(world, end)
    }));
    let Error::Divergence {
        group,
        sequence: 0,
        rank: 3,
        other: 2,
        ..
    } = &error
    else {
        panic!("{error}");
    };
    assert_eq!(&**group, "world/0:1");
}

/// Not only when the last one has come.
#[test]
fn ranks_that_differ_hear_of_it_while_another_computes() {
    let all = Barrier::new(3);
    let error = same(in_memory(3, PATIENCE, |group| {
        let start = Instant::now();
        let end = match group.rank() {
            0 => met(group),
            1 => gathered(group),
            _ => {
                all.wait();
                group.barrier().map(drop)
            }
        };
        if group.rank() < 2 {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "{:?}",
                start.elapsed()
            );
            all.wait();
        }
        heard(group, end)
    }));
    assert!(
        matches!(
            &error,
            Error::Divergence {
                rank: 1,
                other: 0,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn who_is_late_is_named_to_all() {
    let deadline = Duration::from_millis(400);
    let end = Barrier::new(3);
    let error = same(in_memory(3, deadline, |group| {
        met(group)?;
        let result = match group.rank() {
            1 => {
                end.wait(); // it computes until the others have given up
                group.barrier().map(drop)
            }
            _ => {
                let result = gathered(group);
                end.wait();
                result
            }
        };
        heard(group, result)
    }));
    let Error::DeadlineExceeded {
        sequence: 1,
        rank,
        missing,
        note,
        ..
    } = &error
    else {
        panic!("{error}");
    };
    assert!(*rank != 1 && *missing == [1], "{error}");
    assert_eq!(note, "rank 1 has issued 1 collectives of this group");
    let text = error.to_string();
    assert!(
        text.contains("waited 400ms in all_gather of i64 [] (number 1 of group world) for rank 1"),
        "{text}"
    );
}

#[test]
fn who_has_returned_is_named_at_once() {
    let start = Instant::now();
    let ends = in_memory(3, PATIENCE, |group| {
        met(group)?;
        if group.rank() == 2 {
            return Ok(None); // its handle is dropped
        }
        let end = met(group);
        heard(group, end).map(Some)
    });
    let errors: Vec<Error> = ends.into_iter().filter_map(|end| end.unwrap()).collect();
    assert_eq!(errors.len(), 2);
    assert_eq!(errors[0], errors[1]);
    assert_eq!(errors[0].returned_early(), Some((2, 1)), "{}", errors[0]);
    assert!(
        start.elapsed() < Duration::from_secs(20),
        "{:?}",
        start.elapsed()
    );
}

/// What a rank has issued before it left is good.
#[test]
fn a_rank_may_leave_when_nobody_waits_for_it() {
    let ends = in_memory(3, PATIENCE, |group| {
        let rest = group.split((group.rank() > 0).then_some(0), 0)?;
        let Some(rest) = rest else {
            return Ok(());
        };
        thread::sleep(Duration::from_millis(100)); // rank 0 has left
        rest.barrier()?.wait()
    });
    for end in ends {
        end.unwrap();
    }
}

#[test]
fn an_abort_reaches_who_waits_and_who_does_not() {
    let error = same(in_memory(3, PATIENCE, |group| {
        met(group)?;
        let end = match group.rank() {
            0 => {
                thread::sleep(Duration::from_millis(100));
                group.abort("on purpose");
                group.barrier().map(drop)
            }
            1 => met(group),
            _ => {
                let mut work = group.barrier()?;
                loop {
                    match work.poll() {
                        Ok(false) => thread::yield_now(),
                        Ok(true) => panic!("it met somebody who never called"),
                        Err(error) => {
                            assert_eq!(work.wait().unwrap_err(), error);
                            break Err(error);
                        }
                    }
                }
            }
        };
        heard(group, end)
    }));
    let reason = "on purpose".to_owned();
    assert_eq!(error, Error::Aborted { rank: 0, reason });
}

/// The store's death is each rank's own error, which names the store.
#[test]
fn a_lost_store_is_told_at_once() {
    let server = StoreServer::bind("127.0.0.1:0", "job").unwrap();
    let address = server.address().to_string();
    let both = Barrier::new(3);
    thread::scope(|scope| {
        let rank = |rank: usize| {
            let (store, both) = (client(&server, rank), &both);
            scope.spawn(move || {
                let group = world(store, rank, 3, Device::cpu(0), PATIENCE)?;
                let work = group.barrier()?;
                both.wait();
                let end = work.wait();
                heard(&*group, end)
            })
        };
        let ranks = [rank(0), rank(1)];
        both.wait();
        thread::sleep(Duration::from_millis(100));
        let start = Instant::now();
        drop(server);
        for (rank, end) in ranks.into_iter().enumerate() {
            let text = end.join().unwrap().unwrap().to_string();
            let begins = format!("rank {rank} cannot reach the store at {address}: wait of");
            assert!(text.starts_with(&begins), "{text}");
        }
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{:?}",
            start.elapsed()
        );
    });
}

#[test]
fn a_rank_is_there_once() {
    let store = MemoryStore::new(PATIENCE);
    let join = |rank, size, device| {
        let store = Arc::new(store.clone().for_rank(rank));
        world(store, rank, size, device, PATIENCE).map(drop)
    };
    let one = world(Arc::new(store.clone()), 1, 2, Device::cpu(0), PATIENCE).unwrap();
    let text = join(1, 2, Device::cpu(0)).unwrap_err().to_string();
    assert!(
        text.contains("another process has come as rank 1 before this one"),
        "{text}"
    );
    let text = join(2, 2, Device::cpu(0)).unwrap_err().to_string();
    assert!(
        text.ends_with("there is no such rank in a world of 2"),
        "{text}"
    );
    let text = join(0, 2, Device::cuda(0)).unwrap_err().to_string();
    assert!(text.contains("cannot live on cuda:0"), "{text}");
    drop(one);
}
