//! All validation of arguments, above every backend: a method of
//! [`ProcessGroup`](crate::ProcessGroup) becomes a [`Call`] here, or a typed error.

use crate::error::{Error, Result};
use crate::meeting::naming::Choice;
use crate::membership::Membership;
use crate::op::{Op, ReduceOp, Signature, Splits};
use crate::work::Tensors;
use phalanx_tensor::{DType, Device, Shape, Tensor};
use smallvec::{SmallVec, smallvec};
use std::sync::Arc;

/// The most tensors of one call: each may need tags of its own under MPI, which has 32,767 at least.
pub const MOST_TENSORS: usize = 4096;

/// The most axes of a tensor whose shape travels before it.
pub const MOST_AXES: usize = 14;

/// A checked call of one rank.
#[derive(Debug)]
pub struct Call {
    /// What all ranks agree on.
    pub signature: Signature,
    /// This rank's tensors, of any layout: one for each of the signature's, or none.
    pub inputs: Tensors,
    /// Where this rank's results go: one for each of the signature's tensors, or none.
    pub outputs: SmallVec<[Room; 1]>,
}

/// Where a result goes.
#[derive(Debug)]
pub enum Room {
    /// Into new memory, of this shape; or into the input's, where the operation can and nobody else holds it.
    New(Shape),
    /// Into this tensor of the result's shape and type, unless somebody else holds it, or it has gaps: then into
    /// new memory.
    Given(Tensor),
}

impl Call {
    /// The call, with memory for all that it needs: its inputs without gaps, and its results, of which new ones are on
    /// `device`, in memory that is there. So nothing but the world's failure keeps an engine from issuing it.
    ///
    /// # Errors
    /// The device has no memory for it.
    pub(crate) fn with_memory(mut self, device: Device) -> Result<Call> {
        for input in &mut self.inputs {
            if !input.is_contiguous() {
                *input = input.contiguous()?;
            }
        }
        let device = self.inputs.first().map_or(device, Tensor::device);
        for (room, (dtype, _)) in self.outputs.iter_mut().zip(&self.signature.tensors) {
            if let Room::New(shape) = room {
                *room = Room::Given(Tensor::empty(shape.clone(), *dtype, device)?);
            }
        }
        Ok(self)
    }
}

impl Room {
    /// The shape of the result.
    pub fn shape(&self) -> &Shape {
        match self {
            Room::New(shape) => shape,
            Room::Given(tensor) => tensor.shape(),
        }
    }
}

/// Of one tensor: made as it is. By the lists of [`calls`], and with shapes cloned extent by extent, a call took 0.50 µs of
/// its thread, and so 0.39 (1 KiB, a group of one rank, 2026-11).
fn call(op: Op, input: Tensor, output: Option<Shape>) -> Call {
    Call {
        signature: Signature {
            op,
            tensors: SmallVec::from_buf([(input.dtype(), input.shape().clone())]),
            label: None,
            beside: None,
        },
        outputs: output.map_or_else(SmallVec::new, |shape| smallvec![Room::New(shape)]),
        inputs: smallvec![input],
    }
}

fn calls(op: Op, inputs: Tensors, outputs: impl Iterator<Item = Room>) -> Call {
    let given = inputs.iter().map(|t| (t.dtype(), t.shape().clone()));
    Call {
        signature: Signature {
            op,
            tensors: given.collect(),
            label: None,
            beside: None,
        },
        outputs: outputs.collect(),
        inputs,
    }
}

/// A call of several tensors has no more of them than it may.
fn few(me: &Membership, op: &'static str, tensors: &[Tensor]) -> Result<()> {
    if tensors.len() <= MOST_TENSORS {
        return Ok(());
    }
    Err(Error::InvalidArgument {
        op,
        rank: me.world_rank(),
        reason: format!(
            "it has {} tensors; one call has at most {MOST_TENSORS}",
            tensors.len()
        ),
    })
}

