//! What no program can bring about through checked calls, or only by chance.

use super::{LocalGroup, engines};
use crate::backends::Backend;
use crate::check;
use crate::error::{Error, Result};
use crate::group::{Group, ProcessGroup};
use crate::op::{Op, ReduceOp};
use crate::work::{Pending, Tensors, Work};
use phalanx_tensor::{DType, Device, Tensor};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

fn ranks(n: usize, deadline: Duration) -> Vec<LocalGroup> {
    let devices: Vec<Device> = (0..n).map(|rank| Device::cpu(500 + rank)).collect();
    engines(&devices, 1, deadline)
}

/// The same rank's handle.
fn group(g: &LocalGroup) -> Group {
    Group::world(LocalGroup {
        endpoint: Arc::clone(&g.endpoint),
    })
}

fn zeros(g: &LocalGroup, len: usize) -> Tensor {
    Tensor::zeros([len], DType::F32, g.membership().device).unwrap()
}

fn sum(g: &LocalGroup, len: usize) -> Result<Work<Tensor>> {
    group(g).all_reduce(zeros(g, len), ReduceOp::Sum)
}

/// A reduction that panics when it is carried out.
fn broken(g: &LocalGroup, len: usize) -> Result<Box<dyn Pending>> {
    let mut call = check::all_reduce(g.membership(), zeros(g, len), ReduceOp::Sum)?;
    call.signature.op = Op::AllReduce(ReduceOp::BitAnd); // of floats, which `check` refuses
    g.issue(call)
}

/// In a chunk that a waiting rank runs, or in all of a small operation, which the last one to come runs.
#[test]
fn a_panic_while_data_moves_is_an_error_of_every_rank() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {})); // asserted below
    for len in [8, 100_000] {
        let start = Instant::now();
        let run = move |g: LocalGroup| -> Result<Tensors> { broken(&g, len)?.wait() };
        let threads: Vec<_> = ranks(3, PATIENCE)
            .into_iter()
            .map(|g| thread::spawn(move || run(g)))
            .collect();
        let ends: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        let first = ends[0].as_ref().unwrap_err();
        let Error::RankPanicked { message, .. } = first else {
            panic!("{first}");
        };
        assert!(message.contains("does not support"), "{message}");
        assert!(ends.iter().all(|end| end.as_ref().unwrap_err() == first));
        assert!(start.elapsed() < PATIENCE / 2, "{len}");
    }
    std::panic::set_hook(hook);
}

