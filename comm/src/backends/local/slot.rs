//! [`Slot`]: the meeting place of the ranks for one operation.
#![allow(unsafe_code)]

use super::plan::{Ends, Plan};
use super::pool::{SlotPool, SlotRef, Spares};
use crate::backends::Membership;
use crate::check::{Call, Difference, Op, Signature};
use crate::error::Result;
use phalanx_tensor::Tensor;
use smallvec::SmallVec;
use std::cell::UnsafeCell;
use std::cmp::Ordering;
use std::ptr;
use std::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst},
};

/// Operations of at most so many bytes are carried out by the rank that issues them last: less
/// than what it would cost to share them.
const AT_ONCE: usize = 4 << 10;

/// One operation: a collective of all ranks of a group, or a message between two.
///
/// Every rank puts a [`Post`] into its cell: its call, and the tensors themselves, so that they
/// stay valid whatever becomes of the rank. The last one to arrive makes the [`Plan`]. From then on
/// whoever waits claims chunks and carries them out. Who has carried out the last one ends it. When
/// all have taken their results, the slot is cleared and used again.
///
/// Why this is sound. Between two clearings `state` goes from `FILLING` to `READY` to `DONE`.
///
/// 1. *A cell has one writer.* `Cell::post` is written by its rank alone, once, before that rank
///    sets `posted` (`Release`).
/// 2. *A cell is read only after it was written.* Who reads the cell of another rank has seen its
///    `posted` or found it in `lead` (`Acquire`), or is the last to arrive: `arrived` is counted
///    up with `AcqRel`, so the last arrival comes after all posts.
/// 3. *A cell is emptied only when nobody looks any more.* Ranks look at the cells of others before
///    their own arrival, the last one also until it sets `READY` or `DONE`. A rank takes its tensors
///    out of its cell only after it has seen `DONE` (`Acquire`), which comes after all arrivals (2).
/// 4. *The plan has one writer:* the last to arrive, before it sets `READY` (`Release`). All others
///    read it after they have seen `READY`.
/// 5. *A chunk is run once:* by the thread that drew its number from `claim`. Different chunks write
///    to different elements (see [`Plan::run`]), so relaxed counting suffices.
/// 6. *Nobody touches a buffer after `DONE` but its owner.* Each runner counts up `ran` with
///    `AcqRel` after its chunk, so who counts the last one comes after all chunks; it sets `DONE`
///    (`Release`). A rank takes its tensor only after it has seen `DONE` (`Acquire`).
/// 7. *Buffers outlive the plan.* The slot owns the tensors until `DONE`, and lives as long as its
///    group, which whoever runs a chunk holds. A rank that fails leaves its tensors in the slot, so
///    it may unwind at any time. The tensors give access to their memory as long as they live: an
///    output was unique when it was posted, and nobody can clone it while it is in the cell; an input
///    may be shared, and is only read, as everywhere.
/// 8. *A slot is cleared when nobody knows it any more.* A rank finds it as `link` of the slot before
///    or in a mailbox, both before it posts; and forgets it after it has counted up `left` (`AcqRel`),
///    when it has taken its result and is done running chunks. So who counts the last one comes
///    after all of them. If a rank fails, the slot is never cleared.
///
/// `Release` and `Acquire` are `SeqCst` where a sleeper must not be missed: see
/// [`Parker`](super::park::Parker).
pub(super) struct Slot {
    state: AtomicU32,
    arrived: AtomicU32,
    /// The cell that was posted first: what others compare themselves with.
    lead: AtomicUsize,
    /// How many ranks take part: the first so many cells are used.
    parties: AtomicUsize,
    /// How many are done with it.
    left: AtomicUsize,
    /// The number of the collective in its group, or of the message between the two ranks.
    sequence: AtomicU64,
    /// The next collective of the group; while the slot is free, the next free one.
    pub(super) link: AtomicPtr<Slot>,
    /// The rank that it goes back to.
    pub(super) home: usize,
    cells: Box<[Cell]>,
    plan: UnsafeCell<Option<Plan>>,
    work: Counters,
}

/// What running ranks count on, away from the lines that others only read.
#[derive(Default)]
#[repr(align(128))]
struct Counters {
    claim: AtomicUsize,
    ran: AtomicUsize,
}

#[repr(align(128))]
struct Cell {
    /// The rank in the world.
    rank: AtomicUsize,
    posted: AtomicBool,
    post: UnsafeCell<Option<Post>>,
}