fn reducible(me: &Membership, name: &'static str, op: ReduceOp, dtype: DType) -> Result<()> {
    if op.supports(dtype) {
        return Ok(());
    }
    Err(Error::UnsupportedReduction {
        op: name,
        rank: me.world_rank(),
        reduction: op,
        dtype,
    })
}

fn member(me: &Membership, op: &'static str, role: &'static str, value: usize) -> Result<()> {
    if value < me.size() {
        return Ok(());
    }
    Err(Error::RankOutOfRange {
        op,
        rank: me.world_rank(),
        role,
        value,
        size: me.size(),
    })
}

/// The shape of a part of a tensor `[size, …]`.
fn part(me: &Membership, op: &'static str, shape: &Shape) -> Result<Shape> {
    if shape.first() == Some(&me.size()) {
        return Ok(Shape::from(&shape[1..]));
    }
    Err(Error::InvalidShape {
        op,
        rank: me.world_rank(),
        shape: shape.clone(),
        reason: format!(
            "its first axis counts the group's ranks, which are {}",
            me.size()
        ),
    })
}

/// A tensor of `shape` can be: the rule of [`Shape::is_addressable`], before anything is allocated
/// or sent.
fn addressable(me: &Membership, op: &'static str, shape: Shape, dtype: DType) -> Result<Shape> {
    if shape.is_addressable(dtype) {
        return Ok(shape);
    }
    Err(Error::InvalidShape {
        op,
        rank: me.world_rank(),
        shape,
        reason: format!(
            "its extents (empty ones taken as 1), times {} bytes of {dtype}, exceed {}",
            dtype.size(),
            isize::MAX
        ),
    })
}

/// The shape of one tensor like `t` from each rank.
fn stacked(me: &Membership, op: &'static str, t: &Tensor) -> Result<Shape> {
    let mut stacked = t.shape().clone();
    stacked.insert(0, me.size());
    addressable(me, op, stacked, t.dtype())
}

pub(crate) fn all_reduce(me: &Membership, t: Tensor, op: ReduceOp) -> Result<Call> {
    reducible(me, "all_reduce", op, t.dtype())?;
    let out = t.shape().clone();
    Ok(call(Op::AllReduce(op), t, Some(out)))
}

pub(crate) fn broadcast(me: &Membership, t: Tensor, root: usize) -> Result<Call> {
    member(me, "broadcast", "root", root)?;
    let out = t.shape().clone();
    Ok(call(Op::Broadcast { root }, t, Some(out)))
}

pub(crate) fn all_reduce_many(me: &Membership, tensors: Vec<Tensor>, op: ReduceOp) -> Result<Call> {
    few(me, "all_reduce_many", &tensors)?;
    for t in &tensors {
        reducible(me, "all_reduce_many", op, t.dtype())?;
    }
    let rooms: Vec<Shape> = tensors.iter().map(|t| t.shape().clone()).collect();
    let rooms = rooms.into_iter().map(Room::New);
    Ok(calls(Op::AllReduce(op), tensors.into(), rooms))
}

pub(crate) fn broadcast_many(me: &Membership, tensors: Vec<Tensor>, root: usize) -> Result<Call> {
    few(me, "broadcast_many", &tensors)?;
    member(me, "broadcast_many", "root", root)?;
    let rooms: Vec<Shape> = tensors.iter().map(|t| t.shape().clone()).collect();
    let rooms = rooms.into_iter().map(Room::New);
    Ok(calls(Op::Broadcast { root }, tensors.into(), rooms))
}

pub(crate) fn reduce_scatter_many(
    me: &Membership,
    tensors: Vec<Tensor>,
    op: ReduceOp,
) -> Result<Call> {
    few(me, "reduce_scatter_many", &tensors)?;
    for t in &tensors {
        reducible(me, "reduce_scatter_many", op, t.dtype())?;
    }
    let parts = tensors.iter();
    let parts = parts.map(|t| part(me, "reduce_scatter_many", t.shape()));
    let rooms = parts
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .map(Room::New);
    Ok(calls(Op::ReduceScatter(op), tensors.into(), rooms))
}

