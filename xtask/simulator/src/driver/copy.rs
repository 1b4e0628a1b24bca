//! Copies. Pageable memory of the host is read at the call, and written before the call returns; pinned memory is read
//! and written when the copy runs.

use std::ffi::c_void;

use super::api;
use super::context;
use super::handles::{self, Handle};
use super::pointers;
use crate::device::code::{Code, Result};
use crate::device::machine::Machine;
use crate::device::memory::Life;
use crate::device::operation::Work;
use crate::device::pages;
use crate::device::report::Count;
use crate::device::transfer::{Copy, Place, fingerprint};

/// What one side of a copy has to be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Device,
    Host,
    Any,
}

/// Whether the call waits for the copy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Only if the copy goes to pageable memory.
    Async,
    /// Also if it uses pinned memory.
    Sync,
}

/// Checks that `len` bytes from `address` on may be used: not freed, and within one allocation. False if they are
/// pageable memory of the host, of which nothing is known.
///
/// # Errors
/// `INVALID_VALUE`, and a finding.
pub fn check(machine: &Machine, address: u64, len: u64, call: &str) -> Result<bool> {
    let block = machine.space.locate(address);
    let wrong = match block {
        None if machine.space.gpu_of(address).is_none() => return Ok(false),
        None => address,
        Some(block) if block.life != Life::Live => address,
        Some(block) if len > block.base + block.len - address => block.base + block.len,
        Some(_) => return Ok(true),
    };
    let sentence = format!(
        "{call} {len} bytes at {address:#x} would touch {wrong:#x}, {}.",
        machine.space.explain(wrong)
    );
    machine.report.finding(&sentence);
    Err(Code::INVALID_VALUE)
}

fn copy(to: (u64, Side), from: (u64, Side), len: usize, stream: Handle, mode: Mode) -> Result<()> {
    let machine = Machine::get()?;
    let mut state = machine.lock();
    let stream = handles::stream(machine, &mut state, stream)?;
    if len == 0 {
        return Ok(());
    }
    let len = len as u64;
    let ((to, to_side), (from, from_side)) = (to, from);
    if to == 0 || from == 0 {
        return Err(Code::INVALID_VALUE);
    }
    let to_known = check(machine, to, len, "A copy that writes")?;
    let from_known = check(machine, from, len, "A copy that reads")?;
    for (address, side, known) in [(to, to_side, to_known), (from, from_side, from_known)] {
        if side == Side::Device && !known {
            let sentence = format!("A copy takes {address:#x} for device memory, which it is not.");
            machine.report.finding(&sentence);
            return Err(Code::INVALID_VALUE);
        }
    }
    machine.report.count(Count::Copies);
    if !to_known || !from_known {
        machine.report.count(Count::PageableCopies);
    }
    if !to_known && !from_known {
        return Err(Code::INVALID_VALUE);
    }
    let pinned = |address, known| known && machine.space.gpu_of(address).is_none();
    let (to_pinned, from_pinned) = (pinned(to, to_known), pinned(from, from_known));
    let waits = !to_known || mode == Mode::Sync && (to_pinned || from_pinned);
    // As long as no other operation has to do with the buffer, only the host can change it, or look at it, before the
    // copy has run.
    let is_free = |address| {
        let block = machine.space.locate(address);
        let used = block.is_none_or(|block| state.is_awaited(block.base, block.len));
        !used && state.running.is_empty()
    };
    let print = match from_pinned && is_free(from) {
        // SAFETY: the bytes were found within a pinned buffer.
        true => Some(unsafe { fingerprint(from, len as usize) }),
        false => None,
    };
    if to_pinned && is_free(to) {
        // Who reads the result too early shall not find old values there that look right.
        pages::fill(to, len, 0xff);
    }
    let work = Work::Copy(Copy {
        from: match from_known {
            true => Place::Known(from),
            // SAFETY: by the interface, the caller's memory holds `len` bytes from `from` on.
            false => Place::Staged(unsafe { pointers::bytes(from, len as usize) }),
        },
        to: match to_known {
            true => Place::Known(to),
            false => Place::Pageable(to),
        },
        len,
        print,
    });
    let (state, _) = machine.submit(state, stream, work)?;
    if waits {
        drop(machine.wait_stream(state, stream)?);
    }
    Ok(())
}

fn between(
    to: u64,
    of_to: Handle,
    from: u64,
    of_from: Handle,
    len: usize,
    stream: Handle,
) -> Result<()> {
    let machine = Machine::get()?;
    for (address, context) in [(to, of_to), (from, of_from)] {
        let gpu = handles::context(machine, context)?;
        machine.lock().context(gpu)?;
        let found = machine.space.locate(address).and_then(|block| block.gpu);
        if found.is_some_and(|found| found != gpu) {
            let sentence = format!(
                "A copy between GPUs takes {address:#x} for memory of GPU {gpu}; it lies {}.",
                machine.space.explain(address)
            );
            machine.report.finding(&sentence);
            return Err(Code::INVALID_VALUE);
        }
    }
    copy(
        (to, Side::Device),
        (from, Side::Device),
        len,
        stream,
        Mode::Async,
    )
}

/// The default stream of the calling thread's context.
fn default_stream() -> Result<Handle> {
    context::current(Machine::get()?)?;
    Ok(0)
}

api! {
    cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, len: usize, stream: Handle) {
        copy((to, Side::Device), (from as u64, Side::Host), len, stream, Mode::Async)
    }

    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, len: usize, stream: Handle) {
        copy((to as u64, Side::Host), (from, Side::Device), len, stream, Mode::Async)
    }

    cuMemcpyDtoDAsync_v2(to: u64, from: u64, len: usize, stream: Handle) {
        copy((to, Side::Device), (from, Side::Device), len, stream, Mode::Async)
    }

    cuMemcpyAsync(to: u64, from: u64, len: usize, stream: Handle) {
        copy((to, Side::Any), (from, Side::Any), len, stream, Mode::Async)
    }

    cuMemcpyPeerAsync(
        to: u64,
        of_to: Handle,
        from: u64,
        of_from: Handle,
        len: usize,
        stream: Handle,
    ) {
        between(to, of_to, from, of_from, len, stream)
    }

    cuMemcpyHtoD_v2(to: u64, from: *const c_void, len: usize) {
        let stream = default_stream()?;
        copy((to, Side::Device), (from as u64, Side::Host), len, stream, Mode::Sync)
    }

    cuMemcpyDtoH_v2(to: *mut c_void, from: u64, len: usize) {
        let stream = default_stream()?;
        copy((to as u64, Side::Host), (from, Side::Device), len, stream, Mode::Sync)
    }

    cuMemcpyDtoD_v2(to: u64, from: u64, len: usize) {
        let stream = default_stream()?;
        copy((to, Side::Device), (from, Side::Device), len, stream, Mode::Sync)
    }

    cuMemcpy(to: u64, from: u64, len: usize) {
        copy((to, Side::Any), (from, Side::Any), len, default_stream()?, Mode::Sync)
    }
}
