//! How many threads an operation may use: a property of the calling thread, set for a scope.
//!
//! A rank of a data-parallel run is a thread that works alone (`with_threads(1, …)`); a program
//! without ranks uses every core. The choice never changes a result: kernels split their output,
//! not their sums.

use super::helpers::{Helpers, is_helper};
use std::cell::RefCell;
use std::num::NonZero;
use std::sync::{Arc, LazyLock};

/// Helpers for a thread that may use `threads` threads in all; `None` where it works alone.
#[derive(Clone)]
struct Team {
    threads: usize,
    helpers: Option<Arc<Helpers>>,
}

impl Team {
    fn new(threads: usize) -> Team {
        // The caller is the first.
        let helpers = (threads > 1).then(|| Helpers::new(threads - 1));
        // A system that refuses threads leaves the caller to work alone.
        let helpers = helpers.flatten().map(Arc::new);
        Team {
            threads: if helpers.is_some() { threads } else { 1 },
            helpers,
        }
    }

    fn all_cores() -> Team {
        static ALL: LazyLock<Team> = LazyLock::new(|| {
            Team::new(std::thread::available_parallelism().map_or(1, NonZero::get))
        });
        ALL.clone()
    }
}

thread_local! {
    static TEAM: RefCell<Option<Team>> = const { RefCell::new(None) };
}

/// The most threads of one operation.
const MOST: usize = 1024;

/// Lets the operations that this thread calls inside `f` use `threads` threads (at least 1, at most
/// 1,024).
///
/// Helper threads are started once per call and stopped when `f` returns, so put it around the
/// whole program or training loop.
///
/// ```
/// use phalanx_tensor::cpu;
/// assert_eq!(cpu::with_threads(2, cpu::threads), 2);
/// ```
pub fn with_threads<R>(threads: usize, f: impl FnOnce() -> R) -> R {
    struct Restore(Option<Team>);
    impl Drop for Restore {
        fn drop(&mut self) {
            TEAM.with(|t| *t.borrow_mut() = self.0.take());
        }
    }
    let team = Team::new(threads.clamp(1, MOST));
    let _restore = Restore(TEAM.with(|t| t.borrow_mut().replace(team)));
    f()
}

/// How many threads an operation called from this thread may use: what
/// [`with_threads`] says, else all cores; 1 inside a parallel operation.
pub fn threads() -> usize {
    TEAM.with(|t| t.borrow().as_ref().map(|t| t.threads))
        .unwrap_or_else(|| {
            if is_helper() {
                1
            } else {
                Team::all_cores().threads
            }
        })
}

/// The helpers and the length of a piece for `len` items in multiples of `grain`; `None` where
/// the caller works alone.
pub(super) fn split(len: usize, grain: usize) -> Option<(Arc<Helpers>, usize)> {
    let grain = grain.max(1);
    if len <= grain {
        return None;
    }
    let pieces = threads().min(len.div_ceil(grain));
    if pieces <= 1 {
        return None;
    }
    let team = TEAM
        .with(|t| t.borrow().clone())
        .unwrap_or_else(Team::all_cores);
    let step = len.div_ceil(grain).div_ceil(pieces).saturating_mul(grain);
    Some((team.helpers?, step))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::pieces::parallel_pieces;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn every_index_once_whatever_the_threads() {
        for threads in [1, 2, 3, 8] {
            for (len, grain) in [(0, 4), (1, 4), (17, 4), (1000, 1), (1000, 64)] {
                let hits: Vec<AtomicU32> = (0..len).map(|_| AtomicU32::new(0)).collect();
                with_threads(threads, || {
                    parallel_pieces(0..len, grain, |start, range| {
                        assert_eq!(start, range.start);
                        assert!(super::threads() == 1 || threads == 1 || len <= grain);
                        range.for_each(|i| _ = hits[i].fetch_add(1, Ordering::Relaxed));
                    });
                    parallel_pieces(&mut vec![(); len][..], grain, |start, piece| {
                        assert!(start % grain == 0);
                        (start..start + piece.len())
                            .for_each(|i| _ = hits[i].fetch_add(1, Ordering::Relaxed));
                    });
                });
                assert!(
                    hits.iter().all(|h| h.load(Ordering::Relaxed) == 2),
                    "{threads} {len} {grain}"
                );
            }
        }
    }

    #[test]
    fn the_setting_ends_with_its_scope() {
        with_threads(3, || {
            assert_eq!(with_threads(2, threads), 2);
            assert_eq!(threads(), 3);
            let panicked = std::panic::catch_unwind(|| with_threads(5, || panic!("on purpose")));
            assert!(panicked.is_err() && threads() == 3);
        });
    }
}
