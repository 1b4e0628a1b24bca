//! [`Slot`]: the meeting place of the ranks for one operation.
#![allow(unsafe_code)]

use super::plan::Plan;
use super::pool::{Own, SlotPool, SlotRef};
use super::post::Post;
use crate::launch::message;
use crate::op::Op;
use crate::sync::UnsafeCell;
use crate::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};
use crate::work::Tensors;
use smallvec::SmallVec;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

mod look;

/// Operations of at most so many bytes are carried out by the rank that issues them last: less
/// than what it would cost to share them.
const AT_ONCE: usize = 4 << 10;

/// One operation: a collective of all ranks of a group, or a message between two.
///
/// Every rank puts a [`Post`] into its cell: its call, and the tensors themselves, so that they
/// stay valid whatever becomes of the rank. The last one to arrive makes the [`Plan`]. From then on
/// whoever waits claims chunks and carries them out. Who has carried out the last one ends it. When
/// all have taken their results and left, the slot is cleared and used again.
///
/// Why this is sound. Between two clearings `state` goes from `FILLING` to `READY` to `DONE`; or from `FILLING` to
/// `SUSPECT`, where it stays, since the world fails.
///
/// 1. *A cell has one writer.* `Cell::post` is written by its rank alone, once in each use of the slot, before that rank
///    sets `posted` (`Release`). It drops what is left there of the use before, which all have left (8).
/// 2. *A cell is read only after it was written.* Who reads the cell of another rank has seen its
///    `posted` (`Acquire`), or found it in `arrivals` as the one that came first (`Acquire`, of what
///    that rank put there with `Release`), or is the last to arrive: all count themselves in
///    `arrivals` by read-modify-writes with `AcqRel`, so the last arrival comes after all posts.
/// 3. *A cell is emptied of its tensors only when nobody looks any more.* Ranks look at the cells of others before
///    their own arrival (who comes first looks at none), the last one also until it sets `READY` or
///    `DONE`. A rank takes its tensors out of its cell only after it has seen `DONE` (`Acquire`),
///    which comes after all arrivals (2). `posted` stays until the slot is cleared.
/// 4. *The plan has one writer:* the last to arrive, before it sets `READY` (`Release`). All others
///    read it after they have seen `READY`.
/// 5. *A chunk is run once:* by the thread that drew its number from the claims in `progress`.
///    Different chunks write to different elements (see [`Plan::run`]), so nothing needs to be seen
///    of the others', and a claim alone may be relaxed.
/// 6. *Nobody touches a buffer after `DONE` but its owner.* Each runner counts its chunk in
///    `progress` with `AcqRel` after it has run, and all that happens to `progress` are
///    read-modify-writes, so who counts the last one comes after all chunks; it sets `DONE`
///    (`Release`). A rank takes its tensor only after it has seen `DONE` (`Acquire`).
/// 7. *Buffers outlive the plan.* The slot owns the tensors until `DONE`, and lives as long as its
///    group, which whoever runs a chunk holds. A rank that drops its work leaves its tensors in the slot, so
///    it may do so, or unwind, at any time. The tensors give access to their memory as long as they live: an
///    output was unique when it was posted, and nobody can clone it while it is in the cell; an input
///    may be shared, and is only read, as everywhere.
/// 8. *A slot is taken again when nobody knows it any more*, and cleared then. A rank
///    finds it as `link` of the slot before or in a mailbox, both before it posts; and touches
///    nothing of it any more when it has said so by `left` of its cell (`Release`), which it does when it has taken its
///    result and is done running chunks. So who has seen the `left` of all cells (`Acquire`) comes after all of them.
///    An operation that is not done when the world fails is not left by all.
/// 9. *The cells of a suspect slot stay.* Who finds that two calls differ sets `SUSPECT` before it counts its own
///    arrival; so the last to arrive sees it (2), and sets neither `READY` nor `DONE`. Then no rank takes anything out
///    of its cell or leaves, and the slot is never taken again: whoever has seen `SUSPECT` (`Acquire`) may read every cell whose
///    `posted` it has seen (`Acquire`), for as long as the group lives.
/// 10. *Where a rank is known to stand, its slot is in use.* A rank that sleeps in a wait says so in its `Standings`,
///     under their lock, after it has posted; and takes that back, under the same lock, before it takes its
///     result. So whoever holds the lock and finds the slot there may read its `posted`s, `ranks` and `sequence`, and
///     that rank's own cell: the slot is not taken again before that rank has left it (8), and its group lives,
///     since the rank's own work holds it.
///
/// A sleeper is not missed, since whoever wakes it orders what it has stored here before it looks for sleepers: see
/// [`Parker`](super::park::Parker).
///
/// What is written at different times, or by some while others wait for something else, lies on
/// different cache lines: each line that has to change hands once more is some 100 ns (2 ranks, 64
/// KiB, all that there is in one place: 4.55 µs; so: 4.3, 2026-11). What others read of a call comes first in its
/// cell.
pub(super) struct Slot {
    entrance: Entrance,
    stage: Stage,
    progress: Progress,
    /// How many ranks take part: the first so many cells are used.
    parties: AtomicUsize,
    cells: Box<[Cell]>,
    /// The ranks of the cells, in the world.
    ranks: Box<[AtomicUsize]>,
}

