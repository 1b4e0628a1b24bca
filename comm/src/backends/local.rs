//! The default backend: the ranks are threads of one process, and share its memory.
//!
//! Issuing puts a call, with its tensors, where the other ranks find it, and returns. Nobody waits
//! for a slower rank before `wait`; the ranks that wait do the work together, each a share, straight
//! out of each other's buffers and into them. A rank that comes late finds it done.
//!
//! Between ranks, collectives take no lock: their `Slot`s form a list that grows as
//! the fastest rank issues, and its docs say why sharing is sound. A waiting rank spins for a
//! moment, where each rank can have a core, then yields, then sleeps; and where it sleeps, it says for what, so that
//! others can tell who waits for whom.
//!
//! A group of one rank meets nobody: `alone` gives its tensors back, wherever they live. In larger groups they
//! live in the host's memory.
//!
//! One failure ends the whole world, that is the group that [`world`] made and all groups split off
//! it: every rank gets the same error, and all further work is refused.

mod alone;
mod mail;
mod mark;
#[cfg(phalanx_loom)]
mod model;
mod park;
mod part;
#[cfg(not(phalanx_loom))]
mod patience;
mod plan;
mod pool;
mod post;
mod slot;
mod stand;
mod suspects;
#[cfg(test)]
mod tests;
mod wait;
mod world;

pub(in crate::backends) use self::alone::Done;
use self::mail::{End, Mailboxes};
use self::pool::{Own, SlotPool, SlotRef};
use self::post::Post;
use self::slot::Slot;
use self::wait::LocalWork;
use self::world::World;
use crate::backends::{Backend, fold};
use crate::check::Call;
use crate::error::{Error, Result};
use crate::group::ProcessGroup;
use crate::membership::Membership;
use crate::op::{Name, Op, Promises};
use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};
use crate::sync::{Mutex, Shared};
use crate::work::Pending;
use phalanx_tensor::Device;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// One rank's side of a group of threads.
pub(crate) struct LocalGroup {
    endpoint: Arc<Endpoint>,
}

/// What all ranks of a group share.
struct Group {
    /// The members' numbers in the world: one list for all of them.
    world_ranks: Arc<[usize]>,
    slots: SlotPool,
    /// Those in which the two ends of a message meet.
    pairs: SlotPool,
    /// The slot of collective 0.
    first: SlotRef,
    /// How many collectives each rank has issued: for messages only.
    issued: Box<[Counter]>,
    /// From rank `a`, at `a`.
    mail: Box<[Mailboxes]>,
    /// Groups that are being split off, by name, until all their members have them.
    offspring: Mutex<HashMap<Arc<str>, Offspring>>,
}

#[derive(Default)]
#[repr(align(128))]
struct Counter(AtomicU64);

struct Offspring {
    group: Shared<Group>,
    /// Members that do not have it yet.
    expected: usize,
}

/// One rank's side of a group.
struct Endpoint {
    membership: Membership,
    group: Shared<Group>,
    seat: Arc<Seat>,
    /// Locked by the rank's own threads only.
    issue: Mutex<Issue>,
}

/// Where a rank stands in its sequence of collectives.
struct Issue {
    /// The slot of the next one.
    next: SlotRef,
    own: Own,
    own_pairs: Own,
}

/// A rank in the world, as long as it holds one of its groups.
struct Seat {
    world: Shared<World>,
    rank: usize,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.world.depart(self.rank);
    }
}

/// The handles of a new world with a rank for each device, on which the rank's results live. Each
/// rank computes with so many threads: that decides how it waits.
///
/// [`launch`](crate::launch::launch) does this, and starts the threads too.
pub fn world(
    devices: &[Device],
    threads_per_rank: usize,
    deadline: Duration,
) -> Vec<Arc<dyn ProcessGroup>> {
    let handle = |engine| -> Arc<dyn ProcessGroup> { Arc::new(crate::group::Group::world(engine)) };
    let engines = engines(devices, threads_per_rank, deadline);
    engines.into_iter().map(handle).collect()
}

/// The ranks' sides of a new world.
pub(crate) fn engines(
    devices: &[Device],
    threads_per_rank: usize,
    deadline: Duration,
) -> Vec<LocalGroup> {
    let world = Shared::new(World::new(devices.len(), threads_per_rank, deadline));
    let world_ranks: Arc<[usize]> = (0..devices.len()).collect();
    let group = Shared::new(Group::new(&world_ranks));
    let name: Arc<str> = "world".into();
    let handle = |(rank, &device)| {
        let membership = Membership {
            rank,
            world_ranks: Arc::clone(&world_ranks),
            name: Arc::clone(&name),
            device,
            deadline,
        };
        let seat = Arc::new(Seat {
            world: world.clone(),
            rank,
        });
        LocalGroup::new(membership, group.clone(), seat)
    };
    devices.iter().enumerate().map(handle).collect()
}

impl Group {
    fn new(world_ranks: &Arc<[usize]>) -> Group {
        let size = world_ranks.len();
        let slots = SlotPool::new(size);
        let first = slots.first(world_ranks);
        if let Some(mut common) = slots.common() {
            common.add_first(first);
        }
        Group {
            world_ranks: Arc::clone(world_ranks),
            slots,
            pairs: SlotPool::new(2),
            first,
            issued: (0..size).map(|_| Counter::default()).collect(),
            mail: (0..size).map(|_| Mailboxes::default()).collect(),
            offspring: Mutex::default(),
        }
    }
}

/// Looks at a world from outside: it is no rank, and keeps none there.
pub(crate) struct Watcher(Shared<World>);

