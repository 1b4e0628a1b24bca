//! What a test may ask the simulator beside the driver's interface. It looks the functions up by name with `dlsym`: on a
//! real card they are not there.

use std::ffi::c_char;

use super::pointers::{Out, Text};
use crate::device::machine::Machine;

/// How often the host has done what `kind` says; the kinds are those of [`crate::device::report::Count`]. It is 0 for
/// another number, and before `cuInit`.
#[unsafe(no_mangle)]
pub extern "C" fn phalanx_simulator_count(kind: u32) -> u64 {
    let machine = Machine::peek();
    machine
        .and_then(|machine| machine.report.counted(kind))
        .unwrap_or(0)
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