/// What changes as ranks come; and, beside it, what else changes from one use of the slot to the next.
#[repr(align(128))]
struct Entrance {
    /// Counts how often the slot was taken: what was posted before is nobody's any more.
    uses: AtomicU64,
    /// The number of the collective in its group, or of the message between the two ranks.
    sequence: AtomicU64,
    /// How many have arrived, in the lower half; in the upper one the number, plus one, of the cell
    /// that was posted first: what others compare themselves with.
    arrivals: AtomicU64,
    /// The next collective of the group.
    link: AtomicPtr<Slot>,
}

/// What the last to come says.
#[repr(C, align(128))]
struct Stage {
    state: AtomicU32,
    plan: UnsafeCell<Option<Plan>>,
}

/// How many chunks have been claimed, in the lower half, and have run, in the upper one.
#[derive(Default)]
#[repr(align(128))]
struct Progress(AtomicU64);

const LOWER: u64 = u32::MAX as u64;
const UPPER: u32 = 32;
/// A chunk is claimed.
const CLAIM: u64 = 1;
/// A chunk has run.
const RAN: u64 = 1 << UPPER;

#[repr(C, align(128))]
struct Cell {
    /// The last use of the slot that the rank has posted for.
    posted: AtomicU64,
    post: UnsafeCell<Option<Post>>,
    /// The last use of the slot that the rank has left.
    left: AtomicU64,
    /// Whether the rank carries out chunks at this moment: told to those who wait for the last of them.
    runs: AtomicBool,
}

/// How far an operation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Some rank has not come.
    Filling,
    /// Ranks have called what does not go together: the world fails.
    Suspect,
    /// All have come; chunks are being run.
    Ready,
    /// The results are there.
    Done,
}

/// What came of a rank's call.
#[derive(Debug)]
pub(super) enum Posted {
    /// Others are still to come.
    Waits,
    /// The operation has begun: sleepers are to be woken.
    Begun,
    /// The slot is suspect, and this rank has found out; or it is the last to come.
    Suspect,
    /// The operation panicked, with this message.
    Broken(String),
}

/// What came of a rank's help.
#[derive(Debug)]
pub(super) enum Helped {
    /// There is no plan yet, or no longer.
    NotNow,
    /// A chunk was run, and there may be more.
    Some,
    /// All chunks are claimed. Asking again gets nothing, and holds up those who run them.
    NothingLeft,
    /// The operation was ended by this: sleepers are to be woken.
    Ended,
    /// A chunk panicked, with this message: the operation will never end.
    Broken(String),
}

const FILLING: u32 = 0;
const READY: u32 = 1;
const DONE: u32 = 2;
const SUSPECT: u32 = 3;

// SAFETY: the tensors are `Send` and `Sync`; the pointers of `Post` and `Plan` point into them, and
// are used as guarantees 1 to 7 say.
unsafe impl Send for Slot {}
// SAFETY: as above.
unsafe impl Sync for Slot {}

impl Slot {
    /// A free slot with so many cells.
    pub(super) fn new(cells: usize) -> Slot {
        let cell = |_| Cell {
            posted: AtomicU64::new(0),
            left: AtomicU64::new(0),
            runs: AtomicBool::new(false),
            post: UnsafeCell::new(None),
        };
        Slot {
            entrance: Entrance {
                uses: AtomicU64::new(1),
                sequence: AtomicU64::new(0),
                arrivals: AtomicU64::new(0),
                link: AtomicPtr::new(ptr::null_mut()),
            },
            stage: Stage {
                state: AtomicU32::new(FILLING),
                plan: UnsafeCell::new(None),
            },
            progress: Progress::default(),
            parties: AtomicUsize::new(0),
            cells: (0..cells).map(cell).collect(),
            ranks: (0..cells).map(|_| AtomicUsize::new(0)).collect(),
        }
    }

