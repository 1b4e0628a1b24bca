//! The default backend: the ranks are threads of one process, and share its memory.
//!
//! Issuing puts a call, with its tensors, where the other ranks find it, and returns. Nobody waits
//! for a slower rank before `wait`; the ranks that wait do the work together, each a share, straight
//! out of each other's buffers and into them. A rank that comes late finds it done.
//!
//! Between ranks, collectives take no lock: their `Slot`s form a list that grows as
//! the fastest rank issues, and its docs say why sharing is sound. A waiting rank spins for a
//! moment, where each rank can have a core, then yields, then sleeps.
//!
//! A group of one rank meets nobody: `alone` gives its tensors back, wherever they live. In larger groups they
//! live in the host's memory.
//!
//! One failure ends the whole world, that is the group that [`world`] made and all groups split off
//! it: every rank gets the same error, and all further work is refused.

mod alone;
mod mail;
mod park;
mod plan;
mod pool;
mod post;
mod slot;
mod wait;
mod world;

use self::alone::Done;
use self::mail::{End, Mailboxes};
use self::pool::{SlotPool, SlotRef, Spares};
use self::post::Post;
use self::slot::Slot;
use self::wait::LocalWork;
use self::world::World;
use crate::backends::Backend;
use crate::check::Call;
use crate::error::{Error, Result};
use crate::meeting::naming;
use crate::membership::Membership;
use crate::op::{Label, Op};
use crate::sync::{Mutex, Shared};
use crate::work::Pending;
use phalanx_tensor::Device;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// One rank's handle on a group of threads.
pub struct LocalGroup {
    endpoint: Arc<Endpoint>,
    label: Option<Arc<Label>>,
}

/// What all ranks of a group share.
struct Group {
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
    /// The number of the last `split`.
    last_split: u64,
    spares: Spares,
    spare_pairs: Spares,
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
pub fn world(devices: &[Device], threads_per_rank: usize, deadline: Duration) -> Vec<LocalGroup> {
    let world = Shared::new(World::new(devices.len(), threads_per_rank));
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
    fn new(world_ranks: &[usize]) -> Group {
        let size = world_ranks.len();
        let slots = SlotPool::new(size, size);
        let first = slots.take(0, &mut Spares::default(), 0, world_ranks);
        Group {
            slots,
            pairs: SlotPool::new(size, 2),
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
    /// The failure of the world, if it has failed.
    pub(crate) fn fault(&self) -> Option<Error> {
        self.0.fault()
    }
}

impl LocalGroup {
    pub(crate) fn watcher(&self) -> Watcher {
        Watcher(self.endpoint.seat.world.clone())
    }

    fn new(membership: Membership, group: Shared<Group>, seat: Arc<Seat>) -> Self {
        let issue = Issue {
            next: group.first,
            last_split: 0,
            spares: Spares::default(),
            spare_pairs: Spares::default(),
        };
        LocalGroup {
            endpoint: Arc::new(Endpoint {
                membership,
                group,
                seat,
                issue: Mutex::new(issue),
            }),
            label: None,
        }
    }
}

impl Endpoint {
    fn world(&self) -> &World {
        &self.seat.world
    }

    /// Counts a call of a group of one rank, which has no slots to meet in.
    fn count_alone(&self, op: &Op) {
        let mut issue = self.issue.lock();
        let count = &self.group.issued[self.membership.rank].0;
        let number = count.load(Relaxed);
        count.store(number + 1, Relaxed);
        if matches!(op, Op::Split) {
            issue.last_split = number;
        }
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
            last_split,
            spares,
            spare_pairs,
        } = &mut *issue;
        if let Some((end, from, to)) = message {
            let ranks = [me.world_ranks[from], me.world_ranks[to]];
            let free = |number, ranks: &[usize]| pairs.take(me.rank, spare_pairs, number, ranks);
            return (mail[from].meet(end, to, ranks, free), end as usize);
        }
        let count = &issued[me.rank].0; // counted by this rank alone, under its lock
        count.store(count.load(Relaxed) + 1, Relaxed);
        if matches!(op, Op::Split) {
            *last_split = next.sequence();
        }
        let after = next.next(&me.world_ranks, spares, slots, me.rank);
        (std::mem::replace(next, after), me.rank)
    }

    /// Takes a slot back that nobody uses any more.
    fn give_back(&self, slot: SlotRef, is_message: bool) {
        match is_message {
            true => self.group.pairs.give_back(slot),
            false => self.group.slots.give_back(slot),
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
    const NAME: &'static str = "local";

    fn membership(&self) -> &Membership {
        &self.endpoint.membership
    }

    fn issue(&self, call: Call) -> Result<Box<dyn Pending>> {
        let me = &self.endpoint;
        let world = me.world();
        if let Some(fault) = world.fault() {
            return Err(fault);
        }
        if me.membership.size() == 1 {
            me.count_alone(&call.signature.op);
            return Ok(Box::new(Done::of(call)?));
        }
        let post = Post::new(call, &me.membership)?;
        Ok(Box::new(LocalWork::issue(me, post)?))
    }

    fn split_off(&self, color: u32, members: &[usize]) -> Result<LocalGroup> {
        let me = &self.endpoint;
        let number = me.issue.lock().last_split; // which all ranks have just done
        let Some(membership) = naming::split_off(&me.membership, number, color, members) else {
            return Err(Error::InvalidArgument {
                op: "split",
                rank: me.membership.world_rank(),
                reason: "this rank is no member".into(),
            });
        };
        let group = {
            let mut offspring = me.group.offspring.lock();
            let new = || Offspring {
                group: Shared::new(Group::new(&membership.world_ranks)),
                expected: members.len(),
            };
            let name = Arc::clone(&membership.name);
            let entry = offspring.entry(Arc::clone(&name)).or_insert_with(new);
            let group = entry.group.clone();
            entry.expected -= 1;
            if entry.expected == 0 {
                offspring.remove(&name);
            }
            group
        };
        Ok(LocalGroup::new(membership, group, Arc::clone(&me.seat)))
    }

    fn labelled(&self, label: Label) -> LocalGroup {
        LocalGroup {
            endpoint: Arc::clone(&self.endpoint),
            label: Some(Arc::new(label)),
        }
    }

    fn label(&self) -> Option<&Arc<Label>> {
        self.label.as_ref()
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
