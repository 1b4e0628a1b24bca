//! Which calls of NCCL carry out an operation: for a library that has eight of them, and messages for the rest.
#![allow(unsafe_code)]

use super::library::Library;
use crate::op::{Op, ReduceOp, Signature};
use cudarc::nccl::sys::{cudaStream_t, ncclComm_t, ncclDataType_t, ncclRedOp_t, ncclResult_t};
use phalanx_tensor::DType;
use std::ffi::{c_int, c_void};

/// One tensor of a call, on one rank: addresses on its card, 0 where there is nothing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends {
    /// What the rank gives.
    pub(super) src: u64,
    /// Where what it gets goes.
    pub(super) dst: u64,
}

/// A call that failed, and how.
pub(super) type Failed = (&'static str, ncclResult_t);

/// Whether NCCL has the operation on elements of this type. Booleans are bytes to it.
pub(super) fn supports(op: &Op, dtype: DType) -> bool {
    op.reduction().is_none_or(|reduction| {
        reduction.supports(dtype) && reduction_of(reduction, dtype).is_some()
    })
}

fn reduction_of(op: ReduceOp, dtype: DType) -> Option<ncclRedOp_t> {
    match op {
        ReduceOp::Sum => Some(ncclRedOp_t::ncclSum),
        ReduceOp::Avg => Some(ncclRedOp_t::ncclAvg),
        ReduceOp::Product => Some(ncclRedOp_t::ncclProd),
        ReduceOp::Min => Some(ncclRedOp_t::ncclMin),
        ReduceOp::Max => Some(ncclRedOp_t::ncclMax),
        // Of the values 0 and 1.
        ReduceOp::BitAnd if dtype == DType::Bool => Some(ncclRedOp_t::ncclMin),
        ReduceOp::BitOr if dtype == DType::Bool => Some(ncclRedOp_t::ncclMax),
        ReduceOp::BitAnd | ReduceOp::BitOr | ReduceOp::BitXor => None,
    }
}

fn type_of(dtype: DType) -> ncclDataType_t {
    match dtype {
        DType::F32 => ncclDataType_t::ncclFloat32,
        DType::F64 => ncclDataType_t::ncclFloat64,
        DType::BF16 => ncclDataType_t::ncclBfloat16,
        DType::F16 => ncclDataType_t::ncclFloat16,
        DType::I64 => ncclDataType_t::ncclInt64,
        DType::I32 => ncclDataType_t::ncclInt32,
        DType::U8 | DType::Bool => ncclDataType_t::ncclUint8,
    }
}

/// Where calls go.
pub(super) struct Channel<'a> {
    pub(super) library: &'a Library,
    pub(super) comm: ncclComm_t,
    pub(super) stream: cudaStream_t,
    /// This rank, and how many there are.
    pub(super) me: usize,
    pub(super) size: usize,
}

fn read(address: u64) -> *const c_void {
    address as *const c_void
}

fn write(address: u64) -> *mut c_void {
    address as *mut c_void
}

