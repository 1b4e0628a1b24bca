//! What a test may ask the simulator beside the driver's interface. It looks the functions up by name with `dlsym`: on a
//! real card they are not there.

use std::ffi::c_char;

use super::pointers::{Out, Text};
use crate::device::machine::Machine;
use crate::device::report;

/// How often the host has done what `kind` says; the kinds are those of [`crate::device::report::Count`]. It is 0 for
/// another number, and before `cuInit`.
#[unsafe(no_mangle)]
pub extern "C" fn phalanx_simulator_count(kind: u32) -> u64 {
    let machine = Machine::peek();
    machine
        .and_then(|machine| machine.report.counted(kind))
        .unwrap_or(0)
}

/// How often the calling thread has done what `kind` says, as [`phalanx_simulator_count`].
#[unsafe(no_mangle)]
pub extern "C" fn phalanx_simulator_count_here(kind: u32) -> u64 {
    report::counted_here(kind).unwrap_or(0)
}

/// How often the kernel `name` was launched in this process.
///
/// # Safety
/// `name` is null, or a text that ends with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn phalanx_simulator_launches(name: Text) -> u64 {
    let machine = Machine::peek();
    let launched = machine.and_then(|machine| Some(machine.report.launched(name.get().ok()?)));
    launched.unwrap_or(0)
}

/// How many findings there are.
#[unsafe(no_mangle)]
pub extern "C" fn phalanx_simulator_findings() -> u64 {
    Machine::peek().map_or(0, |machine| machine.report.found())
}

/// Writes the text of a finding, counted from 0, and a zero behind it, into `len` bytes. False if there is none.
///
/// # Safety
/// `text` points to `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn phalanx_simulator_finding(
    index: u64,
    text: Out<c_char>,
    len: usize,
) -> bool {
    let findings = Machine::peek().map(|machine| machine.report.findings());
    let finding = findings.and_then(|findings| findings.into_iter().nth(index as usize));
    finding.is_some_and(|finding| text.put_text(&finding, len).is_ok())
}

/// Says that the device memory at `address` may be there when the process ends, so that it is no leak. False if there
/// is no device memory.
#[unsafe(no_mangle)]
pub extern "C" fn phalanx_simulator_keep(address: u64) -> bool {
    let machine = Machine::peek();
    let block = machine.and_then(|machine| Some((machine, machine.space.locate(address)?)));
    let found = block.filter(|(_, block)| block.gpu.is_some());
    found
        .map(|(machine, block)| machine.space.keep(block.id))
        .is_some()
}

/// Starts a record of the operations that the program puts into streams, with nothing in it; or ends it.
#[unsafe(no_mangle)]
pub extern "C" fn phalanx_simulator_trace(on: bool) {
    if let Some(machine) = Machine::peek() {
        machine.lock().trace.turn(on);
    }
}

/// How many operations are in the record.
#[unsafe(no_mangle)]
pub extern "C" fn phalanx_simulator_traced() -> u64 {
    Machine::peek().map_or(0, |m| m.lock().trace.operations().len() as u64)
}

/// An operation of the record, counted from 0 in the order of the calls: its GPU, its stream, and in `len` bytes the name
/// of its kernel, or what else it is, and a zero. False if there is none.
///
/// # Safety
/// `gpu` and `stream` can be written, and `text` points to `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn phalanx_simulator_operation(
    index: u64,
    gpu: Out<u64>,
    stream: Out<u64>,
    text: Out<c_char>,
    len: usize,
) -> bool {
    let found = Machine::peek().and_then(|machine| {
        let state = machine.lock();
        state.trace.operations().get(index as usize).cloned()
    });
    found.is_some_and(|found| {
        let numbers = gpu.put(found.gpu as u64).is_ok() && stream.put(found.stream as u64).is_ok();
        numbers && text.put_text(&found.name, len).is_ok()
    })
}

/// Whether streams and events put one operation of the record before another. False if there is no such operation.
#[unsafe(no_mangle)]
pub extern "C" fn phalanx_simulator_before(first: u64, second: u64) -> bool {
    Machine::peek().is_some_and(|machine| {
        let state = machine.lock();
        let (first, second) = (first as usize, second as usize);
        let count = state.trace.operations().len();
        first.max(second) < count && state.trace.is_before(first, second)
    })
}
