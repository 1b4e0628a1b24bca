//! [`ProcessGroup`]: what ranks say to each other, on every backend.

mod batch;
mod engines;
mod handle;
mod record;
mod ticks;

pub use self::batch::Message;
pub(crate) use self::handle::Group;
pub(crate) use self::record::{Flight, Ticket};
pub use self::record::{Progress, Record};

use crate::error::{Error, Result};
use crate::op::{Label, Name, Op, Promises, ReduceOp};
use crate::work::Work;
use phalanx_tensor::{DType, Device, Shape, Tensor};
use std::sync::Arc;
use std::time::Duration;

/// One rank's handle on a group of ranks that call the same collectives in the same order.
///
/// A call *issues* the operation and returns without waiting for anybody; [`Work::wait`] finishes
/// it. Any number of operations may be in flight. Where a tensor has a part for each rank, its
/// first axis counts the ranks.
///
/// Results live on the device of the tensor that went in, or on [`device`](ProcessGroup::device)
/// where none did. A tensor that nobody else shares is changed in place. In a group of one rank, every
/// collective gives the rank's own tensor back and waits for nothing, on whatever device.
///
/// On cards all calls of a rank, in whatever group, come one after the other on the card: there, ranks call what they have
/// in common in one order over all groups, and messages that would go round in a circle go together
/// ([`batch`](ProcessGroup::batch)). Where they do not, the cards wait for each other until the deadline.
///
/// # Errors
/// Every method returns [`Error`](crate::Error): for an argument that makes no sense, which the
/// other ranks do not hear of; or the failure of the group, which all ranks get alike, after which
/// the group, all groups split off it and all that it was split off from refuse further work.
/// Operations of one rank are issued by one thread at a time; two threads that race are reported
/// as a divergence.
pub trait ProcessGroup: Send + Sync {
    /// This rank's number in the group, from 0.
    fn rank(&self) -> usize;

    /// The number of ranks in the group.
    fn size(&self) -> usize;

    /// The backend's name: `"local"`, `"mpi"`, `"nccl"`, `"store"`.
    fn backend(&self) -> &'static str;

    /// The group's name in error messages: `world`, or for a group that was split off
    /// `world/3:1`: by collective 3 of the world, with color 1.
    fn name(&self) -> &str;

    /// The ranks' numbers in the world, in the order of this group's ranks.
    fn world_ranks(&self) -> &[usize];

    /// Where this rank's results live if no tensor went in.
    fn device(&self) -> Device;

    /// How long a wait may last.
    fn deadline(&self) -> Duration;

    /// Every rank gets the reduction of all ranks' tensors. Shapes and types agree.
    fn all_reduce(&self, tensor: Tensor, op: ReduceOp) -> Result<Work<Tensor>>;

    /// As [`all_reduce`](ProcessGroup::all_reduce), of several tensors by one call, of any types: at most
    /// [`MOST_TENSORS`](crate::check::MOST_TENSORS). One meeting of the ranks serves them all. (PyTorch:
    /// `all_reduce_coalesced`.)
    fn all_reduce_many(&self, tensors: Vec<Tensor>, op: ReduceOp) -> Result<Work<Vec<Tensor>>>;

    /// Every rank gets the tensor of rank `root`. The others give one of the same shape and type,
    /// whose memory is used again and whose values do not matter.
    fn broadcast(&self, tensor: Tensor, root: usize) -> Result<Work<Tensor>>;

    /// As [`broadcast`](ProcessGroup::broadcast), of several tensors by one call.
    fn broadcast_many(&self, tensors: Vec<Tensor>, root: usize) -> Result<Work<Vec<Tensor>>>;

    /// Rank `root` gets the reduction of all ranks' tensors, the others get `None`.
    fn reduce(&self, tensor: Tensor, op: ReduceOp, root: usize) -> Result<Work<Option<Tensor>>>;

