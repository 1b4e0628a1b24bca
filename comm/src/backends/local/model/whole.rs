//! Models of this backend as a whole, from a call to its result: with all that may go wrong, and so with fewer preemptions.

use super::tensors::{HOURS, check_sum, explore, memberships, ones};
use crate::backends::Backend;
use crate::backends::local::{Group, LocalGroup, Seat, World};
use crate::check;
use crate::error::Result;
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
    let rank = move |g: &Arc<[LocalGroup]>, me: usize| rank(&g[me]);
    explore(name, n, PREEMPTIONS, move || world(n), rank);
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
