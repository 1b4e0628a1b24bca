//! The handles that a program gets: numbers that no pointer looks like, and that are never used again.

use crate::device::code::{Code, Result};
use crate::device::machine::Machine;
use crate::device::state::{Event, State};
use crate::driver::context;

/// What a program holds: a pointer for the driver's headers.
pub type Handle = u64;

const NUMBER: u64 = (1 << 56) - 1;
const CONTEXT: u64 = 0xc1 << 56;
const STREAM: u64 = 0xc2 << 56;
const EVENT: u64 = 0xc3 << 56;
const MODULE: u64 = 0xc4 << 56;
const FUNCTION: u64 = 0xc5 << 56;
const POOL: u64 = 0xc6 << 56;

/// The handle of the context of a GPU.
pub fn of_context(gpu: usize) -> Handle {
    CONTEXT | gpu as u64
}

/// The handle of a stream.
pub fn of_stream(stream: usize) -> Handle {
    STREAM | stream as u64
}

/// The handle of an event.
pub fn of_event(event: u64) -> Handle {
    EVENT | event
}

/// The handle of a module.
pub fn of_module(module: u64) -> Handle {
    MODULE | module
}

/// The handle of a function.
pub fn of_function(function: usize) -> Handle {
    FUNCTION | function as u64
}

/// The handle of a pool.
pub fn of_pool(pool: usize) -> Handle {
    POOL | pool as u64
}

fn number(handle: Handle, tag: u64, wrong: Code) -> Result<u64> {
    if handle & !NUMBER == tag {
        Ok(handle & NUMBER)
    } else {
        Err(wrong)
    }
}

/// The GPU of a context.
///
/// # Errors
/// `INVALID_CONTEXT`.
pub fn context(machine: &Machine, handle: Handle) -> Result<usize> {
    let gpu = number(handle, CONTEXT, Code::INVALID_CONTEXT)? as usize;
    if gpu < machine.settings.gpus {
        Ok(gpu)
    } else {
        Err(Code::INVALID_CONTEXT)
    }
}

/// The stream of a handle; null is the default stream of the calling thread's context.
///
/// # Errors
/// `INVALID_HANDLE`, and a finding if the stream was destroyed; `NOT_SUPPORTED` for the default stream of a thread; the
/// error of the stream's context.
pub fn stream(machine: &Machine, state: &mut State, handle: Handle) -> Result<usize> {
    let stream = match handle {
        0 | 1 => {
            let gpu = context::current(machine)?;
            state.context(gpu)?;
            return Ok(state.contexts[gpu].default_stream);
        }
        2 => {
            let sentence =
                "The default stream of a thread (CU_STREAM_PER_THREAD) is not simulated.";
            machine.report.finding(sentence);
            return Err(Code::NOT_SUPPORTED);
        }
        _ => number(handle, STREAM, Code::INVALID_HANDLE)? as usize,
    };
    let Some(found) = state.streams.get(stream) else {
        return Err(Code::INVALID_HANDLE);
    };
    if !found.alive {
        let sentence = format!("A call uses {}, which was destroyed.", state.name(stream));
        machine.report.finding(&sentence);
        return Err(Code::INVALID_HANDLE);
    }
    let gpu = found.gpu;
    state.context(gpu)?;
    Ok(stream)
}

/// The number of an event that is there.
///
/// # Errors
/// `INVALID_HANDLE`, and a finding if the event was destroyed; the error of the event's context.
pub fn event<'a>(
    machine: &Machine,
    state: &'a mut State,
    handle: Handle,
) -> Result<(u64, &'a mut Event)> {
    let number = number(handle, EVENT, Code::INVALID_HANDLE)?;
    let Some(event) = state.events.get(&number) else {
        if number > 0 && number < state.next {
            machine
                .report
                .finding("A call uses an event that was destroyed.");
        }
        return Err(Code::INVALID_HANDLE);
    };
    let gpu = event.gpu;
    state.context(gpu)?;
    let event = state.events.get_mut(&number).ok_or(Code::INVALID_HANDLE)?;
    Ok((number, event))
}

/// The number of a module.
///
/// # Errors
/// `INVALID_HANDLE`.
pub fn module(handle: Handle) -> Result<u64> {
    number(handle, MODULE, Code::INVALID_HANDLE)
}

/// The place of a function in the list of all.
///
/// # Errors
/// `INVALID_HANDLE`.
pub fn function(handle: Handle) -> Result<usize> {
    Ok(number(handle, FUNCTION, Code::INVALID_HANDLE)? as usize)
}

/// The number of a pool that is there.
///
/// # Errors
/// `INVALID_VALUE`.
pub fn pool(state: &State, handle: Handle) -> Result<usize> {
    let pool = number(handle, POOL, Code::INVALID_VALUE)? as usize;
    let found = state.pools.get(pool).filter(|pool| !pool.destroyed);
    found.map(|_| pool).ok_or(Code::INVALID_VALUE)
}
