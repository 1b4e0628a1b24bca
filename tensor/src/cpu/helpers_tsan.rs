//! What stands for `helpers.rs` under `--cfg phalanx_tsan`: a new thread for each piece of work.
//!
//! ThreadSanitizer sees only what it has instrumented. The standard library comes compiled without
//! it, and rayon's workers wait in there: what their locks order looks like races, hundreds of
//! them. The start of a thread and a join it does see (but not how a scope waits for its threads).
//! So pieces run side by side as they do on a pool, and what is reported is a race between pieces.

use super::threads::with_threads;

/// As in `helpers.rs`, but no thread waits.
pub(super) struct Helpers;

impl Helpers {
    pub(super) fn new(_: usize) -> Option<Helpers> {
        Some(Helpers)
    }

    pub(super) fn run(&self, count: usize, piece: &(dyn Fn(usize) + Sync)) {
        std::thread::scope(|scope| {
            let pieces: Vec<_> = (1..count)
                .map(|i| scope.spawn(move || with_threads(1, || piece(i))))
                .collect();
            with_threads(1, || piece(0));
            for piece in pieces {
                if let Err(panic) = piece.join() {
                    std::panic::resume_unwind(panic);
                }
            }
        });
    }
}

pub(super) fn is_helper() -> bool {
    false // its team is one of 1
}
