//! Pinned memory of the host.

use std::ffi::c_void;

use super::api;
use super::context;
use super::pointers::Out;
use crate::device::code::{Code, Result};
use crate::device::machine::Machine;
use crate::device::report::Count;

fn make(address: Out<u64>, len: usize) -> Result<()> {
    let machine = Machine::get()?;
    let gpu = context::current(machine)?;
    machine.lock().context(gpu)?;
    if len == 0 || address.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    machine.report.count(Count::Pinned);
    address.put(machine.space.pin(None, len as u64)?.base)
}

fn end(base: u64, registered: bool) -> Result<()> {
    let machine = Machine::get()?;
    let state = machine.lock();
    let block = machine
        .space
        .locate(base)
        .filter(|block| block.gpu.is_none() && block.base == base);
    let Some(block) = block else {
        let sentence = format!("A call frees {base:#x} as pinned memory, which it is not.");
        machine.report.finding(&sentence);
        return match registered {
            true => Err(Code::HOST_MEMORY_NOT_REGISTERED),
            false => Err(Code::INVALID_VALUE),
        };
    };
    let history = state.histories.get(&block.id);
    let unfinished = history.and_then(|history| history.unfinished(&state.host));
    let wrong = match unfinished {
        Some(access) => Some(state.describe(access)),
        None if state.is_awaited(block.base, block.len) => {
            Some("an operation that has not run needs it".to_owned())
        }
        None => None,
    };
    let mut state = state;
    if let Some(wrong) = &wrong {
        let sentence = format!("The host frees {block} without having waited: {wrong}.");
        machine.report.finding(&sentence);
        // What needs it runs first, so that the program that is tested does not crash.
        let gpus = 0..machine.settings.gpus;
        let active = gpus
            .filter(|gpu| state.contexts[*gpu].retained > 0)
            .collect::<Vec<_>>();
        for gpu in active {
            state = machine.until(state, gpu, |state| {
                !state.is_awaited(block.base, block.len) && state.running.is_empty()
            });
        }
    }
    machine.space.unpin(base, registered)?;
    machine.report.count(Count::Unpinned);
    state.histories.remove(&block.id);
    match wrong {
        Some(_) => Err(Code::ILLEGAL_ADDRESS),
        None => Ok(()),
    }
}

api! {
    cuMemHostAlloc(address: Out<u64>, len: usize, _flags: u32) {
        make(address, len)
    }

    cuMemAllocHost_v2(address: Out<u64>, len: usize) {
        make(address, len)
    }

    cuMemFreeHost(address: u64) {
        end(address, false)
    }

    cuMemHostRegister_v2(address: *mut c_void, len: usize, _flags: u32) {
        let machine = Machine::get()?;
        let gpu = context::current(machine)?;
        machine.lock().context(gpu)?;
        if len == 0 || address.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        machine.report.count(Count::Pinned);
        machine.space.pin(Some(address as u64), len as u64).map(|_| ())
    }

    cuMemHostUnregister(address: u64) {
        end(address, true)
    }

    cuMemHostGetDevicePointer_v2(device: Out<u64>, address: u64, _flags: u32) {
        let machine = Machine::get()?;
        let block = machine.space.locate(address).filter(|block| block.gpu.is_none());
        block.ok_or(Code::INVALID_VALUE)?;
        device.put(address)
    }

    cuMemHostGetFlags(flags: Out<u32>, address: u64) {
        let machine = Machine::get()?;
        let block = machine.space.locate(address).filter(|block| block.gpu.is_none());
        block.ok_or(Code::INVALID_VALUE)?;
        flags.put(0)
    }
}
