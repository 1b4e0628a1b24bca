//! Races in shared memory. Every byte has a record of its last writer and of its readers since: a clock and a thread.
//! Two accesses of different threads, one of them a write, race unless something orders them: a barrier of the block, a
//! barrier of a part of it, or a synchronisation of the warp that both belong to.
//!
//! The clock counts synchronisations. A thread's records carry the clock of its last one, so a record is ordered before
//! a later synchronisation if its clock is smaller. `exec/abi.rs` says how a record is packed; generated code decides
//! the usual cases by itself and calls [`shared`] for the others. This is one of the few files with `unsafe` code.

use super::abi::{Ctx, PENDING, READ, STRONG, WRITE, record};
use super::engine::{Runner, abandon, owner};
use super::finding::FindingKind;
use super::global;

/// The clock from which records are renewed; 20 bits hold it.
const LATE: u32 = 1 << 19;

/// A reader's record that stands for several lanes of one warp; the mask says which.
const LANES: u32 = 1;
/// A reader's record that stands for threads of several warps.
const MANY: u32 = 2;

/// Threads of a block, by warp and lane.
type Members = [u32; 32];

/// What comes before a fence, beside the last barrier of the whole block.
#[derive(Debug)]
pub struct Behind {
    /// The thread's own records from before this tick.
    pub tick: u64,
    /// For each lane of its warp, records from before this tick.
    pub lanes: [u64; 32],
    /// The barriers of a part of the block that the thread took part in: their ticks, and who else did.
    pub parts: Vec<(u64, Members)>,
}

/// The records of a worker, and its clock.
#[derive(Debug, Default)]
pub struct Clocks {
    pub wrote: Vec<u32>,
    pub read: Vec<u32>,
    pub wrote_at: Vec<u32>,
    pub read_at: Vec<u32>,
    pub lanes: Vec<u32>,
    clock: u32,
    /// Ticks are clocks that never begin anew: this is what a clock lacks.
    base: u64,
    /// For each thread, for each lane of its warp: records of that lane before this clock are ordered before it.
    known: Vec<[u32; 32]>,
    /// Barriers of a part of the block since the last whole one: their clock, and who took part.
    parts: Vec<(u32, [u32; 32])>,
}

impl Clocks {
    /// Makes room for `bytes` of shared memory and `threads`.
    pub fn fit(&mut self, bytes: usize, threads: usize) {
        let sites = [&mut self.wrote_at, &mut self.read_at];
        let records = [&mut self.wrote, &mut self.read, &mut self.lanes];
        for records in records.into_iter().chain(sites) {
            // An access of 16 bytes is checked as a whole before its bounds in the list are.
            records.resize(records.len().max(bytes + 64), 0);
        }
        self.known.resize(self.known.len().max(threads), [0; 32]);
    }

    /// The clock at which a new block starts.
    pub fn start(&mut self) -> u32 {
        if self.clock > LATE {
            self.wrote.fill(0);
            self.read.fill(0);
            self.anew(0);
        }
        self.parts.clear();
        self.clock += 1;
        self.clock
    }

    fn anew(&mut self, clock: u32) {
        self.known.fill([0; 32]);
        self.base += u64::from(self.clock);
        self.clock = clock;
    }

    /// The clock.
    pub fn now(&self) -> u32 {
        self.clock
    }

    /// The tick of a clock of now.
    pub fn tick(&self, clock: u32) -> u64 {
        self.base + u64::from(clock)
    }

    /// Whether ticks are so late that a record may not hold them; they begin anew then.
    pub fn worn_out(&mut self) -> bool {
        let late = self.base > 1 << 33;
        if late {
            self.base = 0;
        }
        late
    }

    /// Sets what a thread leaves in the records of memory from now on.
    pub fn stamp(&self, ctx: &mut Ctx, clock: u32) {
        ctx.now = record(clock, ctx.thread);
        ctx.stamp = global::stamp(self.tick(clock), ctx.thread);
    }

    fn advance(&mut self) -> u32 {
        // Ending records in one block is rare enough to lose the order of what is older.
        if self.clock < (1 << 20) - 2 {
            self.clock += 1;
        }
        self.clock
    }

    /// A fence of `thread`.
    pub fn fence(&mut self, thread: u32) -> Behind {
        let tick = self.advance();
        let lanes = self.known[thread as usize].map(|known| match known {
            0 => 0,
            known => self.tick(known),
        });
        let own = |members: &[u32; 32]| members[thread as usize / 32] >> (thread % 32) & 1 == 1;
        let parts = self.parts.iter().filter(|(_, members)| own(members));
        let parts = parts.map(|(clock, members)| (self.tick(*clock), *members));
        Behind {
            tick: self.tick(tick),
            lanes,
            parts: parts.collect(),
        }
    }

