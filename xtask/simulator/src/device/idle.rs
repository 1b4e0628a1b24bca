//! A thread for programs that wait for a function of the host by means of their own, and so never call the driver.
//!
//! A card goes on by itself. Here operations run when a thread waits for the driver, which keeps the order to the seed.
//! A program may though enqueue a function of the host and wait for what that does, with a channel: then nobody else
//! would run it.

use std::sync::Once;
use std::thread;
use std::time::{Duration, Instant};

use super::machine::Machine;

/// How long nothing must have happened before the thread runs what there is.
const PAUSE: Duration = Duration::from_millis(100);

/// Starts the thread, with the first function of the host that is enqueued.
pub fn watch(machine: &'static Machine) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let started = thread::Builder::new().name("simulated device".to_owned());
        // Without the thread only such programs hang.
        let _ = started.spawn(|| run(machine));
    });
}

fn run(machine: &Machine) {
    let mut seen = (0, Instant::now());
    loop {
        thread::sleep(PAUSE / 4);
        let mut state = machine.lock();
        if state.progress != seen.0 || !state.running.is_empty() {
            seen = (state.progress, Instant::now());
        } else if seen.1.elapsed() >= PAUSE {
            while state.has_host_call() {
                let (back, ran) = machine.step(state);
                state = back;
                if !ran {
                    break;
                }
            }
        }
    }
}