/// What a rank brings.
pub(super) struct Post {
    signature: Signature,
    ends: Ends,
    /// What it gives, unless that is what it gets.
    _input: Option<Tensor>,
    /// What it gets.
    output: Option<Tensor>,
}

/// How far an operation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Some rank has not come.
    Filling,
    /// All have come; chunks are being run.
    Ready,
    /// The results are there.
    Done,
}

const FILLING: u32 = 0;
const READY: u32 = 1;
const DONE: u32 = 2;
const NOBODY: usize = usize::MAX;

/// Two ranks that disagree, by their numbers in the world.
pub(super) struct Disagreement {
    pub(super) difference: Difference,
    pub(super) rank: usize,
    pub(super) call: String,
    pub(super) other: usize,
    pub(super) other_call: String,
}

// SAFETY: the tensors are `Send` and `Sync`; the pointers of `Post` and `Plan` point into them, and
// are used as guarantees 1 to 7 say.
unsafe impl Send for Slot {}
// SAFETY: as above.
unsafe impl Sync for Slot {}

impl Post {
    /// Takes a checked call, and makes room for its result. Copies nothing but a view with gaps.
    pub(super) fn new(call: Call, me: &Membership) -> Result<Post> {
        let Call {
            signature,
            input,
            output: shape,
        } = call;
        let input = match input {
            Some(t) if !t.is_contiguous() => Some(t.contiguous()?),
            input => input, // not even a clone: it would no longer be unique
        };
        let device = input.as_ref().map_or(me.device, Tensor::device);
        let mut ends = Ends {
            src: ptr::null(),
            dst: ptr::null_mut(),
        };
        let is_root = signature.op.root() == Some(me.rank);
        let (input, output) = match (&signature.op, input, shape) {
            (Op::Broadcast { .. }, Some(t), _) if is_root => {
                ends.src = t.as_bytes()?.as_ptr();
                (None, Some(t))
            }
            (Op::AllReduce(_) | Op::Reduce { .. } | Op::Broadcast { .. }, Some(mut t), Some(_))
                if t.is_unique() =>
            {
                ends.dst = t.bytes_mut()?.as_mut_ptr();
                ends.src = ends.dst;
                (None, Some(t))
            }
            (_, input, shape) => {
                if let Some(t) = &input {
                    ends.src = t.as_bytes()?.as_ptr();
                }
                let output = match (shape, &signature.tensor) {
                    (Some(shape), Some((dtype, _))) => {
                        let mut t = Tensor::empty(shape, *dtype, device)?;
                        ends.dst = t.bytes_mut()?.as_mut_ptr();
                        Some(t)
                    }
                    _ => None,
                };
                (input, output)
            }
        };
        Ok(Post {
            signature,
            ends,
            _input: input,
            output,
        })
    }
}

impl Post {
    pub(super) fn op(&self) -> &Op {
        &self.signature.op
    }
}

impl Slot {
    /// A slot with so many cells, which belongs to rank `home`.
    pub(super) fn new(home: usize, cells: usize) -> Slot {
        let cell = |_| Cell {
            rank: AtomicUsize::new(0),
            posted: AtomicBool::new(false),
            post: UnsafeCell::new(None),
        };
        Slot {
            state: AtomicU32::new(FILLING),
            arrived: AtomicU32::new(0),
            lead: AtomicUsize::new(NOBODY),
            parties: AtomicUsize::new(0),
            left: AtomicUsize::new(0),
            sequence: AtomicU64::new(0),
            link: AtomicPtr::new(ptr::null_mut()),
            home,
            cells: (0..cells).map(cell).collect(),
            plan: UnsafeCell::new(None),
            work: Counters::default(),
        }
    }

    /// Says what a free slot is used for, before anybody else sees it.
    pub(super) fn dedicate(&self, sequence: u64, ranks: &[usize]) {
        self.sequence.store(sequence, Relaxed);
        self.parties.store(ranks.len(), Relaxed);
        for (cell, rank) in self.cells.iter().zip(ranks) {
            cell.rank.store(*rank, Relaxed);
        }
    }

    fn cells(&self) -> &[Cell] {
        &self.cells[..self.parties.load(Relaxed)]
    }

