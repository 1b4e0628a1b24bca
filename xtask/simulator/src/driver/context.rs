//! Primary contexts, and which of them is current in a thread.

use std::cell::RefCell;

use super::api;
use super::handles::{self, Handle};
use super::init::gpu;
use super::pointers::Out;
use crate::device::code::{Code, Result};
use crate::device::leaks;
use crate::device::machine::Machine;
use crate::device::state::Kind;

thread_local! {
    /// The contexts that are pushed in this thread; the last one is current. `None` stands for no context.
    static STACK: RefCell<Vec<Option<usize>>> = const { RefCell::new(Vec::new()) };
}

fn stack<T>(read: impl FnOnce(&mut Vec<Option<usize>>) -> T) -> Result<T> {
    // A thread that ends may still free what it has: then no context is current.
    let read = STACK.try_with(|stack| read(&mut stack.borrow_mut()));
    read.map_err(|_| Code::INVALID_CONTEXT)
}

/// The GPU whose context is current in the calling thread.
///
/// # Errors
/// `INVALID_CONTEXT` if there is none.
pub fn current(_machine: &Machine) -> Result<usize> {
    stack(|stack| stack.last().copied().flatten())?.ok_or(Code::INVALID_CONTEXT)
}

api! {
    cuDevicePrimaryCtxRetain(context: Out<Handle>, device: i32) {
        let machine = Machine::get()?;
        let gpu = gpu(machine, device)?;
        let mut state = machine.lock();
        if state.contexts[gpu].retained == 0 {
            let stream = state.add_stream(gpu, Kind::Default, 0);
            let own = &mut state.contexts[gpu];
            own.default_stream = stream;
            own.error = None;
            own.peers = 0;
        }
        state.contexts[gpu].retained += 1;
        context.put(handles::of_context(gpu))
    }

    cuDevicePrimaryCtxRelease_v2(device: i32) {
        let machine = Machine::get()?;
        let gpu = gpu(machine, device)?;
        let mut state = machine.lock();
        match state.contexts[gpu].retained {
            0 => return Err(Code::INVALID_CONTEXT),
            1 => state = leaks::end_context(machine, state, gpu),
            _ => {}
        }
        state.contexts[gpu].retained -= 1;
        Ok(())
    }

    cuDevicePrimaryCtxReset_v2(device: i32) {
        let machine = Machine::get()?;
        let gpu = gpu(machine, device)?;
        let mut state = machine.lock();
        if state.contexts[gpu].retained > 0 {
            state = leaks::end_context(machine, state, gpu);
            let stream = state.add_stream(gpu, Kind::Default, 0);
            state.contexts[gpu].default_stream = stream;
            state.contexts[gpu].error = None;
        }
        Ok(())
    }

    cuDevicePrimaryCtxGetState(device: i32, flags: Out<u32>, active: Out<i32>) {
        let machine = Machine::get()?;
        let gpu = gpu(machine, device)?;
        flags.put(0)?;
        active.put((machine.lock().contexts[gpu].retained > 0).into())
    }

    cuDevicePrimaryCtxSetFlags_v2(device: i32, _flags: u32) {
        gpu(Machine::get()?, device).map(|_| ())
    }

    cuCtxSetCurrent(context: Handle) {
        let machine = Machine::get()?;
        let new = match context {
            0 => None,
            handle => {
                let gpu = handles::context(machine, handle)?;
                machine.lock().context(gpu)?;
                Some(gpu)
            }
        };
        stack(|stack| {
            stack.pop();
            stack.push(new);
        })
    }

    cuCtxGetCurrent(context: Out<Handle>) {
        Machine::get()?;
        let gpu = stack(|stack| stack.last().copied().flatten())?;
        context.put(gpu.map_or(0, handles::of_context))
    }

    cuCtxPushCurrent_v2(context: Handle) {
        let machine = Machine::get()?;
        let gpu = handles::context(machine, context)?;
        machine.lock().context(gpu)?;
        stack(|stack| stack.push(Some(gpu)))
    }

    cuCtxPopCurrent_v2(context: Out<Handle>) {
        Machine::get()?;
        let popped = stack(Vec::pop)?.flatten().ok_or(Code::INVALID_CONTEXT)?;
        context.put_if_asked(handles::of_context(popped));
        Ok(())
    }

    cuCtxGetDevice(device: Out<i32>) {
        device.put(current(Machine::get()?)? as i32)
    }

    cuCtxGetApiVersion(context: Handle, version: Out<u32>) {
        let machine = Machine::get()?;
        match context {
            0 => current(machine)?,
            handle => handles::context(machine, handle)?,
        };
        version.put(3020)
    }

    cuCtxGetFlags(flags: Out<u32>) {
        current(Machine::get()?)?;
        flags.put(0)
    }

    cuCtxSetFlags(_flags: u32) {
        current(Machine::get()?).map(|_| ())
    }

    cuCtxGetStreamPriorityRange(least: Out<i32>, greatest: Out<i32>) {
        current(Machine::get()?)?;
        least.put_if_asked(0);
        greatest.put_if_asked(-5);
        Ok(())
    }

    cuCtxSynchronize() {
        let machine = Machine::get()?;
        let gpu = current(machine)?;
        machine.wait_context(machine.lock(), gpu).map(|_| ())
    }

    cuCtxEnablePeerAccess(peer: Handle, flags: u32) {
        let machine = Machine::get()?;
        let own = current(machine)?;
        let peer = handles::context(machine, peer)?;
        let mut state = machine.lock();
        state.context(peer)?;
        let context = state.context(own)?;
        if flags != 0 {
            return Err(Code::INVALID_VALUE);
        }
        if own == peer {
            return Err(Code::INVALID_DEVICE);
        }
        if !machine.settings.can_access(own, peer) {
            return Err(Code::PEER_ACCESS_UNSUPPORTED);
        }
        if context.peers >> peer & 1 == 1 {
            return Err(Code::PEER_ACCESS_ALREADY_ENABLED);
        }
        context.peers |= 1 << peer;
        Ok(())
    }

    cuCtxDisablePeerAccess(peer: Handle) {
        let machine = Machine::get()?;
        let own = current(machine)?;
        let peer = handles::context(machine, peer)?;
        let mut state = machine.lock();
        let context = state.context(own)?;
        if context.peers >> peer & 1 == 0 {
            return Err(Code::PEER_ACCESS_NOT_ENABLED);
        }
        context.peers &= !(1 << peer);
        Ok(())
    }
}