impl Channel<'_> {
    /// Calls NCCL for all tensors of an operation, inside a group of calls.
    ///
    /// # Safety
    /// The addresses are those of as many elements as the operation takes of tensors of the signature, and valid until
    /// the stream is through with them.
    pub(super) unsafe fn issue(&self, signature: &Signature, ends: &[Ends]) -> Result<(), Failed> {
        for ((dtype, shape), ends) in signature.tensors.iter().zip(ends) {
            // SAFETY: as the caller says.
            unsafe { self.tensor(&signature.op, *dtype, shape.numel(), shape, *ends) }?;
        }
        Ok(())
    }

    unsafe fn tensor(
        &self,
        op: &Op,
        dtype: DType,
        count: usize,
        shape: &[usize],
        Ends { src, dst }: Ends,
    ) -> Result<(), Failed> {
        let &Channel {
            library: nccl,
            comm,
            stream,
            me,
            size,
        } = self;
        let kind = type_of(dtype);
        let reduction = op.reduction().and_then(|op| reduction_of(op, dtype));
        let reduction = reduction.unwrap_or(ncclRedOp_t::ncclSum); // asked for by `supports` before
        let part = count / size.max(1);
        if count == 0 && !matches!(op, Op::AllToAllV(_)) {
            return Ok(());
        }
        let done = |call: &'static str, result: ncclResult_t| match result {
            ncclResult_t::ncclSuccess | ncclResult_t::ncclInProgress => Ok(()),
            failed => Err((call, failed)),
        };
        // SAFETY: as the caller says.
        unsafe {
            match op {
                Op::AllReduce(_) => done(
                    "ncclAllReduce",
                    (nccl.ncclAllReduce)(
                        read(src),
                        write(dst),
                        count,
                        kind,
                        reduction,
                        comm,
                        stream,
                    ),
                ),
                Op::Reduce { root, .. } => done(
                    "ncclReduce",
                    (nccl.ncclReduce)(
                        read(src),
                        write(dst),
                        count,
                        kind,
                        reduction,
                        *root as c_int,
                        comm,
                        stream,
                    ),
                ),
                Op::ReduceScatter(_) => done(
                    "ncclReduceScatter",
                    (nccl.ncclReduceScatter)(
                        read(src),
                        write(dst),
                        part,
                        kind,
                        reduction,
                        comm,
                        stream,
                    ),
                ),
                Op::Broadcast { root } => done(
                    "ncclBroadcast",
                    (nccl.ncclBroadcast)(
                        read(src),
                        write(dst),
                        count,
                        kind,
                        *root as c_int,
                        comm,
                        stream,
                    ),
                ),
                Op::AllGather => done(
                    "ncclAllGather",
                    (nccl.ncclAllGather)(read(src), write(dst), count, kind, comm, stream),
                ),
                Op::Gather { root } => {
                    if me == *root {
                        for from in 0..size {
                            let at = dst + (from * count * dtype.size()) as u64;
                            self.recv(at, count, kind, from)?;
                        }
                    }
                    self.send(src, count, kind, *root)
                }
                Op::Scatter { root } => {
                    if me == *root {
                        for to in 0..size {
                            let at = src + (to * count * dtype.size()) as u64;
                            self.send(at, count, kind, to)?;
                        }
                    }
                    self.recv(dst, count, kind, *root)
                }
                Op::AllToAll => (0..size).try_for_each(|other| {
                    let at = (other * part * dtype.size()) as u64;
                    self.send(src + at, part, kind, other)?;
                    self.recv(dst + at, part, kind, other)
                }),
                Op::AllToAllV(splits) => {
                    let row: usize = shape[1..].iter().product();
                    let (mut from, mut to) = (src, dst);
                    (0..size).try_for_each(|other| {
                        let (send, recv) = (splits.send[other] * row, splits.recv[other] * row);
                        self.send(from, send, kind, other)?;
                        self.recv(to, recv, kind, other)?;
                        from += (send * dtype.size()) as u64;
                        to += (recv * dtype.size()) as u64;
                        Ok(())
                    })
                }
                Op::Send { destination, .. } => self.send(src, count, kind, *destination),
                Op::Recv { source, .. } => self.recv(dst, count, kind, *source),
                Op::Barrier | Op::Split => Ok(()),
            }
        }
    }

    /// # Safety
    /// As [`issue`](Channel::issue), of `count` elements at one address.
    unsafe fn send(
        &self,
        at: u64,
        count: usize,
        kind: ncclDataType_t,
        to: usize,
    ) -> Result<(), Failed> {
        if count == 0 {
            return Ok(());
        }
        // SAFETY: as the caller says.
        match unsafe {
            (self.library.ncclSend)(read(at), count, kind, to as c_int, self.comm, self.stream)
        } {
            ncclResult_t::ncclSuccess | ncclResult_t::ncclInProgress => Ok(()),
            failed => Err(("ncclSend", failed)),
        }
    }

    /// # Safety
    /// As [`issue`](Channel::issue), of `count` elements at one address.
    unsafe fn recv(
        &self,
        at: u64,
        count: usize,
        kind: ncclDataType_t,
        from: usize,
    ) -> Result<(), Failed> {
        if count == 0 {
            return Ok(());
        }
        // SAFETY: as the caller says.
        match unsafe {
            (self.library.ncclRecv)(
                write(at),
                count,
                kind,
                from as c_int,
                self.comm,
                self.stream,
            )
        } {
            ncclResult_t::ncclSuccess | ncclResult_t::ncclInProgress => Ok(()),
            failed => Err(("ncclRecv", failed)),
        }
    }
}
