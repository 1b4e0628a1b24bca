//! Transfers: between the host and a card through pinned buffers, and within a card. Those between cards
//! stand in `peers.rs`.
#![allow(unsafe_code)]

use super::gpu::Gpu;
use super::index::Notes;
use super::issue::{Arg, Grid, Issue, place, storage};
use super::lanes::{Lane, Stamp};
use super::modules::COPY;
use super::staging::PIECE;
use super::view::View;
use crate::storage::inout;
use crate::{DType, Result, Tensor};
use cudarc::driver::result;

/// Copies bytes of the host to a tensor, from its element `start` on.
pub(crate) fn upload(op: &'static str, from: &[u8], to: &mut Tensor, start: usize) -> Result<()> {
    let gpu = storage(to).gpu();
    gpu.enter(op)?;
    let mut at = place_at(to, start);
    for piece in from.chunks(PIECE) {
        let mut pinned = gpu.staging.take(op, gpu, piece.len())?;
        pinned.bytes()[..piece.len()].copy_from_slice(piece);
        let mut issue = Issue::on(op, gpu, Lane::Copy, &inout(to))?;
        let stream = issue.stream();
        // SAFETY: the target has been checked to have room, and the guard's drop records the use of
        // its memory; the pinned buffer is not handed out again before this copy is done.
        unsafe { result::memcpy_htod_async(at, &pinned.bytes()[..piece.len()], stream) }
            .map_err(|e| issue.failed("copying to the card", e))?;
        gpu.staging.put(pinned, Some(issue.stamp()));
        at += piece.len() as u64;
    }
    Ok(())
}

/// Copies the elements of a tensor to the host, in row-major order; waits for whoever writes them.
pub(crate) fn download(op: &'static str, from: &Tensor, to: &mut [u8]) -> Result<()> {
    let gpu = storage(from).gpu();
    gpu.enter(op)?;
    let from = from.contiguous_for(op)?;
    let mut at = place(&from);
    for piece in to.chunks_mut(PIECE - size_of::<Notes>()) {
        let mut pinned = gpu
            .staging
            .take(op, gpu, piece.len() + size_of::<Notes>())?;
        let (data, rest) = pinned.bytes().split_at_mut(piece.len());
        let mut issue = Issue::on(op, gpu, Lane::Copy, &&from)?;
        let (stream, stamp) = (issue.stream(), issue.stamp());
        // SAFETY: the source has as many bytes; the pinned buffer outlives the copy, which is waited
        // for below, and is kept from others where the wait fails.
        unsafe { result::memcpy_dtoh_async(data, at, stream) }
            .map_err(|e| issue.failed("copying to the host", e))?;
        let note = &mut rest[..size_of::<Notes>()];
        // SAFETY: as above.
        let flagged = unsafe { gpu.index.fetch(issue.issuing(), stamp, note) }
            .map_err(|e| issue.failed("copying to the host", e))?;
        drop(issue);
        gpu.wait(op, stamp)?;
        let seen = match flagged {
            true => gpu.index.look(bytemuck::pod_read_unaligned(note)),
            false => Ok(()),
        };
        if seen.is_ok() {
            piece.copy_from_slice(data);
        }
        gpu.staging.put(pinned, None);
        seen?;
        at += piece.len() as u64;
    }
    Ok(())
}

/// Copies the elements of a tensor, in row-major order, to another one from its element `start` on.
pub(crate) fn copy(op: &'static str, from: &Tensor, to: &mut Tensor, start: usize) -> Result<()> {
    let gpu = storage(to).gpu();
    if storage(from).gpu().device() != gpu.device() {
        return super::peers::copy(op, from, to, start);
    }
    gpu.enter(op)?;
    if from.numel() == 0 {
        return Ok(());
    }
    let target = place_at(to, start);
    let mut issue = Issue::on(op, gpu, Lane::Compute, &(from, inout(to)))?;
    if from.is_contiguous() {
        let bytes = from.numel() * from.dtype().size();
        let stream = issue.stream();
        // SAFETY: both tensors have as many bytes there, on one card, and the guard's drop records
        // the use of both.
        return unsafe { result::memcpy_dtod_async(target, place(from), bytes, stream) }
            .map_err(|e| issue.failed("copying on the card", e));
    }
    let view = View::new(op, from.layout())?;
    let args = [
        issue.address(from),
        Arg::Address(target),
        Arg::Int(from.numel() as i64),
        Arg::Struct(bytemuck::bytes_of(&view)),
    ];
    let word = word(from.dtype());
    issue.launch(&COPY, &[word], "gather", Grid::over(from.numel()), &args)
}

/// The element type that stands for all of its size.
pub(crate) fn word(dtype: DType) -> DType {
    match dtype.size() {
        1 => DType::U8,
        2 => DType::BF16,
        4 => DType::F32,
        _ => DType::I64,
    }
}

pub(super) fn place_at(to: &Tensor, start: usize) -> u64 {
    place(to) + (start * to.dtype().size()) as u64
}

impl Gpu {
    /// Holds the calling thread until the operation `stamp` is done. Others may issue meanwhile.
    pub(super) fn wait(&'static self, op: &'static str, stamp: Stamp) -> Result<()> {
        let event = self.lock().lanes().passed(stamp);
        let failed = |e| self.failed(op, "waiting for the card", e);
        event.map_err(failed)?.wait().map_err(failed)
    }

    /// Holds the calling thread until everything that was issued is done. Others may issue meanwhile.
    pub(super) fn wait_for_all(&'static self, op: &'static str) -> Result<()> {
        let failed = |e| self.failed(op, "waiting for the card", e);
        let events = self.lock().lanes().all_passed();
        let events = events.map_err(failed)?;
        events
            .iter()
            .try_for_each(|event| event.wait().map_err(failed))
    }

    /// Holds the calling thread until everything that was issued is done, and gives the error of an
    /// index out of range, if there was one.
    pub(crate) fn synchronize(&'static self, op: &'static str) -> Result<()> {
        let failed = |e| self.failed(op, "waiting for the card", e);
        let mut pinned = self.staging.take(op, self, size_of::<Notes>())?;
        let note = &mut pinned.bytes()[..size_of::<Notes>()];
        let mut issuing = self.lock();
        let stamp = issuing.lanes().next(Lane::Copy);
        // SAFETY: the pinned buffer outlives the copy, which is waited for below.
        let flagged = unsafe { self.index.fetch(&mut issuing, stamp, note) };
        let issued = issuing.lanes().issued(stamp);
        drop(issuing);
        issued.map_err(failed)?;
        let flagged = flagged.map_err(failed)?;
        self.wait_for_all(op)?;
        let note = bytemuck::pod_read_unaligned(note);
        self.staging.put(pinned, None);
        if flagged {
            self.index.look(note)
        } else {
            Ok(())
        }
    }

    /// Takes the flags of an index out of range down.
    pub(crate) fn clear_index_error(&'static self, op: &'static str) -> Result<()> {
        let mut issuing = self.lock();
        let cleared = self.index.clear(&mut issuing);
        cleared.map_err(|e| self.failed(op, "clearing the index flag", e))
    }
}
