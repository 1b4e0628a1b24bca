//! Copies from one card to another: directly where one can access the other's memory, else by way of the
//! host's memory, which the driver then does by itself. The host waits for neither.
#![allow(unsafe_code)]

use super::gpu::Gpu;
use super::issue::{Issue, place, storage};
use super::lanes::Lane;
use super::transfer::place_at;
use crate::storage::inout;
use crate::{Result, Tensor};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{
    self, CUevent_wait_flags, CUmemAccess_flags, CUmemLocationType, CUresult,
};
use std::sync::{Mutex, PoisonError};

/// The cards to whose memory a card has access, or would have if it could: each is asked once.
#[derive(Debug, Default)]
pub(super) struct Peers(Mutex<Vec<usize>>);

/// Copies the elements of a tensor to one on another card, from its element `start` on.
///
/// The copy runs on the copy lane of the source's card, and has a number on that of the target's card as
/// well, so that either card's lanes order themselves by it as by an operation of their own:
///
/// 1. The source's lane waits for the write of the source, and, by an event of the other card, for all
///    uses of the target.
/// 2. The target's lane waits for the copy, by an event of the source's card.
///
/// A flag of an index out of range goes along: what was computed on the source's card since is undefined
/// on the target's card, too.
pub(super) fn copy(op: &'static str, from: &Tensor, to: &mut Tensor, start: usize) -> Result<()> {
    let (here, there) = (storage(from).gpu(), storage(to).gpu());
    give_access(op, here, there)?;
    here.enter(op)?;
    let from = from.contiguous_for(op)?;
    let bytes = from.numel() * from.dtype().size();
    if bytes == 0 {
        return Ok(());
    }
    let at = place_at(to, start);
    // Whoever locks several cards does so in the order of their numbers.
    let (mut source, mut target) = match here.ordinal() < there.ordinal() {
        true => {
            let source = issue(op, here, &&from)?;
            (source, issue(op, there, &inout(to))?)
        }
        false => {
            let target = issue(op, there, &inout(to))?;
            (issue(op, here, &&from)?, target)
        }
    };
    let flag = super::index::Crossing::prepare(&mut source, &mut target)?;
    let failed = |e| here.failed(op, "copying to another card", e);
    there.enter(op)?;
    let free = target.issuing().lanes().mark(Lane::Copy);
    let free = free.map_err(failed)?;
    here.enter(op)?;
    let stream = source.stream();
    let flags = CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
    // SAFETY: stream and event belong to cards whose contexts live as long as the process; a stream may
    // wait for another card's event.
    unsafe { result::stream::wait_event(stream, free.handle(), flags) }.map_err(failed)?;
    let copied = {
        let send = |to, from, bytes| {
            // SAFETY: both places have as many bytes. The guards' drops record the uses of the tensors;
            // a flag lives as long as the process.
            unsafe {
                result::memcpy_peer_async(there.context(), to, here.context(), from, bytes, stream)
            }
        };
        let flag = flag.as_ref().map(|flag| flag.places());
        send(at, place(&from), bytes)
            .and_then(|()| flag.map_or(Ok(()), |(to, from, bytes)| send(to, from, bytes)))
    };
    // Also where that has failed: what has been issued before is waited for.
    let done = source.issuing().lanes().mark(Lane::Copy);
    let done = done.map_err(failed)?;
    there.enter(op)?;
    // SAFETY: as above.
    unsafe { result::stream::wait_event(target.stream(), done.handle(), flags) }.map_err(failed)?;
    copied.map_err(failed)?;
    flag.map_or(Ok(()), |flag| flag.arrive(&mut target))
}

/// The copy lane of a card.
fn issue(
    op: &'static str,
    gpu: &'static Gpu,
    operand: &impl crate::storage::Operand,
) -> Result<Issue> {
    gpu.enter(op)?;
    Issue::on(op, gpu, Lane::Copy, operand)
}

/// Gives `card` access to the memory of `peer`, where the two are connected so that it can be had.
fn give_access(op: &'static str, card: &'static Gpu, peer: &'static Gpu) -> Result<()> {
    // A panic while the lock was held cannot leave the list half-changed.
    let mut known = card.peers.0.lock().unwrap_or_else(PoisonError::into_inner);
    if known.contains(&peer.ordinal()) {
        return Ok(());
    }
    let failed = |e| card.failed(op, "asking for access to another card's memory", e);
    let mut can = 0;
    // SAFETY: both are cards' handles, and the pointer is valid.
    unsafe { sys::cuDeviceCanAccessPeer(&mut can, card.number(), peer.number()) }
        .result()
        .map_err(failed)?;
    if can != 0 {
        card.enter(op)?;
        // SAFETY: the card's context is current, and the other one lives as long as the process.
        let enabled = unsafe { sys::cuCtxEnablePeerAccess(peer.context(), 0) };
        let access = sys::CUmemAccessDesc {
            location: sys::CUmemLocation {
                type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE,
                id: card.number(),
            },
            flags: CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        match enabled {
            // Another library in this process may have been first.
            CUresult::CUDA_SUCCESS | CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => {
                // What was enabled above is for all memory but that of pools.
                // SAFETY: the pool is the other card's, and there is one description.
                unsafe { sys::cuMemPoolSetAccess(peer.pool(), &access, 1) }
                    .result()
                    .map_err(failed)?;
            }
            // There are too many connections: the copies go through the host's memory.
            CUresult::CUDA_ERROR_TOO_MANY_PEERS | CUresult::CUDA_ERROR_PEER_ACCESS_UNSUPPORTED => {}
            e => return Err(failed(DriverError(e))),
        }
    }
    known.push(peer.ordinal());
    Ok(())
}
