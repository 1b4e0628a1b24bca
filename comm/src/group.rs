//! [`ProcessGroup`]: what ranks say to each other, on every backend.

use crate::backends::Backend;
use crate::check::{self, Call};
use crate::error::Result;
use crate::meeting::naming;
use crate::op::{Label, ReduceOp};
use crate::work::{Outcome, Work};
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
/// collective gives the rank's own tensor back and waits for nothing: there, tensors may live on a card.
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

    /// The backend's name: `"local"`, `"mpi"`, `"nccl"`.
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
    /// `wait` meet the receiver, so a rank that sends and receives at once issues both first.
    ///
    /// The messages from one rank to another match in the order of issue, as NCCL has it. The tag is compared, as shape
    /// and type are: where the ends differ, that is a divergence. Messages do not mix with collectives.
    fn send(&self, tensor: Tensor, destination: usize, tag: u32) -> Result<Work<()>>;

    /// Gets a tensor of this shape and type from rank `source`, sent with this tag: the next one that it sends to this
    /// rank.
    fn recv(&self, shape: Shape, dtype: DType, source: usize, tag: u32) -> Result<Work<Tensor>>;

    /// Done when every rank has called it.
    fn barrier(&self) -> Result<Work<()>>;

    /// Splits the group: ranks of one `color` make a new one, in the order of `key`, then of rank. A rank of no color
    /// takes no part in any, and gets `None`. All ranks call it, and it waits for them all. The groups may be used at
    /// the same time. (PyTorch: `split_group`; MPI: `MPI_Comm_split`.)
    fn split(&self, color: Option<u32>, key: i32) -> Result<Option<Arc<dyn ProcessGroup>>>;

    /// The same group for calls that carry this label: ranks whose labels differ get
    /// [`Error::Divergence`](crate::Error::Divergence). Calls are counted together with those of
    /// the group itself; a group that is split off has no label.
    fn labelled(&self, label: Label) -> Arc<dyn ProcessGroup>;

    /// Ends the world: every rank gets [`Error::Aborted`](crate::Error::Aborted), in what it waits
    /// for and in what it calls next.
    fn abort(&self, reason: &str);
}

/// Hands a checked call to the engine, with the label that the caller's calls carry.
fn issue<B: Backend, T: Outcome>(backend: &B, mut call: Call) -> Result<Work<T>> {
    call.signature.label = backend.label().cloned();
    backend.issue(call).map(Work::new)
}

/// Every backend is a process group, with its arguments checked.
impl<B: Backend> ProcessGroup for B {
    fn rank(&self) -> usize {
        self.membership().rank
    }

    fn size(&self) -> usize {
        self.membership().size()
    }

    fn backend(&self) -> &'static str {
        B::NAME
    }

    fn name(&self) -> &str {
        &self.membership().name
    }

    fn world_ranks(&self) -> &[usize] {
        &self.membership().world_ranks
    }

    fn device(&self) -> Device {
        self.membership().device
    }

    fn deadline(&self) -> Duration {
        self.membership().deadline
    }

    fn all_reduce(&self, tensor: Tensor, op: ReduceOp) -> Result<Work<Tensor>> {
        let call = check::all_reduce(self.membership(), tensor, op)?;
        issue(self, call)
    }

    fn all_reduce_many(&self, tensors: Vec<Tensor>, op: ReduceOp) -> Result<Work<Vec<Tensor>>> {
        let call = check::all_reduce_many(self.membership(), tensors, op)?;
        issue(self, call)
    }

    fn broadcast_many(&self, tensors: Vec<Tensor>, root: usize) -> Result<Work<Vec<Tensor>>> {
        let call = check::broadcast_many(self.membership(), tensors, root)?;
        issue(self, call)
    }

    fn all_gather_into(&self, into: Tensor, tensor: Tensor) -> Result<Work<Tensor>> {
        let call = check::all_gather_into(self.membership(), into, tensor)?;
        issue(self, call)
    }

    fn reduce_scatter_many(&self, tensors: Vec<Tensor>, op: ReduceOp) -> Result<Work<Vec<Tensor>>> {
        let call = check::reduce_scatter_many(self.membership(), tensors, op)?;
        issue(self, call)
    }

    fn broadcast(&self, tensor: Tensor, root: usize) -> Result<Work<Tensor>> {
        let call = check::broadcast(self.membership(), tensor, root)?;
        issue(self, call)
    }

    fn reduce(&self, tensor: Tensor, op: ReduceOp, root: usize) -> Result<Work<Option<Tensor>>> {
        let call = check::reduce(self.membership(), tensor, op, root)?;
        issue(self, call)
    }

    fn all_gather(&self, tensor: Tensor) -> Result<Work<Tensor>> {
        let call = check::all_gather(self.membership(), tensor)?;
        issue(self, call)
    }

    fn gather(&self, tensor: Tensor, root: usize) -> Result<Work<Option<Tensor>>> {
        let call = check::gather(self.membership(), tensor, root)?;
        issue(self, call)
    }

    fn scatter(
        &self,
        parts: Option<Tensor>,
        shape: Shape,
        dtype: DType,
        root: usize,
    ) -> Result<Work<Tensor>> {
        let call = check::scatter(self.membership(), parts, shape, dtype, root)?;
        issue(self, call)
    }

    fn reduce_scatter(&self, tensor: Tensor, op: ReduceOp) -> Result<Work<Tensor>> {
        let call = check::reduce_scatter(self.membership(), tensor, op)?;
        issue(self, call)
    }

    fn all_to_all(&self, tensor: Tensor) -> Result<Work<Tensor>> {
        let call = check::all_to_all(self.membership(), tensor)?;
        issue(self, call)
    }

    fn all_to_all_v(&self, tensor: Tensor, send: &[usize], recv: &[usize]) -> Result<Work<Tensor>> {
        let call = check::all_to_all_v(self.membership(), tensor, send, recv)?;
        issue(self, call)
    }

    fn send(&self, tensor: Tensor, destination: usize, tag: u32) -> Result<Work<()>> {
        let call = check::send(self.membership(), tensor, destination, tag)?;
        issue(self, call)
    }

    fn recv(&self, shape: Shape, dtype: DType, source: usize, tag: u32) -> Result<Work<Tensor>> {
        let call = check::recv(self.membership(), shape, dtype, source, tag)?;
        issue(self, call)
    }

    fn barrier(&self) -> Result<Work<()>> {
        issue(self, check::barrier())
    }

    fn split(&self, color: Option<u32>, key: i32) -> Result<Option<Arc<dyn ProcessGroup>>> {
        let call = check::split(self.membership(), color, key)?;
        let all = issue::<_, Tensor>(self, call)?.wait()?;
        let all = all.to_vec::<i64>()?;
        let (choices, _) = all.as_chunks::<2>();
        let members = naming::members(choices, self.membership().rank);
        let (Some(color), Some(members)) = (color, members) else {
            return Ok(None);
        };
        Ok(Some(Arc::new(self.split_off(color, &members)?)))
    }

    fn labelled(&self, label: Label) -> Arc<dyn ProcessGroup> {
        Arc::new(Backend::labelled(self, label))
    }

    fn abort(&self, reason: &str) {
        self.fail(crate::Error::Aborted {
            rank: self.membership().world_rank(),
            reason: reason.into(),
        });
    }
}