    /// Whether all have left who took part. Asked by whoever may take the slot.
    pub(super) fn is_free(&self) -> bool {
        let uses = self.entrance.uses.load(Relaxed);
        let cells = self.cells().iter();
        cells
            .map(|cell| cell.left.load(Acquire))
            .all(|left| left == uses) // `Acquire` for 8
    }

    /// Makes a free slot as new.
    ///
    /// # Safety
    /// Nobody else knows the slot (guarantee 8).
    pub(super) unsafe fn clear(&self) {
        // SAFETY: by the caller. Dropping a plan frees two lists at most.
        unsafe { self.stage.plan.with_mut(|plan| *plan = None) };
        self.stage.state.store(FILLING, Relaxed);
        self.progress.0.store(0, Relaxed);
        let Entrance {
            uses,
            arrivals,
            link,
            ..
        } = &self.entrance;
        arrivals.store(0, Relaxed);
        link.store(ptr::null_mut(), Relaxed);
        uses.store(uses.load(Relaxed) + 1, Relaxed);
    }

    /// Says what a clear slot will be used for, of which nobody else has heard.
    pub(super) fn dedicate(&self, sequence: u64, ranks: &[usize]) {
        self.entrance.sequence.store(sequence, Relaxed);
        // What stays as it is does not change hands. What was stored in an earlier use is seen: whoever takes a slot comes
        // after all its users.
        let set = |place: &AtomicUsize, value: usize| {
            if place.load(Relaxed) != value {
                place.store(value, Relaxed);
            }
        };
        set(&self.parties, ranks.len());
        (self.ranks.iter().zip(ranks)).for_each(|(place, rank)| set(place, *rank));
    }

    fn cells(&self) -> &[Cell] {
        &self.cells[..self.parties.load(Relaxed)]
    }

    /// The number of the collective in its group, or of the message between the two ranks.
    pub(super) fn sequence(&self) -> u64 {
        self.entrance.sequence.load(Relaxed)
    }

    /// The slot of the group's next collective, one of its `own` if this rank is the first to ask. A
    /// rank asks before it posts here.
    pub(super) fn next(&self, ranks: &[usize], own: &mut Own, pool: &SlotPool) -> SlotRef {
        // SAFETY: the link of a slot in use is null or the slot of the next collective.
        let known = |link| unsafe { SlotRef::from_ptr(link) };
        let link = &self.entrance.link;
        if let Some(next) = known(link.load(Acquire)) {
            return next;
        }
        // Where ranks share their slots, one of them takes one, and the others find it.
        let mut common = pool.common();
        let own = match &mut common {
            Some(common) => match known(link.load(Acquire)) {
                Some(next) => return next,
                None => &mut **common,
            },
            None => own,
        };
        let new = pool.take(own, self.sequence() + 1, ranks);
        // Who puts its own there reads nothing: `Release` is enough.
        match link.compare_exchange(ptr::null_mut(), new.as_ptr(), Release, Acquire) {
            Ok(_) => new,
            Err(theirs) => {
                own.put_back(new);
                known(theirs).unwrap_or(new)
            }
        }
    }

    /// Puts a rank's post into its cell. The last rank to come gets the operation going, for so many
    /// `workers`, unless the calls differ.
    ///
    /// # Safety
    /// Called once for each cell.
    pub(super) unsafe fn post(&self, cell: usize, post: Post, workers: usize) -> Posted {
        // SAFETY: guarantee 1, once by the caller.
        unsafe { self.cells[cell].post.with_mut(|p| *p = Some(post)) };
        self.cells[cell]
            .posted
            .store(self.entrance.uses.load(Relaxed), Release);
        let arrivals = &self.entrance.arrivals;
        let first = (cell as u64 + 1) << UPPER | 1;
        let before = match arrivals.load(Acquire) {
            // Who comes first looks at no other cell: `Release` is enough.
            0 => arrivals.compare_exchange(0, first, Release, Acquire),
            so_far => Err(so_far),
        };
        let (arrived, differs) = match before {
            Ok(_) => (1, false),
            Err(so_far) => {
                let differs = self.differ(cell, (so_far >> UPPER) as usize - 1);
                if differs {
                    self.suspect();
                }
                let before = (arrivals.fetch_add(1, AcqRel) & LOWER) as usize;
                (before + 1, differs)
            }
        };
        if arrived < self.cells().len() {
            return match differs {
                true => Posted::Suspect,
                false => Posted::Waits,
            };
        }
        if self.state() == State::Suspect {
            return Posted::Suspect; // guarantee 9
        }
        // A panic leaves the state as it is: nothing is handed out, and the caller fails the world.
        match catch_unwind(AssertUnwindSafe(|| self.begin(workers))) {
            Ok(true) => Posted::Begun,
            Ok(false) => Posted::Suspect,
            Err(panic) => Posted::Broken(message(&*panic)),
        }
    }

