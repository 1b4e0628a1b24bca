//! Models of this backend as a whole, from a call to its result: with all that may go wrong, and so with fewer preemptions.

use super::tensors::{HOURS, check_sum, explore, memberships, ones};
use crate::backends::Backend;
use crate::backends::local::{Group, LocalGroup, Seat, World};
use crate::check;
use crate::error::{Error, Result};
use crate::op::ReduceOp;
use crate::sync::Shared;
use crate::work::Pending;
use std::sync::Arc;

/// How often a thread loses its turn at other times than when it waits.
const PREEMPTIONS: usize = 1;

/// The ranks of a new world.
fn world(n: usize) -> Arc<[LocalGroup]> {
    let mut world = World::new(n, 1, HOURS);
    (world.workers, world.grace) = (n, HOURS);
    let world = Shared::new(world);
    let members = memberships(n);
    let group = Shared::new(Group::new(&members[0].world_ranks));
    let handle = |(rank, member)| {
        let world = world.clone();
        LocalGroup::new(member, group.clone(), Arc::new(Seat { world, rank }))
    };
    members.into_iter().enumerate().map(handle).collect()
}

fn run(name: &str, n: usize, rank: impl Fn(&LocalGroup) + Send + Sync + Copy + 'static) {
    run_with(name, n, PREEMPTIONS, rank);
}

/// Runs a rank's program on each of `n` ranks, in every order with so many preemptions.
pub(super) fn run_with(
    name: &str,
    n: usize,
    preemptions: usize,
    rank: impl Fn(&LocalGroup) + Send + Sync + Copy + 'static,
) {
    let rank = move |g: &Arc<[LocalGroup]>, me: usize| rank(&g[me]);
    explore(name, n, preemptions, move || world(n), rank);
}

/// Issues the sum of a tensor of so many chunks.
fn sum(g: &LocalGroup, chunks: usize) -> Result<Box<dyn Pending>> {
    let me = g.membership();
    g.issue(check::all_reduce(me, ones(me, chunks), ReduceOp::Sum)?)
}

/// Issues and waits.
fn all_reduce(g: &LocalGroup, chunks: usize) -> Result<()> {
    check_sum(g.membership(), &sum(g, chunks)?.wait()?);
    Ok(())
}

#[test]
fn two_ranks_meet_twice() {
    run("two ranks meet twice", 2, |g| {
        all_reduce(g, 2).unwrap();
        all_reduce(g, 2).unwrap();
    });
}

#[test]
fn three_ranks_meet() {
    run("three ranks meet", 3, |g| all_reduce(g, 2).unwrap());
}

#[test]
fn slots_are_used_again() {
    run("slots are used again", 2, |g| {
        for _ in 0..3 {
            all_reduce(g, 0).unwrap();
        }
    });
}

/// Rank 1 never comes. Without an end of the wait, loom would find that nobody runs any more: timers never go off there.
#[test]
fn who_leaves_is_not_waited_for() {
    run("who leaves is not waited for", 2, |g| {
        match g.membership().rank {
            0 => {
                let error = all_reduce(g, 2).unwrap_err();
                assert!(
                    matches!(error, Error::RankReturned { rank: 1, .. }),
                    "{error}"
                );
            }
            _ => g.depart(),
        }
    });
}

/// What a rank has posted before it left is good.
#[test]
fn who_has_come_may_leave() {
    run("who has come may leave", 2, |g| {
        all_reduce(g, 0).unwrap();
        g.depart();
    });
}

#[test]
fn a_failure_ends_all_waits() {
    run("a failure ends all waits", 2, |g| {
        match g.membership().rank {
            0 => {
                let error = all_reduce(g, 2).unwrap_err();
                assert!(
                    matches!(error, Error::RankPanicked { rank: 1, .. }),
                    "{error}"
                );
            }
            rank => g.fail(Error::RankPanicked {
                rank,
                message: String::new(),
            }),
        }
    });
}

/// Rank 0 wants nothing of its first operation; rank 1 gets its own part of it, and both go on.
#[test]
fn a_dropped_work_is_carried_out() {
    run("a dropped work is carried out", 2, |g| {
        match g.membership().rank {
            0 => drop(sum(g, 2).unwrap()),
            _ => all_reduce(g, 2).unwrap(),
        }
        all_reduce(g, 0).unwrap();
    });
}

#[test]
fn ranks_that_differ_hear_of_it() {
    run("ranks that differ hear of it", 2, |g| {
        let error = all_reduce(g, g.membership().rank).unwrap_err();
        assert!(matches!(error, Error::Divergence { .. }), "{error}");
    });
}

/// What others have called is read where they have posted, though they may not have been counted.
#[test]
fn two_differ_and_the_third_leaves() {
    run("two differ and the third leaves", 3, |g| {
        match g.membership().rank {
            2 => g.depart(),
            rank => {
                let error = all_reduce(g, rank).unwrap_err();
                let is_one = matches!(
                    error,
                    Error::Divergence { .. } | Error::RankReturned { rank: 2, .. }
                );
                assert!(is_one, "{error}");
            }
        }
    });
}