    /// The number of the collective in its group, or of the message between the two ranks.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence.load(Relaxed)
    }

    /// The slot of the group's next collective, from `spare` if this rank is the first to ask. A
    /// rank asks before it posts here.
    pub(super) fn next(
        &self,
        ranks: &[usize],
        spares: &mut Spares,
        pool: &SlotPool,
        me: usize,
    ) -> SlotRef {
        // SAFETY: the link of a slot in use is null or the slot of the next collective.
        let known = |link| unsafe { SlotRef::from_ptr(link) };
        if let Some(next) = known(self.link.load(Acquire)) {
            return next;
        }
        let new = pool.take(me, spares);
        new.dedicate(self.sequence() + 1, ranks);
        match self
            .link
            .compare_exchange(ptr::null_mut(), new.as_ptr(), AcqRel, Acquire)
        {
            Ok(_) => new,
            Err(theirs) => {
                SlotPool::keep(new, spares);
                known(theirs).unwrap_or(new)
            }
        }
    }

    /// Makes the slot as new.
    ///
    /// # Safety
    /// Nobody else knows the slot any more (guarantee 8).
    unsafe fn clear(&self) {
        for cell in self.cells() {
            cell.posted.store(false, Relaxed);
        }
        // SAFETY: by the caller. Dropping a plan frees two lists at most.
        unsafe { *self.plan.get() = None };
        self.work.claim.store(0, Relaxed);
        self.work.ran.store(0, Relaxed);
        self.left.store(0, Relaxed);
        self.arrived.store(0, Relaxed);
        self.lead.store(NOBODY, Relaxed);
        self.link.store(ptr::null_mut(), Relaxed);
        self.state.store(FILLING, Relaxed);
    }

    /// Puts a rank's post into its cell. The last rank to come gets the operation going, for so many
    /// `workers`, and returns `Ok(true)`: sleepers are to be woken.
    ///
    /// # Errors
    /// Who disagrees with whom; the slot is dead then.
    ///
    /// # Safety
    /// Called once for each cell.
    pub(super) unsafe fn post(
        &self,
        cell: usize,
        post: Post,
        workers: usize,
    ) -> Result<bool, Disagreement> {
        // SAFETY: guarantee 1, once by the caller.
        unsafe { *self.cells[cell].post.get() = Some(post) };
        self.cells[cell].posted.store(true, Release);
        if let Err(lead) = self.lead.compare_exchange(NOBODY, cell, AcqRel, Acquire) {
            self.compare(cell, lead)?;
        }
        if self.arrived.fetch_add(1, AcqRel) as usize + 1 < self.cells().len() {
            return Ok(false);
        }
        self.begin(workers)?;
        Ok(true)
    }

    /// Makes the plan. The last rank to arrive calls this.
    fn begin(&self, workers: usize) -> Result<(), Disagreement> {
        let n = self.cells().len();
        // SAFETY: guarantees 2 and 3: all cells are posted, and only this thread looks at them.
        let posts: SmallVec<[&Post; 4]> = (0..n)
            .filter_map(|c| unsafe { (*self.cells[c].post.get()).as_ref() })
            .collect();
        let first = &posts[0].signature;
        if !first.agrees_transitively() {
            for a in 0..n {
                for b in a + 1..n {
                    self.compare(b, a)?;
                }
            }
        }
        let ends: SmallVec<[Ends; 4]> = posts.iter().map(|p| p.ends).collect();
        let plan = Plan::new(first, &ends, workers, |r| match &posts[r].signature.op {
            Op::AllToAllV(splits) => &splits.send,
            _ => &[],
        });
        let (chunks, bytes) = (plan.chunks(), plan.bytes());
        if bytes <= AT_ONCE {
            // SAFETY: all buffers are there (7), and no other thread sees the plan.
            (0..chunks).for_each(|c| unsafe { plan.run(c) });
            self.state.store(DONE, SeqCst); // `Release` for 6
        } else {
            // SAFETY: guarantee 4.
            unsafe { *self.plan.get() = Some(plan) };
            self.state.store(READY, SeqCst); // `Release` for 4
        }
        Ok(())
    }

    /// The call in a cell that is known to be posted.
    ///
    /// # Safety
    /// The cell is this thread's own and not yet emptied; or `posted` has been seen, and this
    /// thread's own arrival is still to come, or it is the last and has not yet set `READY`
    /// (guarantees 2 and 3).
    unsafe fn signature(&self, cell: usize) -> Option<&Signature> {
        // SAFETY: by the caller.
        unsafe { (*self.cells[cell].post.get()).as_ref() }.map(|p| &p.signature)
    }

    /// Compares two cells that are known to be posted, before this thread's arrival.
    fn compare(&self, a: usize, b: usize) -> Result<(), Disagreement> {
        // SAFETY: as the caller says.
        let difference = |a: usize, b: usize| unsafe {
            let (x, y) = (self.signature(a)?, self.signature(b)?);
            Signature::difference((a, x), (b, y))
        };
        let Some(what) = difference(a, b) else {
            return Ok(());
        };
        // Whoever has come so far votes on which of the two is the odd one out.
        let here = (0..self.cells().len()).filter(|&c| self.cells[c].posted.load(Acquire));
        let (mut with_a, mut with_b) = (0, 0);
        for c in here {
            with_a += usize::from(difference(a, c).is_none());
            with_b += usize::from(difference(b, c).is_none());
        }
        let (odd, other) = match with_a.cmp(&with_b) {
            Ordering::Less => (a, b),
            Ordering::Greater => (b, a),
            Ordering::Equal => (a.max(b), a.min(b)),
        };
        // SAFETY: as above.
        let call = |c| unsafe { self.signature(c) }.map_or_else(String::new, Signature::to_string);
        Err(Disagreement {
            difference: what,
            rank: self.cells[odd].rank.load(Relaxed),
            call: call(odd),
            other: self.cells[other].rank.load(Relaxed),
            other_call: call(other),
        })
    }

    /// The operation of a rank. The rank itself asks, before it takes its result.
    pub(super) fn op(&self, cell: usize) -> Option<&Op> {
        // SAFETY: a cell is written and emptied by its own rank, which is here.
        unsafe { self.signature(cell) }.map(|s| &s.op)
    }

    /// The call of a rank, in words. The rank itself asks, before it takes its result.
    pub(super) fn describe(&self, cell: usize) -> String {
        // SAFETY: a cell is written and emptied by its own rank, which is here.
        unsafe { self.signature(cell) }.map_or_else(String::new, Signature::to_string)
    }

    /// The ranks of the world that have not come.
    pub(super) fn missing(&self) -> impl Iterator<Item = usize> {
        let missing = self.cells().iter().filter(|c| !c.posted.load(Acquire));
        missing.map(|c| c.rank.load(Relaxed))
    }

    /// All ranks that take part, by their numbers in the world.
    pub(super) fn ranks(&self) -> impl Iterator<Item = usize> {
        self.cells().iter().map(|c| c.rank.load(Relaxed))
    }

    /// What the rank of this cell gets out of an operation that is done; and whether the slot is now
    /// free, for the caller to give back.
    ///
    /// # Safety
    /// `DONE` has been seen; called once for each cell, and the caller uses the slot no more.
    pub(super) unsafe fn take(&self, cell: usize) -> (Option<Tensor>, bool) {
        let parties = self.parties.load(Relaxed);
        // SAFETY: guarantees 3 and 6: others look at the cell no more; once by the caller.
        let post = unsafe { (*self.cells[cell].post.get()).take() };
        let is_last = self.left.fetch_add(1, AcqRel) + 1 == parties;
        if is_last {
            // SAFETY: guarantee 8.
            unsafe { self.clear() };
        }
        (post.and_then(|p| p.output), is_last)
    }

    pub(super) fn state(&self) -> State {
        // `Acquire` for 4 and 6; `SeqCst` for sleepers.
        match self.state.load(SeqCst) {
            FILLING => State::Filling,
            READY => State::Ready,
            _ => State::Done,
        }
    }

    /// Runs up to `limit` chunks that nobody has claimed. Returns whether the operation was ended
    /// by this: sleepers are to be woken.
    pub(super) fn help(&self, limit: usize) -> bool {
        if self.state() != State::Ready {
            return false;
        }
        // SAFETY: guarantee 4: nobody writes to the plan after `READY`.
        let Some(plan) = (unsafe { (*self.plan.get()).as_ref() }) else {
            return false;
        };
        let chunks = plan.chunks();
        for _ in 0..limit {
            if self.work.claim.load(Relaxed) >= chunks {
                return false;
            }
            let chunk = self.work.claim.fetch_add(1, Relaxed);
            if chunk >= chunks {
                return false;
            }
            // SAFETY: claimed by this thread alone (5); the buffers are valid and nobody else's
            // (6, 7); all outputs were unique when they were posted, so they overlap with nothing.
            unsafe { plan.run(chunk) };
            if self.work.ran.fetch_add(1, AcqRel) + 1 == chunks {
                self.state.store(DONE, SeqCst); // `Release` for 6
                return true;
            }
        }
        false
    }
}