pub(crate) fn all_gather_into(me: &Membership, into: Tensor, t: Tensor) -> Result<Call> {
    let wrong = |reason: String| Error::InvalidArgument {
        op: "all_gather_into",
        rank: me.world_rank(),
        reason,
    };
    let shape = stacked(me, "all_gather_into", &t)?;
    if *into.shape() != shape {
        return Err(Error::InvalidShape {
            op: "all_gather_into",
            rank: me.world_rank(),
            shape: into.shape().clone(),
            reason: format!("the result's shape is {shape}"),
        });
    }
    if into.dtype() != t.dtype() {
        let (given, room) = (t.dtype(), into.dtype());
        return Err(wrong(format!(
            "the tensor is {given}, and the buffer {room}"
        )));
    }
    if into.device() != t.device() {
        let (given, room) = (t.device(), into.device());
        let reason = format!("the tensor is on {given}, and the buffer on {room}");
        return Err(wrong(reason));
    }
    let room = [Room::Given(into)].into_iter();
    Ok(calls(Op::AllGather, smallvec![t], room))
}

pub(crate) fn reduce(me: &Membership, t: Tensor, op: ReduceOp, root: usize) -> Result<Call> {
    member(me, "reduce", "root", root)?;
    reducible(me, "reduce", op, t.dtype())?;
    let out = (me.rank == root).then(|| t.shape().clone());
    Ok(call(Op::Reduce { op, root }, t, out))
}

pub(crate) fn all_gather(me: &Membership, t: Tensor) -> Result<Call> {
    let out = stacked(me, "all_gather", &t)?;
    Ok(call(Op::AllGather, t, Some(out)))
}

pub(crate) fn gather(me: &Membership, t: Tensor, root: usize) -> Result<Call> {
    member(me, "gather", "root", root)?;
    // Every rank checks what the root alone will hold: they agree on the shape.
    let stacked = stacked(me, "gather", &t)?;
    let out = (me.rank == root).then_some(stacked);
    Ok(call(Op::Gather { root }, t, out))
}

pub(crate) fn scatter(
    me: &Membership,
    parts: Option<Tensor>,
    shape: Shape,
    dtype: DType,
    root: usize,
) -> Result<Call> {
    member(me, "scatter", "root", root)?;
    let shape = addressable(me, "scatter", shape, dtype)?;
    let wrong = |reason: String| Error::InvalidArgument {
        op: "scatter",
        rank: me.world_rank(),
        reason,
    };
    match &parts {
        Some(t) if me.rank == root => {
            if t.dtype() != dtype {
                let parts = t.dtype();
                return Err(wrong(format!(
                    "the parts are {parts}, but {dtype} was asked for"
                )));
            }
            if part(me, "scatter", t.shape())? != shape {
                return Err(Error::InvalidShape {
                    op: "scatter",
                    rank: me.world_rank(),
                    shape: t.shape().clone(),
                    reason: format!("parts of shape {shape} were asked for"),
                });
            }
        }
        None if me.rank == root => return Err(wrong("the root gives no parts".into())),
        Some(_) => {
            let reason = format!("only the root, rank {root} of the group, gives parts");
            return Err(wrong(reason));
        }
        None => {}
    }
    Ok(Call {
        signature: Signature {
            op: Op::Scatter { root },
            tensors: smallvec![(dtype, shape.clone())],
            label: None,
            beside: None,
        },
        inputs: parts.into_iter().collect(),
        outputs: smallvec![Room::New(shape)],
    })
}

pub(crate) fn reduce_scatter(me: &Membership, t: Tensor, op: ReduceOp) -> Result<Call> {
    reducible(me, "reduce_scatter", op, t.dtype())?;
    let out = part(me, "reduce_scatter", t.shape())?;
    Ok(call(Op::ReduceScatter(op), t, Some(out)))
}

pub(crate) fn all_to_all(me: &Membership, t: Tensor) -> Result<Call> {
    part(me, "all_to_all", t.shape())?;
    let out = t.shape().clone();
    Ok(call(Op::AllToAll, t, Some(out)))
}

