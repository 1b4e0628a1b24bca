//! Which threads are a program's. An engine may have threads of its own that call another engine, or wait there: what
//! they hear of a failure, no program has been told yet.

use std::cell::Cell;

thread_local! {
    static WATCHES: Cell<bool> = const { Cell::new(false) };
}

/// The calling thread is an engine's from now on.
#[cfg_attr(
    not(feature = "nccl"),
    expect(dead_code, reason = "no other engine has such threads")
)]
pub(crate) fn watch() {
    WATCHES.set(true);
}

/// Runs what a program does not hear of.
pub(crate) fn unheard<T>(run: impl FnOnce() -> T) -> T {
    let before = WATCHES.replace(true);
    let result = run();
    WATCHES.set(before);
    result
}

/// Whether what this thread hears is told to a program.
pub(crate) fn is_program() -> bool {
    !WATCHES.get()
}