/// Rank 0 differs from two others, and comes first; nobody waits. The last one to come says who differs, and the
/// others hear of it at their next call.
#[test]
fn the_first_to_come_may_be_wrong() {
    let g = ranks(3, PATIENCE);
    let mut wrong = sum(&g[0], 4).unwrap();
    let right = sum(&g[1], 3).unwrap();
    assert_eq!(wrong.poll(), Ok(false)); // rank 2 may still come
    let error = sum(&g[2], 3).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Divergence {
                rank: 0,
                other: 1,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(group(&g[1]).barrier().unwrap_err(), error);
    assert_eq!(wrong.poll().unwrap_err(), error);
    assert_eq!(wrong.wait().unwrap_err(), error);
    assert_eq!(right.wait().unwrap_err(), error);
}

/// Rank 2 never comes: after the grace whoever looks says who differs; of two the later one.
#[test]
fn ranks_that_differ_do_not_wait_for_the_last_one_for_ever() {
    let deadline = Duration::from_secs(2);
    for look in 0..3 {
        let g = ranks(3, deadline);
        let watcher = g[0].watcher();
        let mut works = [sum(&g[0], 4).unwrap(), sum(&g[1], 3).unwrap()];
        assert!(watcher.fault().is_none());
        let start = Instant::now();
        let found = loop {
            assert!(start.elapsed() < PATIENCE / 2);
            thread::sleep(Duration::from_millis(10));
            let found = match look {
                0 => watcher.fault().map(|(error, _)| error),
                1 => works[0].poll().err(),
                _ => group(&g[2]).send(zeros(&g[2], 1), 0, 0).err(),
            };
            match found {
                Some(error) => break error,
                None => continue,
            }
        };
        assert!(
            matches!(found, Error::Divergence { rank: 1, .. }),
            "{found}"
        );
        assert!(start.elapsed() >= Duration::from_millis(150), "look {look}");
    }
    // Or at once when rank 2 has left.
    let mut g = ranks(3, PATIENCE);
    let works = [sum(&g[0], 4).unwrap(), sum(&g[1], 3).unwrap()];
    drop(g.pop());
    for work in works {
        let error = work.wait().unwrap_err();
        assert!(
            matches!(error, Error::Divergence { rank: 1, .. }),
            "{error}"
        );
    }
}

/// A rank that waits in a slot in which ranks disagree gives the verdict itself, long before the deadline.
#[test]
fn who_waits_among_those_who_differ_gives_the_verdict() {
    let g = ranks(3, Duration::from_secs(3));
    let work = sum(&g[0], 4).unwrap();
    let _other = sum(&g[1], 3).unwrap();
    let start = Instant::now();
    let error = work.wait().unwrap_err();
    assert!(
        matches!(error, Error::Divergence { rank: 1, .. }),
        "{error}"
    );
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
}

/// Slots of dropped works are taken again: a thousand collectives take no more of them than one.
#[test]
fn slots_of_dropped_works_are_used_again() {
    let g = ranks(2, PATIENCE);
    for _ in 0..1000 {
        for g in &g {
            drop(sum(g, 3).unwrap());
        }
        // The other one is at its next call, too.
        drop(sum(&g[1], 3).unwrap());
        drop(sum(&g[0], 3).unwrap());
    }
    let made = g[0].endpoint.group.slots.made();
    assert!(made < 10, "{made} slots");
}

/// A work that is held for long keeps its slot, and no other one; and many in flight leave no more slots than twice so
/// many of each rank that comes first.
#[test]
fn slots_that_are_held_do_not_hold_up_the_others() {
    let g = ranks(2, PATIENCE);
    let round = |order: [usize; 2]| order.map(|rank| sum(&g[rank], 3).unwrap());
    const HELD: usize = 40;
    let held: Vec<_> = (0..HELD).map(|_| round([0, 1])).collect();
    for n in 0..1000 {
        let works = round(if n % 3 == 0 { [0, 1] } else { [1, 0] });
        works
            .into_iter()
            .for_each(|work| drop(work.wait().unwrap()));
    }
    let made = || g[0].endpoint.group.slots.made();
    assert!(made() < 4 * HELD, "{} slots", made());
    const FLIGHT: usize = 300;
    for order in [[0, 1], [1, 0], [0, 1], [1, 0]] {
        let works: Vec<_> = (0..FLIGHT).map(|_| round(order)).collect();
        // The last ones first.
        let works = works.into_iter().rev().flatten();
        works.for_each(|work| drop(work.wait().unwrap()));
    }
    assert!(made() < 2 * 2 * FLIGHT, "{} slots", made());
    let held = held.into_iter().flatten();
    held.for_each(|work| drop(work.wait().unwrap()));
}

/// What a rank gives is its own again when it has its result, though the slot keeps what was called; after a dropped work,
/// at its next call.
#[test]
fn a_slot_keeps_no_tensor() {
    let g = ranks(2, PATIENCE);
    let gather = |rank: usize, t: &Tensor| group(&g[rank]).all_gather(t.clone()).unwrap();
    let given = [0, 1].map(|rank| zeros(&g[rank], 3));
    let works = [0, 1].map(|rank| gather(rank, &given[rank]));
    works
        .into_iter()
        .for_each(|work| drop(work.wait().unwrap()));
    assert!(given.iter().all(Tensor::is_unique));
    let works = [0, 1].map(|rank| gather(rank, &given[rank]));
    drop(works);
    let next = [0, 1].map(|rank| group(&g[rank]).barrier().unwrap());
    assert!(given.iter().all(Tensor::is_unique));
    next.into_iter().for_each(|work| work.wait().unwrap());
}

/// In large groups all ranks use the same slots, whoever comes first.
#[test]
fn large_groups_share_their_slots() {
    const RANKS: usize = 40;
    let g = ranks(RANKS, PATIENCE);
    for round in 0..3 * RANKS {
        // Each rank is first now and then.
        let order = (0..RANKS).map(|k| (k + round) % RANKS);
        let works: Vec<_> = order
            .map(|rank| group(&g[rank]).barrier().unwrap())
            .collect();
        works.into_iter().for_each(|work| work.wait().unwrap());
    }
    let made = g[0].endpoint.group.slots.made();
    assert!(made < 6, "{made} slots");
}