pub(crate) fn all_to_all_v(
    me: &Membership,
    t: Tensor,
    send: &[usize],
    recv: &[usize],
) -> Result<Call> {
    let wrong = |reason: String| Error::InvalidArgument {
        op: "all_to_all_v",
        rank: me.world_rank(),
        reason,
    };
    for (name, splits) in [("send", send), ("recv", recv)] {
        if splits.len() != me.size() {
            return Err(wrong(format!(
                "`{name}` has {} entries, the group has {} ranks",
                splits.len(),
                me.size()
            )));
        }
        if splits
            .iter()
            .try_fold(0usize, |n, &s| n.checked_add(s))
            .is_none()
        {
            return Err(wrong(format!("the sum of `{name}` overflows")));
        }
    }
    if send[me.rank] != recv[me.rank] {
        return Err(wrong(format!(
            "it sends {} rows to itself, but expects {}",
            send[me.rank], recv[me.rank]
        )));
    }
    let rows: usize = send.iter().sum();
    if t.shape().first() != Some(&rows) {
        return Err(Error::InvalidShape {
            op: "all_to_all_v",
            rank: me.world_rank(),
            shape: t.shape().clone(),
            reason: format!("`send` adds up to {rows} rows"),
        });
    }
    let mut out = t.shape().clone();
    out[0] = recv.iter().sum();
    let out = addressable(me, "all_to_all_v", out, t.dtype())?;
    let splits = Splits {
        send: send.into(),
        recv: recv.into(),
    };
    Ok(call(Op::AllToAllV(Arc::new(splits)), t, Some(out)))
}

fn other(me: &Membership, op: &'static str, role: &'static str, peer: usize) -> Result<()> {
    member(me, op, role, peer)?;
    if peer != me.rank {
        return Ok(());
    }
    Err(Error::InvalidArgument {
        op,
        rank: me.world_rank(),
        reason: format!("the {role} is the rank itself"),
    })
}

pub(crate) fn send(me: &Membership, t: Tensor, destination: usize, tag: u32) -> Result<Call> {
    other(me, "send", "destination", destination)?;
    Ok(call(Op::Send { destination, tag }, t, None))
}

pub(crate) fn recv(
    me: &Membership,
    shape: Shape,
    dtype: DType,
    source: usize,
    tag: u32,
) -> Result<Call> {
    other(me, "recv", "source", source)?;
    let shape = addressable(me, "recv", shape, dtype)?;
    Ok(Call {
        signature: Signature {
            op: Op::Recv { source, tag },
            tensors: smallvec![(dtype, shape.clone())],
            label: None,
            beside: None,
        },
        inputs: Tensors::new(),
        outputs: smallvec![Room::New(shape)],
    })
}

pub(crate) fn barrier() -> Call {
    Call {
        signature: Signature {
            op: Op::Barrier,
            tensors: SmallVec::new(),
            label: None,
            beside: None,
        },
        inputs: Tensors::new(),
        outputs: SmallVec::new(),
    }
}

/// What a rank of no color says.
const NO_COLOR: i64 = -1;

/// Every rank's choice goes to every rank: `[size, 3]`.
pub(crate) fn split(me: &Membership, color: Option<u32>, key: i32, is_ready: bool) -> Result<Call> {
    // MPI's colors are non-negative `int`s; one rule for every backend.
    if let Some(color) = color
        && i32::try_from(color).is_err()
    {
        return Err(Error::InvalidArgument {
            op: "split",
            rank: me.world_rank(),
            reason: format!("color {color} is larger than {}", i32::MAX),
        });
    }
    let color = color.map_or(NO_COLOR, i64::from);
    // Small talk, whatever the rank computes on.
    let device = match me.device.is_cpu() {
        true => me.device,
        false => Device::cpu(0),
    };
    let choice: Choice = [color, key.into(), is_ready.into()];
    let t = Tensor::from_slice(&choice, [choice.len()], device)?;
    let out = stacked(me, "split", &t)?;
    Ok(call(Op::Split, t, Some(out)))
}

#[cfg(test)]
mod tests;
