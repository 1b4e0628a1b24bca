//! Streams.

use std::ffi::c_void;

use super::api;
use super::handles::{self, Handle};
use super::pointers::Out;
use crate::device::code::{Code, Result};
use crate::device::idle;
use crate::device::machine::Machine;
use crate::device::operation::{Custom, HostCall, Work};
use crate::device::report::Count;
use crate::device::state::Kind;
use crate::driver::context;

fn create(out: Out<Handle>, flags: u32, priority: i32) -> Result<()> {
    let machine = Machine::get()?;
    let gpu = context::current(machine)?;
    let mut state = machine.lock();
    state.context(gpu)?;
    let kind = match flags {
        0 => Kind::Blocking,
        1 => Kind::NonBlocking,
        _ => return Err(Code::INVALID_VALUE),
    };
    if out.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    let stream = state.add_stream(gpu, kind, priority.clamp(-5, 0));
    out.put(handles::of_stream(stream))
}

/// Puts work of another library that is simulated into a stream, given by its handle.
///
/// # Errors
/// The handle is no stream's, the work was given an address in freed memory, or the stream's context has failed.
pub fn enqueue(stream: Handle, work: Box<dyn Custom>) -> Result<()> {
    let machine = Machine::get()?;
    let mut state = machine.lock();
    let stream = handles::stream(machine, &mut state, stream)?;
    let gpu = state.streams[stream].gpu;
    let work = Work::Custom(work);
    machine.refuse_stale(&mut state, gpu, &work)?;
    machine.submit(state, stream, work).map(|_| ())
}

api! {
    cuStreamCreate(stream: Out<Handle>, flags: u32) {
        create(stream, flags, 0)
    }

    cuStreamCreateWithPriority(stream: Out<Handle>, flags: u32, priority: i32) {
        create(stream, flags, priority)
    }

    cuStreamDestroy_v2(stream: Handle) {
        let machine = Machine::get()?;
        let mut state = machine.lock();
        let stream = handles::stream(machine, &mut state, stream)?;
        if state.streams[stream].kind == Kind::Default {
            return Err(Code::INVALID_HANDLE);
        }
        // What it still holds runs all the same.
        state.streams[stream].alive = false;
        Ok(())
    }

    cuStreamSynchronize(stream: Handle) {
        let machine = Machine::get()?;
        let mut state = machine.lock();
        let stream = handles::stream(machine, &mut state, stream)?;
        machine.wait_stream(state, stream).map(|_| ())
    }

    cuStreamQuery(stream: Handle) {
        let machine = Machine::get()?;
        let mut state = machine.lock();
        let stream = handles::stream(machine, &mut state, stream)?;
        machine.report.count(Count::Queries);
        let is_done = state.streams[stream].done >= state.streams[stream].enqueued;
        if !is_done {
            state = machine.step(state).0;
        }
        let gpu = state.streams[stream].gpu;
        state.context(gpu)?;
        let own = &state.streams[stream];
        if own.done < own.enqueued {
            return Err(Code::NOT_READY);
        }
        let clock = own.clock.clone();
        state.host.join(&clock);
        Ok(())
    }

    cuStreamWaitEvent(stream: Handle, event: Handle, flags: u32) {
        let machine = Machine::get()?;
        let mut state = machine.lock();
        if flags > 1 {
            return Err(Code::INVALID_VALUE);
        }
        let stream = handles::stream(machine, &mut state, stream)?;
        let recorded = handles::event(machine, &mut state, event)?.1.recorded.clone();
        machine.report.count(Count::StreamWaits);
        // A wait for an event that was never recorded is no wait.
        if let Some(recorded) = recorded {
            let mut state = machine.room(state, stream);
            let gpu = state.streams[stream].gpu;
            state.context(gpu)?;
            let needs = match state.streams[recorded.stream].done < recorded.sequence {
                true => vec![(recorded.stream, recorded.sequence)],
                false => Vec::new(),
            };
            state.enqueue(stream, Work::Wait, needs, Some(&recorded));
        }
        Ok(())
    }

    cuStreamGetCtx(stream: Handle, context: Out<Handle>) {
        let machine = Machine::get()?;
        let mut state = machine.lock();
        let stream = handles::stream(machine, &mut state, stream)?;
        context.put(handles::of_context(state.streams[stream].gpu))
    }

    cuStreamGetCtx_v2(stream: Handle, context: Out<Handle>, green: Out<Handle>) {
        let machine = Machine::get()?;
        let mut state = machine.lock();
        let stream = handles::stream(machine, &mut state, stream)?;
        green.put_if_asked(0);
        context.put(handles::of_context(state.streams[stream].gpu))
    }

    cuStreamGetDevice(stream: Handle, device: Out<i32>) {
        let machine = Machine::get()?;
        let mut state = machine.lock();
        let stream = handles::stream(machine, &mut state, stream)?;
        device.put(state.streams[stream].gpu as i32)
    }

    cuStreamGetFlags(stream: Handle, flags: Out<u32>) {
        let machine = Machine::get()?;
        let mut state = machine.lock();
        let stream = handles::stream(machine, &mut state, stream)?;
        flags.put((state.streams[stream].kind == Kind::NonBlocking).into())
    }

    cuStreamGetPriority(stream: Handle, priority: Out<i32>) {
        let machine = Machine::get()?;
        let mut state = machine.lock();
        let stream = handles::stream(machine, &mut state, stream)?;
        priority.put(state.streams[stream].priority)
    }

    cuStreamGetId(stream: Handle, id: Out<u64>) {
        let machine = Machine::get()?;
        let mut state = machine.lock();
        let stream = handles::stream(machine, &mut state, stream)?;
        id.put(stream as u64)
    }

    cuStreamIsCapturing(stream: Handle, status: Out<u32>) {
        let machine = Machine::get()?;
        let mut state = machine.lock();
        handles::stream(machine, &mut state, stream)?;
        // Graphs are not simulated, so that no stream is ever captured.
        status.put(0)
    }

    cuLaunchHostFunc(
        stream: Handle,
        function: Option<unsafe extern "C" fn(*mut c_void)>,
        argument: *mut c_void,
    ) {
        let machine = Machine::get()?;
        let mut state = machine.lock();
        let stream = handles::stream(machine, &mut state, stream)?;
        let function = function.ok_or(Code::INVALID_VALUE)?;
        let call = HostCall {
            function,
            argument: argument as usize,
        };
        drop(machine.submit(state, stream, Work::Host(call))?);
        idle::watch(machine);
        Ok(())
    }
}
