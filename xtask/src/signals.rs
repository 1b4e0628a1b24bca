//! The signals that end a chore: noted, so that it can end its children first.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicI32, Ordering::SeqCst};

/// The signal that nobody has taken yet.
static CAUGHT: AtomicI32 = AtomicI32::new(0);
/// The last signal, taken or not.
static LAST: AtomicI32 = AtomicI32::new(0);
pub const KILL: i32 = libc::SIGKILL;
pub const INTERRUPT: i32 = libc::SIGINT;

extern "C" fn note(signal: libc::c_int) {
    LAST.store(signal, SeqCst);
    CAUGHT.store(signal, SeqCst);
}

/// From now on, Ctrl-C and the like do not end this process: [`take`] tells of them.
pub fn catch() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler does nothing but store to atomics.
        unsafe { libc::signal(signal, note as *const () as libc::sighandler_t) };
    }
}

/// The signal that has come since the last call, if one has.
pub fn take() -> Option<i32> {
    Some(CAUGHT.swap(0, SeqCst)).filter(|&signal| signal != 0)
}

/// The signal that has come since the start, whoever has taken it: this chore is to end.
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
