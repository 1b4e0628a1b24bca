//! Small talk between ranks through a [`Store`]: for ranks that are processes without MPI, whose data go by an engine
//! of their own, on cards. It carries what ranks have to agree on, `barrier`, `broadcast`, `all_gather`, `split`, `send` and
//! `recv` of CPU tensors of at most [`MOST_BYTES`], and nothing else: other calls, and larger tensors, get an error that
//! says what to use instead.
//!
//! A call goes through the store in two steps. Each rank leaves its call there, the signature and its data, and raises
//! the number of those that have come; when all have, each rank reads what the others have left, compares the
//! signatures, and takes its result. The last one to read removes what was left, so that the store does not
//! grow. All ranks see the same calls, so all come to the same verdict by themselves.
//!
//! A call whose work is dropped is ended by its rank all the same: at the rank's next call, or when the rank leaves the
//! world. What it gives is at the store before it drops anything, so no drop of a work harms the others, and no call of
//! this engine ever fails with [`Error::Abandoned`]. The drop of a work asks the store nothing, nor does that of a group,
//! except the last of a rank outside a launch: it says that the rank has left, and waits for the answer.
//!
//! What goes wrong is claimed in the store, by the first to see it, and read by all: see `session.rs`. Whoever waits for
//! a call also waits for that, and for departures. A rank that computes hears of it at its next call.

mod launch;
mod meet;
mod session;
mod wait;
mod wire;

pub(crate) use self::launch::launch;

use self::meet::Issued;
use self::session::{FAULT, Session, look};
use self::wait::{Posted, StoreWork};
use crate::backends::local::Done;
use crate::backends::{Backend, fold};
use crate::check::Call;
use crate::error::{Error, Result};
use crate::group::{Group, ProcessGroup};
use crate::meeting::naming;
use crate::membership::Membership;
use crate::op::{Op, Promises, Signature};
use crate::store::{Reply, Request, Store};
use crate::sync::Mutex;
use crate::work::Pending;
use phalanx_tensor::{DType, Device, Tensor};
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The most bytes that a rank's tensors have together in one call.
pub const MOST_BYTES: usize = 64 << 10;

/// One rank's side of a group of ranks that talk through a store.
struct StoreGroup {
    endpoint: Arc<Endpoint>,
    presence: Arc<Presence>,
    /// The messages to and from other ranks, by the end of this one and the other rank: each direction is a sequence of
    /// its own, of calls of two ranks.
    messages: Mutex<HashMap<(End, usize), Arc<StoreGroup>>>,
}

/// The ends of a message, which are the ranks of the sequence that it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum End {
    Sends = SENDER as isize,
    Receives = 1 - SENDER as isize,
}

/// The rank that sends.
const SENDER: usize = 0;

/// What all groups of a rank hold, and works do not: with the last of them the rank has left, since it can issue nothing
/// more. A launch has the rank depart before; then this asks nothing.
struct Presence(Arc<Session>);

impl Drop for Presence {
    fn drop(&mut self) {
        self.0.depart();
    }
}

/// One rank's side of a group.
struct Endpoint {
    membership: Membership,
    /// Of all keys of the group.
    key: String,
    session: Arc<Session>,
    /// Held from a call's number to its place at the store, so that the rank's threads issue one after the other.
    turn: Mutex<()>,
    /// Never held while the store is asked.
    issue: Mutex<Issue>,
}

/// Where a rank stands in its sequence of calls.
#[derive(Default)]
struct Issue {
    /// The number of the next one.
    next: u64,
    /// The numbers of those that have not ended.
    open: BTreeSet<u64>,
}