    /// Two calls differ (guarantee 9).
    fn suspect(&self) {
        self.stage.state.store(SUSPECT, Release);
    }

    /// Makes the plan; false where ranks differ. The last rank to arrive calls this.
    fn begin(&self, workers: usize) -> bool {
        let n = self.cells().len();
        debug_assert!((0..n).all(|cell| self.has_posted(cell)));
        // SAFETY: guarantees 2 and 3: all cells are posted, and only this thread looks at them.
        let posts: SmallVec<[&Post; 4]> = (0..n)
            .filter_map(|c| unsafe { self.cells[c].post.with(|post| (*post).as_ref()) })
            .collect();
        let first = &posts[0].signature;
        let pairs = || (0..n).flat_map(|a| (a + 1..n).map(move |b| (a, b)));
        if !first.agrees_transitively() && pairs().any(|(a, b)| self.differ(a, b)) {
            self.suspect();
            return false;
        }
        let ends = |r: usize, i: usize| posts[r].ends[i];
        let plan = Plan::new(first, n, ends, workers, |r| match &posts[r].signature.op {
            Op::AllToAllV(splits) => &splits.send,
            _ => &[],
        });
        let (chunks, bytes) = (plan.chunks(), plan.bytes());
        if bytes <= AT_ONCE {
            // SAFETY: all buffers are there (7), and no other thread sees the plan.
            (0..chunks).for_each(|c| unsafe { plan.run(c) });
            self.stage.state.store(DONE, Release); // for 6
        } else {
            // SAFETY: guarantee 4.
            unsafe { self.stage.plan.with_mut(|place| *place = Some(plan)) };
            self.stage.state.store(READY, Release); // for 4
        }
        true
    }

    /// What the rank of this cell gets out of an operation that is done. With it, the rank leaves the slot.
    ///
    /// # Safety
    /// `DONE` has been seen; called once for each cell, and the caller uses the slot no more.
    pub(super) unsafe fn take(&self, cell: usize) -> Tensors {
        let uses = self.entrance.uses.load(Relaxed);
        let Cell { post, left, .. } = &self.cells[cell];
        // SAFETY: guarantees 3 and 6: others look at the cell no more; once by the caller.
        let outputs = post.with_mut(|post| unsafe { (*post).as_mut().map(Post::take) });
        left.store(uses, Release); // for 8
        outputs.unwrap_or_default()
    }

    pub(super) fn state(&self) -> State {
        // `Acquire` for 4, 6 and 9.
        match self.stage.state.load(Acquire) {
            FILLING => State::Filling,
            SUSPECT => State::Suspect,
            READY => State::Ready,
            _ => State::Done,
        }
    }

    /// Runs a chunk that nobody has claimed, or, if `all`, chunks until none is left. `cell` is the helper's.
    pub(super) fn help(&self, cell: usize, all: bool) -> Helped {
        if self.state() != State::Ready {
            return Helped::NotNow;
        }
        self.stage.plan.with(|plan| {
            // SAFETY: guarantee 4: nobody writes to the plan after `READY`.
            match unsafe { (*plan).as_ref() } {
                Some(plan) => self.run(plan, cell, all),
                None => Helped::NotNow,
            }
        })
    }

    fn run(&self, plan: &Plan, cell: usize, all: bool) -> Helped {
        let runs = &self.cells[cell].runs;
        runs.store(true, Relaxed);
        let chunks = plan.chunks();
        let progress = &self.progress.0;
        let mut before = progress.fetch_add(CLAIM, Relaxed);
        let helped = loop {
            let chunk = (before & LOWER) as usize;
            if chunk >= chunks {
                break Helped::NothingLeft;
            }
            // A chunk that panics is never counted, so that the operation never ends: the caller fails the world.
            // SAFETY: claimed by this thread alone (5); the buffers are valid and nobody else's
            // (6, 7); all outputs were unique when they were posted, so they overlap with nothing.
            let run = catch_unwind(AssertUnwindSafe(|| unsafe { plan.run(chunk) }));
            if let Err(panic) = run {
                break Helped::Broken(message(&*panic));
            }
            before = progress.fetch_add(if all { RAN + CLAIM } else { RAN }, AcqRel);
            if (before >> UPPER) as usize + 1 == chunks {
                self.stage.state.store(DONE, Release); // for 6
                break Helped::Ended;
            }
            if !all {
                break Helped::Some;
            }
        };
        runs.store(false, Relaxed);
        helped
    }
}
