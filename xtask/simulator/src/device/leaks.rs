//! What is still there when a context or the process ends.

use std::sync::Once;

use super::machine::{Guard, Machine};
use super::memory::{Life, Owner};

/// Ends the context of a GPU with its last release: what has been enqueued runs, all that the program left behind is
/// reported, and all of it is freed.
pub fn end_context<'a>(machine: &'a Machine, state: Guard<'a>, gpu: usize) -> Guard<'a> {
    let mut state = machine.until(state, gpu, |state| {
        let mut own = state.streams.iter().filter(|stream| stream.gpu == gpu);
        own.all(|stream| stream.done >= stream.enqueued)
    });
    // After an error the program cannot free anything, so that nothing is its fault.
    if state.contexts[gpu].error.is_none() {
        let mut left = memory(machine, gpu);
        let streams = state.streams.iter().enumerate();
        let forgotten = streams.filter(|(number, stream)| {
            stream.gpu == gpu && stream.alive && *number != state.contexts[gpu].default_stream
        });
        left.extend(forgotten.map(|(number, _)| state.name(number)));
        let events = state
            .events
            .values()
            .filter(|event| event.gpu == gpu)
            .count();
        let modules = state
            .modules
            .values()
            .filter(|module| module.gpu == gpu)
            .count();
        for (count, what) in [(events, "events"), (modules, "modules")] {
            if count > 0 {
                left.push(format!("{count} {what}"));
            }
        }
        for what in left {
            let sentence = format!("Leak: {what} is left when the context of GPU {gpu} ends.");
            machine.report.finding(&sentence);
        }
    }
    for stream in state.streams.iter_mut().filter(|stream| stream.gpu == gpu) {
        stream.alive = false;
    }
    state.events.retain(|_, event| event.gpu != gpu);
    let gone: Vec<_> = {
        let all = state.modules.values().filter(|module| module.gpu == gpu);
        all.map(|module| module.id).collect()
    };
    for module in gone {
        machine.unload(&mut state, module);
    }
    for block in machine.space.alive(gpu) {
        machine.space.set_life(block.id, Life::Freed(None));
        if let Owner::Pool(pool) = block.owner
            && block.life == Life::Live
        {
            state.pools[pool].put(block.len);
        }
        machine.close(&mut state, block);
    }
    for pool in state.pools.iter_mut().filter(|pool| pool.gpu == gpu) {
        pool.trim(0);
    }
    let context = &mut state.contexts[gpu];
    (context.plain, context.pending, context.peers) = (0, 0, 0);
    context.error = None;
    state
}

/// The device memory of a GPU that nobody has freed.
fn memory(machine: &Machine, gpu: usize) -> Vec<String> {
    let alive = machine.space.alive(gpu).into_iter();
    let left = alive.filter(|block| {
        block.life == Life::Live && !matches!(block.owner, Owner::Module(_)) && !block.keep
    });
    left.map(|block| block.to_string()).collect()
}

/// Sees to it that memory which is left is reported when the process ends.
pub fn watch_exit() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the function needs nothing that ends before the process does, and does not unwind.
        unsafe { libc::atexit(at_exit) };
    });
}

/// Reports the device memory that is left. Contexts, streams, events, modules and pinned buffers may live until the
/// process ends: a program keeps them for its next transfer.
extern "C" fn at_exit() {
    let Some(machine) = Machine::peek() else {
        return;
    };
    // Other threads may be running; one that never gives the lock back must not keep the process from ending.
    let Some(state) = machine.lock_if_free() else {
        return;
    };
    let unfinished = state.unfinished();
    if unfinished > 0 {
        machine.report.note(&format!(
            "The process ends, and {unfinished} operations have not run, because nothing waited for them; what they \
             would have done wrong is not known."
        ));
    }
    for gpu in 0..machine.settings.gpus {
        let context = &state.contexts[gpu];
        if context.error.is_none() && context.retained > 0 {
            for what in memory(machine, gpu) {
                let sentence = format!("Leak: {what} is left when the process ends.");
                machine.report.finding(&sentence);
            }
        }
    }
}