/// This rank's handle on a world of `size` ranks that share `store`. It waits for nobody. Its results live on `device`,
/// which is a CPU.
///
/// Where one store serves several worlds, each has a [`PrefixStore`](crate::PrefixStore) of its own.
/// [`run`](crate::run()) does this where a program was started by torchrun.
///
/// ```
/// use phalanx_comm::{Device, Error, MemoryStore, ProcessGroup, Tensor, backends::store};
/// use std::{sync::Arc, thread, time::Duration};
///
/// let deadline = Duration::from_secs(10);
/// let whole = MemoryStore::new(deadline);
/// let rank = |rank: usize| {
///     let store = Arc::new(whole.clone().for_rank(rank));
///     let group = store::world(store, rank, 2, Device::cpu(rank), deadline)?;
///     let mine = Tensor::from_slice(&[10 * rank as i64], [], group.device())?;
///     Ok::<_, Error>(group.all_gather(mine)?.wait()?.to_vec::<i64>()?)
/// };
/// thread::scope(|scope| {
///     let other = scope.spawn(|| rank(1));
///     assert_eq!(rank(0).unwrap(), [0, 10]);
///     assert_eq!(other.join().unwrap().unwrap(), [0, 10]);
/// });
/// ```
///
/// # Errors
/// [`Error::StoreRefused`], if another process has come as this rank before; [`Error::StoreUnreachable`].
pub fn world(
    store: Arc<dyn Store>,
    rank: usize,
    size: usize,
    device: Device,
    deadline: Duration,
) -> Result<Arc<dyn ProcessGroup>> {
    let engine = join(store, rank, size, device, deadline)?;
    Ok(Arc::new(Group::world(engine)))
}

fn join(
    store: Arc<dyn Store>,
    rank: usize,
    size: usize,
    device: Device,
    deadline: Duration,
) -> Result<StoreGroup> {
    let wrong = |reason: String| Error::InvalidArgument {
        op: "world",
        rank,
        reason,
    };
    if rank >= size {
        let reason = format!("there is no such rank in a world of {size}");
        return Err(wrong(reason));
    }
    if !device.is_cpu() {
        return Err(wrong(format!(
            "its results cannot live on {device}, only on a CPU"
        )));
    }
    let membership = Membership {
        rank,
        world_ranks: (0..size).collect(),
        name: "world".into(),
        device,
        deadline,
    };
    let session = Arc::new(Session::join(store, rank)?);
    Ok(StoreGroup::new(membership, Arc::new(Presence(session))))
}

impl StoreGroup {
    fn new(membership: Membership, presence: Arc<Presence>) -> StoreGroup {
        let key = naming::group_id(0, &membership.name);
        StoreGroup::keyed(membership, presence, key)
    }

    /// The group whose keys are made of this number: as long for every name, since names grow with each split.
    fn keyed(membership: Membership, presence: Arc<Presence>, key: u64) -> StoreGroup {
        let key = format!("{key:016x}");
        StoreGroup {
            messages: Mutex::default(),
            endpoint: Arc::new(Endpoint {
                membership,
                key,
                session: Arc::clone(&presence.0),
                turn: Mutex::default(),
                issue: Mutex::default(),
            }),
            presence,
        }
    }

    /// The sequence to which a message belongs.
    fn messages(&self, end: End, peer: usize) -> Arc<StoreGroup> {
        let me = &self.endpoint.membership;
        let make = || {
            let mut ranks = [me.rank, peer];
            if end == End::Receives {
                ranks.reverse();
            }
            let [from, to] = ranks;
            let between = Membership {
                rank: end as usize,
                world_ranks: ranks.map(|rank| me.world_ranks[rank]).into(),
                ..me.clone()
            };
            // No group that is split off has such a name.
            let key = naming::group_id(0, &format!("{} from {from} to {to}", me.name));
            Arc::new(StoreGroup::keyed(between, Arc::clone(&self.presence), key))
        };
        let mut all = self.messages.lock();
        Arc::clone(all.entry((end, peer)).or_insert_with(make))
    }

    /// Leaves a call at the store.
    fn post(&self, call: Call) -> Result<Box<dyn Pending>> {
        self.admit(&call)?;
        match call.signature.op {
            Op::Send { destination, .. } => self.messages(End::Sends, destination).leave(call),
            Op::Recv { source, .. } => self.messages(End::Receives, source).leave(call),
            _ => self.leave(call),
        }
    }

