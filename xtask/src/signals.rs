//! The signals that end a chore: noted, so that it can end its children first.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicI32, AtomicU32, Ordering::SeqCst};

/// How many signals have come.
static COUNT: AtomicU32 = AtomicU32::new(0);
/// The last one.
static LAST: AtomicI32 = AtomicI32::new(0);
pub const KILL: i32 = libc::SIGKILL;
pub const INTERRUPT: i32 = libc::SIGINT;

extern "C" fn note(signal: libc::c_int) {
    LAST.store(signal, SeqCst);
    COUNT.fetch_add(1, SeqCst);
}

/// From now on, Ctrl-C and the like do not end this process: [`Listener`] and [`seen`] tell of them.
pub fn catch() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler does nothing but store to atomics.
        unsafe { libc::signal(signal, note as *const () as libc::sighandler_t) };
    }
}

/// Hears every signal, whoever else does; also those that came before it.
#[derive(Default)]
pub struct Listener(u32);

impl Listener {
    /// The signal that has come since the last call, if one has.
    pub fn take(&mut self) -> Option<i32> {
        let count = COUNT.load(SeqCst);
        let is_new = std::mem::replace(&mut self.0, count) != count;
        seen().filter(|_| is_new)
    }
}

/// The last signal that has come, if one has: this chore is to end.
pub fn seen() -> Option<i32> {
    Some(LAST.load(SeqCst)).filter(|&signal| signal != 0)
}

/// As if Ctrl-C had been pressed.
pub fn interrupt() {
    note(INTERRUPT);
}

/// Sends a signal to a process; one that is gone does not mind.
pub fn send(pid: u32, signal: i32) {
    // SAFETY: a system call without pointers.
    unsafe { libc::kill(pid.cast_signed(), signal) };
}