    /// Every rank gets all ranks' tensors, stacked: of shape `s`, in a tensor `[size, s…]`.
    /// (PyTorch's `all_gather_into_tensor`, which puts them end to end, is a reshape away.)
    fn all_gather(&self, tensor: Tensor) -> Result<Work<Tensor>>;

    /// As [`all_gather`](ProcessGroup::all_gather), into a tensor `[size, s…]` that is there already and comes back as
    /// the result. Where somebody else holds it, the result is new memory, and that tensor stays as it was.
    fn all_gather_into(&self, into: Tensor, tensor: Tensor) -> Result<Work<Tensor>>;

    /// As [`all_gather`](ProcessGroup::all_gather), for rank `root` only; the others get `None`.
    fn gather(&self, tensor: Tensor, root: usize) -> Result<Work<Option<Tensor>>>;

    /// Every rank gets its part of rank `root`'s tensor `[size, shape…]`. Only `root` gives one;
    /// all name the shape and the type of a part.
    fn scatter(
        &self,
        parts: Option<Tensor>,
        shape: Shape,
        dtype: DType,
        root: usize,
    ) -> Result<Work<Tensor>>;

    /// Rank `r` gets the reduction of all ranks' part `r`: of tensors `[size, s…]`, one of shape
    /// `s`.
    fn reduce_scatter(&self, tensor: Tensor, op: ReduceOp) -> Result<Work<Tensor>>;

    /// As [`reduce_scatter`](ProcessGroup::reduce_scatter), of several tensors by one call.
    fn reduce_scatter_many(&self, tensors: Vec<Tensor>, op: ReduceOp) -> Result<Work<Vec<Tensor>>>;

    /// Rank `r` gives its part `s` to rank `s`, and gets that one's part `r` as its part `s`:
    /// tensors `[size, …]` on all ranks, of one shape.
    fn all_to_all(&self, tensor: Tensor) -> Result<Work<Tensor>>;

    /// As [`all_to_all`](ProcessGroup::all_to_all), with parts of any number of rows: this rank
    /// gives `send[s]` rows of its tensor `[rows, …]` to rank `s`, in order, and gets `recv[s]`
    /// rows from it, in a tensor `[sum of recv, …]`. What `r` sends to `s` is what `s` expects
    /// from `r`. (PyTorch: `all_to_all_single` with split sizes.)
    fn all_to_all_v(&self, tensor: Tensor, send: &[usize], recv: &[usize]) -> Result<Work<Tensor>>;

    /// Gives a tensor to rank `destination`. Done when that one has it: every backend may make
    /// `wait` meet the receiver, so a rank that sends and receives at once does so in one
    /// [`batch`](ProcessGroup::batch).
    ///
    /// The messages from one rank to another match in the order of issue, as NCCL has it. The tag is compared, as shape
    /// and type are: where the ends differ, that is a divergence. Messages do not mix with collectives.
    fn send(&self, tensor: Tensor, destination: usize, tag: u32) -> Result<Work<()>>;

    /// Gets a tensor of this shape and type from rank `source`, sent with this tag: the next one that it sends to this
    /// rank. It arrives on the group's device, and is sent from there.
    fn recv(&self, shape: Shape, dtype: DType, source: usize, tag: u32) -> Result<Work<Tensor>>;

    /// Sends and receives that run together, whatever the order in which the other ranks have theirs; gives the received
    /// tensors in the order of `messages`. Each matches as it would by itself. Where one of them is refused, none has
    /// gone. (PyTorch: `batch_isend_irecv`.)
    fn batch(&self, messages: Vec<Message>) -> Result<Work<Vec<Tensor>>>;

    /// Gives a tensor to a rank that does not know its shape and type, and gets it by
    /// [`recv_any`](ProcessGroup::recv_any): they travel before it, as a message of their own. At most
    /// [`MOST_AXES`](crate::check::MOST_AXES) axes. Where the tensor is refused, that message is not sent either.
    fn send_any(&self, tensor: Tensor, destination: usize, tag: u32) -> Result<Work<()>>;