impl Watcher {
    /// The failure of the world, if it has failed; and whether a rank has heard of it.
    pub(crate) fn fault(&self) -> Option<(Error, bool)> {
        self.0.fault()
    }
}

impl LocalGroup {
    pub(crate) fn watcher(&self) -> Watcher {
        Watcher(self.endpoint.seat.world.clone())
    }

    /// Called once for each rank of a group.
    fn new(membership: Membership, group: Shared<Group>, seat: Arc<Seat>) -> Self {
        let mut own = Own::default();
        if membership.rank == 0 && !group.slots.is_common() {
            own.add_first(group.first);
        }
        let issue = Issue {
            next: group.first,
            own,
            own_pairs: Own::default(),
        };
        LocalGroup {
            endpoint: Arc::new(Endpoint {
                membership,
                group,
                seat,
                issue: Mutex::new(issue),
            }),
        }
    }
}

impl Endpoint {
    fn world(&self) -> &World {
        &self.seat.world
    }

    /// Counts a call of a group of one rank, which has no slots to meet in.
    fn count_alone(&self) {
        let count = &self.group.issued[self.membership.rank].0;
        count.fetch_add(1, Relaxed);
    }

    /// The slot and the cell for a call.
    fn place(&self, op: &Op) -> (SlotRef, usize) {
        let me = &self.membership;
        let message = match op {
            Op::Send { destination, .. } => Some((End::Send, me.rank, *destination)),
            Op::Recv { source, .. } => Some((End::Recv, *source, me.rank)),
            _ => None,
        };
        let Group {
            slots,
            pairs,
            issued,
            mail,
            ..
        } = &*self.group;
        let mut issue = self.issue.lock();
        let Issue {
            next,
            own,
            own_pairs,
        } = &mut *issue;
        if let Some((end, from, to)) = message {
            let ranks = [me.world_ranks[from], me.world_ranks[to]];
            let free = |number, ranks: &[usize]| pairs.take(own_pairs, number, ranks);
            return (mail[from].meet(end, to, ranks, free), end as usize);
        }
        let count = &issued[me.rank].0; // counted by this rank alone, under its lock
        count.store(count.load(Relaxed) + 1, Relaxed);
        let after = next.next(&me.world_ranks, own, slots);
        (std::mem::replace(next, after), me.rank)
    }

    /// Makes ready for the next collective what can be, while others are still to come to this one. In large groups the
    /// lock would cost others more.
    fn prepare(&self) {
        if !self.group.slots.is_common() {
            self.issue.lock().own.prepare();
        }
    }

    /// What is known about a rank of the world that did not come to meet `mine` of this slot.
    fn note(&self, slot: &Slot, mine: usize, rank: usize) -> String {
        let me = &self.membership;
        let rank_here = |world_rank| me.world_ranks.iter().position(|r| *r == world_rank);
        let Some(number) = rank_here(rank) else {
            return String::new();
        };
        match slot.op(mine) {
            Some(Op::Send { .. }) => format!("rank {rank} has issued no recv for it"),
            Some(Op::Recv { .. }) => format!("rank {rank} has issued no send for it"),
            _ => {
                let issued = self.group.issued[number].0.load(Relaxed);
                format!("rank {rank} has issued {issued} collectives of this group")
            }
        }
    }
}

impl Backend for LocalGroup {
    fn name(&self) -> &'static str {
        "local"
    }

    fn membership(&self) -> &Membership {
        &self.endpoint.membership
    }

    fn issue(&self, call: Call) -> Result<Box<dyn Pending>> {
        let me = &self.endpoint;
        me.world().enter(me.membership.world_rank())?;
        if me.membership.size() == 1 {
            me.count_alone();
            return Ok(Box::new(Done::of(call)?));
        }
        let post = Post::new(call, &me.membership)?;
        Ok(Box::new(LocalWork::issue(me, post)?))
    }

    fn promises(&self) -> Promises {
        fold::PROMISES
    }

    fn issued(&self) -> u64 {
        let me = &self.endpoint;
        me.group.issued[me.membership.rank].0.load(Relaxed)
    }

    fn split_off(&self, mut new: Membership) -> Result<Arc<dyn Backend>> {
        let me = &self.endpoint;
        let group = {
            let mut offspring = me.group.offspring.lock();
            let make = || Offspring {
                group: Shared::new(Group::new(&new.world_ranks)),
                expected: new.size(),
            };
            let entry = offspring.entry(Arc::clone(&new.name)).or_insert_with(make);
            let group = entry.group.clone();
            entry.expected -= 1;
            if entry.expected == 0 {
                offspring.remove(&new.name);
            }
            group
        };
        new.world_ranks = Arc::clone(&group.world_ranks);
        Ok(Arc::new(LocalGroup::new(new, group, Arc::clone(&me.seat))))
    }

    fn set_activity(&self, activity: Name) -> Name {
        let seat = &self.endpoint.seat;
        seat.world.rank(seat.rank).activity.replace(activity)
    }

    fn fault(&self) -> Option<Error> {
        self.endpoint.world().fault().map(|(fault, _)| fault)
    }

    fn refuse(&self) -> Result<()> {
        self.endpoint.world().refuse()
    }

    fn depart(&self) {
        let seat = &self.endpoint.seat;
        seat.world.depart(seat.rank);
    }

    fn fail(&self, error: Error) {
        self.endpoint.world().fail(error);
    }
}

impl fmt::Debug for LocalGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let me = &self.endpoint.membership;
        write!(
            f,
            "LocalGroup(rank {} of {} in {})",
            me.rank,
            me.size(),
            me.name
        )
    }
}
