//! [`Mark`]: what each call of a rank looks at first, in one load.

use crate::backends::watcher;
use std::ptr;
use std::sync::atomic::{
    AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};

/// Which thread a rank's calls come from, and whether the rank has dropped works that were not done.
///
/// A thread is told by the address of a variable of its own. When it has ended, another one may get that address: they
/// count as one, since they never run at the same time.
#[derive(Debug, Default)]
pub(super) struct Mark(AtomicUsize);

/// The rank has dropped works. No address of a thread has this bit.
const DROPPED: usize = 1;
/// Calls have come from several threads. No address either.
const SEVERAL: usize = usize::MAX & !DROPPED;

/// The calling thread.
fn here() -> usize {
    thread_local! {
        static HERE: u64 = const { 0 };
    }
    HERE.with(|here| ptr::from_ref(here).addr())
}

impl Mark {
    /// Notes a call of this thread. Returns whether dropped works may be waiting to be looked after.
    pub(super) fn call(&self) -> bool {
        let here = here();
        match self.0.load(Relaxed) {
            mark if mark == here => false,
            mark => self.other(mark, here),
        }
    }

    #[cold]
    fn other(&self, mark: usize, here: usize) -> bool {
        if !watcher::is_program() {
            return mark & DROPPED != 0; // what an engine's thread does is no call of the rank
        }
        let thread = mark & !DROPPED;
        let is_first = thread == 0 && {
            let with = mark | here;
            self.0.compare_exchange(mark, with, SeqCst, SeqCst).is_ok()
        };
        if !is_first && thread != here && thread != SEVERAL {
            self.0.fetch_or(SEVERAL, SeqCst);
        }
        mark & DROPPED != 0
    }

    /// Whether all calls so far have come from one thread.
    pub(super) fn is_of_one_thread(&self) -> bool {
        self.0.load(SeqCst) & !DROPPED != SEVERAL
    }

    /// Says that there are dropped works, or none. Under the lock of their list.
    pub(super) fn set_dropped(&self, are_there: bool) {
        match are_there {
            true => self.0.fetch_or(DROPPED, SeqCst),
            false => self.0.fetch_and(!DROPPED, SeqCst),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_thread_is_noticed_for_good() {
        let mark = Mark::default();
        assert!(!mark.call() && !mark.call());
        mark.set_dropped(true);
        assert!(mark.call() && mark.is_of_one_thread());
        mark.set_dropped(false);
        assert!(!mark.call() && mark.is_of_one_thread());
        std::thread::scope(|scope| scope.spawn(|| assert!(!mark.call())).join().unwrap());
        assert!(!mark.is_of_one_thread());
        mark.set_dropped(true);
        assert!(mark.call() && !mark.is_of_one_thread());
        mark.set_dropped(false);
        assert!(!mark.call() && !mark.is_of_one_thread());
    }
}