    fn leave(&self, call: Call) -> Result<Box<dyn Pending>> {
        let me = &self.endpoint;
        me.session.refuse()?;
        if me.membership.size() == 1 {
            me.issue.lock().next += 1;
            return Ok(Box::new(Done::of(call)?));
        }
        // That an earlier call cannot be ended is nothing to this one, unless the world has failed with it.
        me.session.settle();
        me.session.refuse()?;
        let signature = call.signature.clone();
        let (posted, value) = Posted::new(call, &me.membership)?;
        let turn = me.turn.lock();
        let number = me.issue.lock().next;
        let set = Request::Set {
            key: me.call_key(number, me.membership.rank),
            value,
        };
        let add = Request::Add {
            key: me.count_key(number),
            amount: 1,
        };
        // Where one of them is refused, the call has had no effect: its number is not used up.
        let replies = me.session.ask(&[look(FAULT.into()), set, add])?;
        let mut issue = me.issue.lock();
        issue.next += 1;
        issue.open.insert(number);
        drop((issue, turn));
        if let Some(Reply::Value(_)) = replies.first() {
            return Err(me.session.hear());
        }
        let size = me.membership.size() as i64;
        let is_full = matches!(replies.last(), Some(Reply::Number(come)) if *come >= size);
        let call = Issued { number, signature };
        Ok(Box::new(StoreWork::new(
            Arc::clone(me),
            call,
            posted,
            is_full,
        )))
    }
}

impl Endpoint {
    /// Fails the world: something else is in the store than a rank has left there.
    fn broken(&self, signature: &Signature, message: String) -> Error {
        self.session.fail(Error::Transport {
            rank: self.membership.world_rank(),
            call: signature.to_string(),
            message,
        })
    }
}

impl Backend for StoreGroup {
    fn name(&self) -> &'static str {
        "store"
    }

    fn membership(&self) -> &Membership {
        &self.endpoint.membership
    }

    fn supports(&self, op: &Op, _: DType) -> bool {
        wire::carries(op)
    }

    fn promises(&self) -> Promises {
        fold::PROMISES // of none
    }

    fn admit(&self, call: &Call) -> Result<()> {
        let op = &call.signature.op;
        let refused = |what: String| Error::InvalidArgument {
            op: op.name(),
            rank: self.endpoint.membership.world_rank(),
            reason: format!(
                "{what}: it is for small talk between ranks. For CPU tensors start the program by mpirun, built with the \
                 feature `mpi` of phalanx-comm"
            ),
        };
        if !wire::carries(op) {
            return Err(refused(
                "a group over the store carries barrier, broadcast, all_gather, split, send and recv alone".into(),
            ));
        }
        if let Some(tensor) = call.inputs.iter().find(|tensor| !tensor.device().is_cpu()) {
            let device = tensor.device();
            return Err(refused(format!(
                "a group over the store carries no tensor of {device}"
            )));
        }
        let bytes = |t: &Tensor| t.numel().saturating_mul(t.dtype().size());
        let bytes = call.inputs.iter().map(bytes).fold(0, usize::saturating_add);
        if bytes > MOST_BYTES {
            return Err(refused(format!(
                "a group over the store carries {MOST_BYTES} bytes of each rank in one call, and not {bytes}"
            )));
        }
        Ok(())
    }

    fn issue(&self, call: Call) -> Result<Box<dyn Pending>> {
        let issued = self.post(call);
        issued.map_err(|error| self.endpoint.session.tell(error))
    }

    fn issued(&self) -> u64 {
        self.endpoint.issue.lock().next
    }

    fn split_off(&self, new: Membership) -> Result<Arc<dyn Backend>> {
        let presence = Arc::clone(&self.presence);
        Ok(Arc::new(StoreGroup::new(new, presence)))
    }

    fn fault(&self) -> Option<Error> {
        self.endpoint.session.failure().map(|(error, _)| error)
    }

    fn refuse(&self) -> Result<()> {
        let session = &self.endpoint.session;
        session
            .failure()
            .map_or(Ok(()), |(error, _)| Err(session.tell(error)))
    }

    fn depart(&self) {
        self.endpoint.session.depart();
    }

    fn fail(&self, error: Error) {
        // It comes from the program.
        let session = &self.endpoint.session;
        let fault = session.fail(error);
        session.tell(fault);
    }
}

impl fmt::Debug for StoreGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let me = &self.endpoint.membership;
        let (rank, size) = (me.rank, me.size());
        write!(f, "StoreGroup(rank {rank} of {size} in {})", me.name)
    }
}