    /// Gets a tensor that rank `source` sends by [`send_any`](ProcessGroup::send_any), of whatever shape and type, and
    /// from the memory that it is in: one in the host's memory arrives in the host's memory, also in a group over cards, and
    /// one on a rank's second card on this rank's second card.
    /// It holds the host until these have come; only the tensor itself travels while the caller goes on. Where this rank
    /// has no room for it, the world fails with [`Error::Aborted`](crate::Error::Aborted): it is on its way already.
    fn recv_any(&self, source: usize, tag: u32) -> Result<Work<Tensor>>;

    /// Done when every rank has called it.
    fn barrier(&self) -> Result<Work<()>>;

    /// Splits the group: ranks of one `color` make a new one, in the order of `key`, then of rank. A rank of no color
    /// takes no part in any, and gets `None`. All ranks call it, and it waits for them all. The groups may be used at
    /// the same time. Over cards, NCCL's communicator is split where the cards of all ranks are done with what they were
    /// given before, in all groups: no other thread should use the group meanwhile, since its calls wait for the split.
    /// Where the cards are not done, the new groups make communicators of their own, which takes longer.
    /// (PyTorch: `split_group`; MPI: `MPI_Comm_split`; NCCL: `ncclCommSplit`.)
    fn split(&self, color: Option<u32>, key: i32) -> Result<Option<Arc<dyn ProcessGroup>>>;

    /// A new group of the same ranks over these cards of this rank: tensors on each of them have an engine, as those on
    /// [`device`](ProcessGroup::device) have, which is the first one. All ranks call it, with as many cards, and it waits
    /// for them all; tensors that meet in a call are on cards of the same place in the ranks' lists. A module that is
    /// spread over several cards is averaged over such a group.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument), the same on every rank, where a rank names something
    /// else than a card, or one twice, or another number than rank 0; that this build is without NCCL; the world's
    /// failure, to which belong cards that two ranks name.
    fn with_cards(&self, cards: &[Device]) -> Result<Arc<dyn ProcessGroup>>;

    /// The same group for calls that carry this label: ranks whose labels differ get
    /// [`Error::Divergence`](crate::Error::Divergence). Calls are counted together with those of
    /// the group itself; a group that is split off has no label.
    fn labelled(&self, label: Label) -> Arc<dyn ProcessGroup>;

    /// Says what this rank does between its calls, until it says something else ([`Name::EMPTY`]: nothing). Where another
    /// one waits for it in vain, the error tells it: `rank 1 waits in no call, but is in 2F5`. It is the rank's, whatever
    /// group it is said by; it costs a lock and no message, and only threads of one process and processes under MPI hear
    /// of it. Gives back what it said before, for whoever says something else for a while; where nobody hears of it, always
    /// [`Name::EMPTY`].
    fn set_activity(&self, activity: Name) -> Name;

    /// Ends the world: every rank gets [`Error::Aborted`](crate::Error::Aborted), in what it waits
    /// for and in what it calls next.
    fn abort(&self, reason: &str);

    /// Whether the engine for tensors on this group's [`device`](ProcessGroup::device) carries out the operation on
    /// elements of this type.
    fn supports(&self, op: &Op, dtype: DType) -> bool;

    /// What the engine for tensors on such a device promises of its results. `None` where the group has no such engine.
    fn promises(&self, device: Device) -> Option<Promises>;

    /// How many collectives this rank has issued in this group: the number of the next one.
    fn issued(&self) -> u64;

    /// The failure of the world, as far as this rank has heard of it; looking at it is no call.
    fn health(&self) -> Option<Error>;

    /// The last calls of this rank in this group, the oldest first, with how far they have come: what PyTorch calls the
    /// flight recorder. A launch writes them where a rank fails: see
    /// [`LaunchConfig::flight_record`](crate::LaunchConfig::flight_record).
    fn recent(&self) -> Vec<Record>;
}
