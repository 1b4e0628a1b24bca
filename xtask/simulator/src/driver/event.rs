//! Events.

use std::sync::Arc;

use super::api;
use super::handles::{self, Handle};
use super::pointers::Out;
use crate::device::code::{Code, Result};
use crate::device::machine::Machine;
use crate::device::operation::Work;
use crate::device::report::Count;
use crate::device::state::{Event, Recorded};
use crate::driver::context;

fn record(event: Handle, stream: Handle) -> Result<()> {
    let machine = Machine::get()?;
    let mut state = machine.lock();
    let stream = handles::stream(machine, &mut state, stream)?;
    let (number, found) = handles::event(machine, &mut state, event)?;
    let (of_event, of_stream) = (found.gpu, state.streams[stream].gpu);
    if of_event != of_stream {
        let sentence = format!(
            "An event of the context of GPU {of_event} is recorded in {}, which belongs to another context.",
            state.name(stream)
        );
        machine.report.finding(&sentence);
        return Err(Code::INVALID_HANDLE);
    }
    let mut state = machine.room(state, stream);
    state.context(of_stream)?;
    let sequence = state.enqueue(stream, Work::Record(number), Vec::new(), None);
    let recorded = Recorded {
        stream,
        sequence,
        clock: Arc::new(state.streams[stream].clock.clone()),
    };
    if let Some(event) = state.events.get_mut(&number) {
        event.recorded = Some(recorded);
        event.at = None;
    }
    Ok(())
}

fn elapsed(milliseconds: Out<f32>, start: Handle, end: Handle) -> Result<()> {
    let machine = Machine::get()?;
    let mut state = machine.lock();
    let mut times = [None; 2];
    let mut gpus = [0; 2];
    for (at, handle) in [start, end].into_iter().enumerate() {
        let event = handles::event(machine, &mut state, handle)?.1;
        if !event.timing || event.recorded.is_none() {
            return Err(Code::INVALID_HANDLE);
        }
        (times[at], gpus[at]) = (event.at, event.gpu);
    }
    if gpus[0] != gpus[1] {
        return Err(Code::INVALID_HANDLE);
    }
    let [Some(start), Some(end)] = times else {
        return Err(Code::NOT_READY);
    };
    let passed = match end.checked_duration_since(start) {
        Some(passed) => passed.as_secs_f32(),
        None => -(start - end).as_secs_f32(),
    };
    milliseconds.put(1000.0 * passed)
}

api! {
    cuEventCreate(event: Out<Handle>, flags: u32) {
        let machine = Machine::get()?;
        let gpu = context::current(machine)?;
        let mut state = machine.lock();
        state.context(gpu)?;
        if flags > 7 || event.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        if flags & 4 != 0 {
            machine.report.finding("Events between processes are not simulated.");
            return Err(Code::NOT_SUPPORTED);
        }
        let number = state.number();
        let timing = flags & 2 == 0;
        let made = Event { gpu, timing, recorded: None, at: None };
        state.events.insert(number, made);
        event.put(handles::of_event(number))
    }

    cuEventDestroy_v2(event: Handle) {
        let machine = Machine::get()?;
        let mut state = machine.lock();
        let number = handles::event(machine, &mut state, event)?.0;
        state.events.remove(&number);
        Ok(())
    }

    cuEventRecord(event: Handle, stream: Handle) {
        record(event, stream)
    }

    cuEventRecordWithFlags(event: Handle, stream: Handle, flags: u32) {
        if flags > 1 {
            return Err(Code::INVALID_VALUE);
        }
        record(event, stream)
    }

    cuEventQuery(event: Handle) {
        let machine = Machine::get()?;
        let mut state = machine.lock();
        let event = handles::event(machine, &mut state, event)?.1;
        let (gpu, recorded) = (event.gpu, event.recorded.clone());
        machine.report.count(Count::Queries);
        let Some(recorded) = recorded else {
            return Ok(());
        };
        if state.streams[recorded.stream].done < recorded.sequence {
            state = machine.step(state).0;
        }
        state.context(gpu)?;
        if state.streams[recorded.stream].done < recorded.sequence {
            return Err(Code::NOT_READY);
        }
        state.host.join(&recorded.clock);
        Ok(())
    }

    cuEventSynchronize(event: Handle) {
        let machine = Machine::get()?;
        let mut state = machine.lock();
        let event = handles::event(machine, &mut state, event)?.1;
        let (gpu, recorded) = (event.gpu, event.recorded.clone());
        let Some(recorded) = recorded else {
            return Ok(());
        };
        let mut state = machine.wait(state, gpu, |state| {
            state.streams[recorded.stream].done >= recorded.sequence
        })?;
        state.host.join(&recorded.clock);
        Ok(())
    }

    cuEventElapsedTime(milliseconds: Out<f32>, start: Handle, end: Handle) {
        elapsed(milliseconds, start, end)
    }

    cuEventElapsedTime_v2(milliseconds: Out<f32>, start: Handle, end: Handle) {
        elapsed(milliseconds, start, end)
    }
}
