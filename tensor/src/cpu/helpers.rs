//! [`Helpers`]: the threads beside the calling one, from a pool that waits for work.

use super::threads::with_threads;
use rayon::{ThreadPool, ThreadPoolBuilder};

/// Threads that wait for pieces of work.
pub(super) struct Helpers(ThreadPool);

impl Helpers {
    /// Starts `count` threads; `None` where the system refuses them.
    pub(super) fn new(count: usize) -> Option<Helpers> {
        ThreadPoolBuilder::new()
            .num_threads(count)
            .thread_name(|i| format!("phalanx-helper-{i}"))
            .build()
            .ok()
            .map(Helpers)
    }

    /// Runs `piece(0)` on the calling thread and the other ones, of `count` in all, on the helpers; returns when all have
    /// ended.
    pub(super) fn run(&self, count: usize, piece: &(dyn Fn(usize) + Sync)) {
        self.0.in_place_scope(|scope| {
            for i in 1..count {
                scope.spawn(move |_| piece(i));
            }
            // The caller is no worker of the pool: keep operations inside a piece from forking
            // again.
            with_threads(1, || piece(0));
        });
    }
}

/// Whether this thread is a helper.
pub(super) fn is_helper() -> bool {
    rayon::current_thread_index().is_some()
}
