//! What stands in for the rest of the program while loom runs this backend's code on its own threads, in every order
//! (`--cfg phalanx_loom`); the models themselves are in `slots`, `mail` and `whole`.
//!
//! Loom sees the atomics, the locks and the cells of `crate::sync`. All else runs as it is, on the one thread of the
//! system on which loom takes its threads' turns: clocks, which the models keep from mattering by deadlines of hours;
//! and tensors, whose elements loom would not see, but for [`fold`] here. `Mark` is not modelled, nor are the counts of
//! `Arc` and the slots that large groups share.
//!
//! What was weakened by hand (to `Relaxed`, or taken out), and which model fails then. `slots` are those of that file.
//!
//! | weakened | fails |
//! | --- | --- |
//! | `arrivals`, the first: the load's `Acquire`, `Release` or failure's `Acquire` | all `slots`, most of `whole` |
//! | `arrivals`, the others: either half | `three_ranks_in_one_slot` |
//! | `READY`: `Release` | `two_ranks_in_two_slots`, `a_dropped_work_is_carried_out` |
//! | `DONE` of a small operation: `Release` | `three_ranks_in_one_slot`, `a_dropped_work_is_carried_out` |
//! | `DONE` of chunks: `Release` | `two_ranks_in_two_slots`, `two_ranks_meet_twice` |
//! | `state`: `Acquire` | all `slots`, `two_ranks_meet_twice` |
//! | a chunk counted in `progress`: `Release` | `two_ranks_in_two_slots` |
//! | a chunk counted in `progress`: `Acquire` | `three_ranks_share_the_chunks` |
//! | a claim that is no read-modify-write | `two_ranks_in_two_slots`, `two_ranks_meet_twice` |
//! | `left`: `Release` or `Acquire` | `slots_are_taken_again` |
//! | `prepare`: its look whether the slot is free | `slots_are_made_ready`, `all_post_again` |
//! | `link`: load, exchange, failure | `two_ranks_in_two_slots`, `a_dropped_work_is_carried_out` |
//! | either fence of `Parker` | all (a wake-up is lost) |
//! | `Parker`: the count, the lock, the bell, the second look | all |
//! | waking others at the start, or at the end, of an operation | `a_dropped_work_is_carried_out` |
//! | `events`: `Acquire`, `Release`, the look of a sleeper, waking | `who_leaves_is_not_waited_for`, `a_failure_ends_all_waits` |
//!
//! No model fails, and so these rest on their arguments alone: `posted` and `gone` (what a rank has posted before it
//! left; the fences and `arrivals` order it too in most runs), `SUSPECT` (the last to arrive gets it by `arrivals`),
//! and `alarm` (`events` and the lock of the failure order it).
#![allow(unsafe_code)]

#[cfg(test)]
mod mail;
#[cfg(test)]
mod slots;
#[cfg(test)]
mod tensors;
#[cfg(test)]
mod whole;

use crate::op::ReduceOp;
use loom::cell::UnsafeCell;
use phalanx_tensor::DType;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

/// Sleeps at once: to loom, a thread that spins is one that gets its turn again and again.
pub(super) struct Patience;

impl Patience {
    pub(super) fn new(_cores_to_spare: bool) -> Patience {
        Patience
    }

    pub(super) fn renew(&mut self) {}

    pub(super) fn pass(&mut self) -> bool {
        false
    }
}

thread_local! {
    /// Stands for the elements of a chunk, by the address of the first one.
    static CHUNKS: RefCell<HashMap<usize, Rc<UnsafeCell<()>>>> = RefCell::default();
}

/// From here on the elements at this address belong to the calling thread, which has just got the memory: that the
/// allocator orders its uses, loom cannot know.
fn acquire(chunk: *const u8) {
    let cell = Rc::new(UnsafeCell::new(()));
    CHUNKS.with_borrow_mut(|chunks| chunks.insert(chunk.addr(), cell));
}

/// Reads or writes the elements at this address, as far as loom is concerned.
fn touch(chunk: *const u8, writes: bool) {
    let known = CHUNKS.with_borrow(|chunks| chunks.get(&chunk.addr()).cloned());
    let cell = known.expect("a model knows where the chunks of its tensors begin");
    match writes {
        true => cell.with_mut(|_| ()),
        false => cell.with(|_| ()),
    }
}

/// As [`fold`](crate::backends::fold::fold), before loom's eyes; of the elements the first alone, which stands for all.
///
/// # Safety
/// As there.
pub(super) unsafe fn fold(
    dtype: DType,
    op: Option<ReduceOp>,
    src: &[*const u8],
    dst: &[*mut u8],
    range: Range<usize>,
) {
    let at = range.start * dtype.size();
    for from in src.iter().filter(|from| !dst.contains(&from.cast_mut())) {
        touch(from.wrapping_add(at), false);
    }
    for to in dst {
        touch(to.wrapping_add(at), true);
    }
    let first = range.start..range.start + 1;
    // SAFETY: by the caller.
    unsafe { crate::backends::fold::fold(dtype, op, src, dst, first) }
}