    /// Whether `thread` and `me` have met, without all others of the block, since the tick of an access of `thread`.
    pub fn met(&self, tick: u64, thread: u32, me: u32) -> bool {
        let known = self.known[me as usize][thread as usize % 32];
        if thread / 32 == me / 32 && known > 0 && tick < self.tick(known) {
            return true;
        }
        let has = |members: &[u32; 32], thread: u32| {
            members[thread as usize / 32] >> (thread % 32) & 1 == 1
        };
        let mut parts = self.parts.iter();
        parts.any(|(clock, members)| {
            tick < self.tick(*clock) && has(members, thread) && has(members, me)
        })
    }
}

fn thread_of(record: u32) -> u32 {
    record >> 2 & 1023
}

impl Runner<'_> {
    /// A barrier of the whole block: everything before it is ordered before everything after it.
    pub fn whole_barrier(&mut self) {
        self.shared.parts = 0;
        let clocks = &mut self.worker.clocks;
        clocks.parts.clear();
        if clocks.clock > LATE {
            // What was written is of before this barrier, whenever it was; who read it does not matter any more.
            for wrote in clocks.wrote.iter_mut().filter(|wrote| **wrote != PENDING) {
                *wrote = if *wrote >= self.shared.born {
                    record(1, 0)
                } else {
                    0
                };
            }
            clocks.read.fill(0);
            clocks.anew(1);
            self.shared.born = record(1, 0);
        }
        clocks.clock += 1;
        let clock = clocks.clock;
        self.shared.ordered = record(clock, 0);
        self.shared.block_ordered = global::stamp(clocks.tick(clock), 0);
        for ctx in &mut self.worker.threads {
            clocks.stamp(ctx, clock);
        }
        self.worker.fences.share();
    }

    /// A barrier of `members`, by warp and lane.
    pub fn part_barrier(&mut self, members: [u32; 32]) {
        let clocks = &mut self.worker.clocks;
        clocks.clock += 1;
        clocks.parts.push((clocks.clock, members));
        self.shared.parts += 1;
        let clock = clocks.clock;
        for ctx in &mut self.worker.threads {
            if members[ctx.warp as usize] >> ctx.lane & 1 == 1 {
                clocks.stamp(ctx, clock);
            }
        }
        let has = |thread: u32| members[thread as usize / 32] >> (thread % 32) & 1 == 1;
        let all = (0..self.count).filter(|thread| has(*thread));
        self.worker.fences.share_among(has, all);
    }

    /// A synchronisation of the lanes in `mask` of a warp.
    pub fn warp_sync(&mut self, warp: u32, mask: u32) {
        let checked = self.kernel.looks_for_races();
        if self.shared.len == 0 && !checked {
            return;
        }
        let worker = &mut self.worker;
        let clocks = &mut worker.clocks;
        let clock = clocks.advance();
        let first = warp as usize * 32;
        let members = (0..32).filter(|lane| mask >> lane & 1 == 1);
        let mut joint = [0; 32];
        if mask != u32::MAX {
            for lane in members.clone() {
                for (into, known) in joint.iter_mut().zip(clocks.known[first + lane]) {
                    *into = known.max(*into);
                }
            }
        }
        for lane in members.clone() {
            joint[lane] = clock;
        }
        for lane in members {
            clocks.known[first + lane] = joint;
            clocks.stamp(&mut worker.threads[first + lane], clock);
        }
        if checked {
            let has = |thread: u32| thread / 32 == warp && mask >> (thread % 32) & 1 == 1;
            let all = (first as u32..).take(32).filter(|thread| has(*thread));
            worker.fences.share_among(has, all);
        }
    }

    /// Whether what `record` stands for comes before what `me` does now.
    fn ordered(&self, record: u32, me: u32) -> bool {
        let thread = thread_of(record);
        if record < self.shared.ordered || thread == me {
            return true;
        }
        let clocks = &self.worker.clocks;
        clocks.met(clocks.tick(record >> 12), thread, me)
    }

    /// A reader that `me`, which writes, is not ordered behind; it has no number where several warps have read.
    fn unordered_reader(&self, at: usize, me: u32) -> Option<Option<u32>> {
        let read = self.worker.clocks.read[at];
        if read < self.shared.ordered {
            return None;
        }
        let thread = thread_of(read);
        if read & MANY != 0 {
            return Some(None);
        }
        if read & LANES == 0 {
            return (!self.ordered(read, me)).then_some(Some(thread));
        }
        let lanes = self.worker.clocks.lanes[at];
        let mut others = (0..32)
            .filter(|lane| lanes >> lane & 1 == 1)
            .map(|lane| thread / 32 * 32 + lane);
        others
            .find(|other| !self.ordered(record(read >> 12, *other), me))
            .map(Some)
    }

    /// Notes that `me` has read byte `at`.
    fn note_reader(&mut self, at: usize, site: u32, me: u32, now: u32) {
        self.worker.clocks.read_at[at] = site;
        let read = self.worker.clocks.read[at];
        let thread = thread_of(read);
        let single = read & (LANES | MANY) == 0;
        if read < self.shared.ordered || single && self.ordered(read, me) {
            self.worker.clocks.read[at] = now;
        } else if read & MANY != 0 {
        } else if thread / 32 != me / 32 {
            self.worker.clocks.read[at] = now | MANY;
        } else {
            let before = if single {
                1 << (thread % 32)
            } else {
                self.worker.clocks.lanes[at]
            };
            self.worker.clocks.lanes[at] = before | 1 << (me % 32);
            self.worker.clocks.read[at] = read.max(now) & !3 | LANES;
        }
    }

    /// Checks and records an access of `ctx`'s thread; the error is what is wrong with it.
    fn race(
        &mut self,
        ctx: &Ctx,
        site: u32,
        offset: u32,
        bytes: u32,
        kind: u32,
    ) -> Result<(), (FindingKind, String)> {
        let (me, now, strong) = (ctx.thread, ctx.now, kind & STRONG != 0);
        let (reads, writes) = (kind & READ != 0, kind & WRITE != 0);
        for at in offset as usize..(offset + bytes) as usize {
            let wrote = self.worker.clocks.wrote[at];
            if wrote == PENDING {
                return Err(self.too_early(at, writes));
            }
            let written = wrote >= self.shared.born;
            if reads && !written {
                let what = format!(
                    "reads byte {at} of shared memory, which no thread of its block has written"
                );
                return Err((FindingKind::Uninitialised, what));
            }
            if written && !(strong && wrote & 1 == 1) && !self.ordered(wrote, me) {
                let place = (self.worker.clocks.wrote_at[at], "wrote");
                return Err(self.against(at, writes, Some(thread_of(wrote)), place));
            }
            if writes {
                if let Some(reader) = self.unordered_reader(at, me) {
                    let place = (self.worker.clocks.read_at[at], "read");
                    return Err(self.against(at, writes, reader, place));
                }
                self.worker.clocks.wrote[at] = now | u32::from(strong);
                self.worker.clocks.wrote_at[at] = site;
            } else if !strong {
                self.note_reader(at, site, me, now);
            }
        }
        Ok(())
    }

    /// What is to say about an access to a byte that a `cp.async` is about to write.
    fn too_early(&self, at: usize, writes: bool) -> (FindingKind, String) {
        let verb = if writes { "writes" } else { "reads" };
        let [x, y, z] = self.who(self.copier(at).unwrap_or(0)).thread;
        let line = self.kernel.line(self.worker.clocks.wrote_at[at]);
        let what = format!(
            "{verb} byte {at} of shared memory, which thread ({x}, {y}, {z}) has begun to copy at {line}: it must first \
             wait for that (cp.async.wait_group), and then all must meet at a barrier"
        );
        (FindingKind::PendingCopy, what)
    }

    /// What is to say about a race with the access of another thread, or of several threads.
    fn against(
        &self,
        at: usize,
        writes: bool,
        other: Option<u32>,
        (site, did): (u32, &str),
    ) -> (FindingKind, String) {
        let verb = if writes { "writes" } else { "reads" };
        let other = match other {
            Some(thread) => {
                let [x, y, z] = self.who(thread).thread;
                format!("thread ({x}, {y}, {z})")
            }
            None => "several threads".to_owned(),
        };
        let line = self.kernel.line(site);
        let what = format!(
            "{verb} byte {at} of shared memory, which {other} {did} at {line}: no barrier orders the two"
        );
        (FindingKind::SharedRace, what)
    }
}

/// An access to shared memory that generated code does not decide by itself.
///
/// # Safety
///
/// Generated code calls it, with its context, for bytes within the shared memory of the block.
pub unsafe extern "C" fn shared(ctx: *mut Ctx, site: u32, offset: u32, bytes: u32, kind: u32) {
    // SAFETY: by this function's condition; the references end before the fiber is left.
    unsafe {
        let this = owner(ctx);
        let result = (&mut *this).race(&*ctx, site, offset, bytes, kind);
        if let Err((kind, what)) = result {
            (*this).find(kind, site, (*ctx).thread, &what);
            abandon(this)
        }
    }
}
