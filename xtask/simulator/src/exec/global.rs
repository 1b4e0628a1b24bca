//! Races in global memory, of the threads of one launch: of a block, between its barriers, and of different blocks,
//! which run in any order. Every byte has two records, of who wrote it last and of who has read it since:
//! `tick << 30 | thread << 20 | mode << 18 | site`. Ticks count synchronisations over all launches of a worker, so a
//! record tells its launch and its block by its tick. Generated code decides the usual cases by itself
//! (`ptx/device/memory.h`) and calls [`global`] for the others. This is one of the few files with `unsafe` code.
//!
//! A writer's mode is 1 if the access was strong (an atomic, a volatile store): strong accesses do not race with each
//! other. What orders two threads is a barrier, a synchronisation of the warp, or a fence with an atomic
//! (`exec/fences.rs`).
//!
//! Readers are joined into one record: of several lanes of a warp, of several warps of a block, of several blocks. A
//! write behind readers of several blocks must have acquired something from each block that ran before.

use super::abi::{Ctx, READ, STRONG, WRITE};
use super::engine::{Runner, abandon, owner};
use super::finding::FindingKind;

/// The modes of a reader's record.
pub const SINGLE: u32 = 0;
pub const LANES: u32 = 1;
pub const WARPS: u32 = 2;
pub const BLOCKS: u32 = 3;

/// The bits of a site in a record; a module with more sites has them modulo this.
const SITES: u64 = (1 << 18) - 1;

pub const fn stamp(tick: u64, thread: u32) -> u64 {
    tick << 30 | (thread as u64) << 20
}

pub fn tick_of(record: u64) -> u64 {
    record >> 30
}

pub fn thread_of(record: u64) -> u32 {
    (record >> 20) as u32 & 1023
}

pub fn mode_of(record: u64) -> u32 {
    (record >> 18) as u32 & 3
}

fn with_mode(record: u64, mode: u32) -> u64 {
    record & !(3 << 18) | u64::from(mode) << 18
}

/// The ticks that decide what a record is ordered behind.
#[derive(Debug, Clone, Copy)]
struct Era {
    launch: u64,
    block: u64,
    ordered: u64,
}

impl Era {
    /// The record of the readers of a byte, once `now` has read it too; generated code does the same.
    fn joint(self, read: u64, now: u64) -> u64 {
        let mode = mode_of(read);
        if read < self.launch {
            now
        } else if read < self.block || mode == BLOCKS {
            match read < self.ordered {
                true => with_mode(now, BLOCKS),
                false => read,
            }
        } else if read < self.ordered || mode == SINGLE && thread_of(read) == thread_of(now) {
            now
        } else if mode == WARPS {
            read
        } else if thread_of(read) / 32 != thread_of(now) / 32 {
            with_mode(now, WARPS)
        } else {
            with_mode(now, LANES)
        }
    }
}

impl Runner<'_> {
    fn era(&self) -> Era {
        Era {
            launch: self.shared.launch_born,
            block: self.shared.block_born,
            ordered: self.shared.block_ordered,
        }
    }

    /// The tick at which the block of a record of this launch was born, and its place in the order of blocks.
    fn block_of(&self, record: u64) -> (u64, u64) {
        let births = &self.worker.births;
        let at = births.partition_point(|birth| *birth <= tick_of(record));
        let at = at.saturating_sub(1);
        (births[at], at as u64)
    }

    /// Whether the accesses that `record` stands for come before what `me` does now.
    fn behind(&self, record: u64, me: u32) -> bool {
        let (era, mode) = (self.era(), mode_of(record));
        if record < era.launch {
            return true;
        }
        let here = tick_of(era.block);
        let (block, _) = self.block_of(record);
        let fences = &self.worker.fences;
        if mode == BLOCKS {
            let mut earlier = self.worker.births.iter().filter(|birth| **birth < here);
            return (record < era.ordered || thread_of(record) == me)
                && earlier.all(|birth| fences.knows(me, here, *birth));
        }
        if record < era.block {
            return fences.order(me, here, block, record);
        }
        if record < era.ordered {
            return true;
        }
        let (tick, thread) = (tick_of(record), thread_of(record));
        let clocks = &self.worker.clocks;
        let by_barrier = match mode {
            SINGLE => thread == me || clocks.met(tick, thread, me),
            LANES => {
                let lanes = (thread / 32 * 32..self.count).take(32);
                lanes
                    .into_iter()
                    .all(|lane| lane == me || clocks.met(tick, lane, me))
            }
            _ => false,
        };
        by_barrier || fences.order(me, here, block, record)
    }

    /// Checks and records an access of `ctx`'s thread; the error is what is wrong with it.
    fn global_race(
        &mut self,
        ctx: &Ctx,
        site: u32,
        address: u64,
        bytes: u32,
        kind: u32,
    ) -> Result<(), (FindingKind, String)> {
        let (reads, writes, strong) = (kind & READ != 0, kind & WRITE != 0, kind & STRONG != 0);
        let (me, now) = (ctx.thread, ctx.stamp | u64::from(site) & SITES);
        // SAFETY: the context holds the sites of this launch, and the site has met a region that holds the bytes.
        let known = unsafe { *ctx.sites.add(site as usize) };
        for at in address..address + u64::from(bytes) {
            // SAFETY: a region has two records for each of its bytes, which this launch alone uses.
            let [wrote, read] = unsafe {
                &mut *known
                    .cells
                    .cast::<[u64; 2]>()
                    .add((at - known.base) as usize)
            };
            let both_strong = strong && mode_of(*wrote) == 1;
            if !both_strong && !self.behind(with_mode(*wrote, SINGLE), me) {
                return Err(self.global_against(
                    at,
                    bytes,
                    writes,
                    with_mode(*wrote, SINGLE),
                    "wrote",
                ));
            }
            if writes {
                if *read >= self.shared.launch_born && !self.behind(*read, me) {
                    return Err(self.global_against(at, bytes, writes, *read, "read"));
                }
                *wrote = with_mode(now, u32::from(strong));
                *read = 0;
            } else if !strong {
                *read = self.era().joint(*read, now);
            }
        }
        if strong {
            self.meet_at(me, address, reads, writes);
        }
        Ok(())
    }

    /// What is to say about a race with the access of another thread, or of several threads.
    fn global_against(
        &self,
        at: u64,
        bytes: u32,
        writes: bool,
        record: u64,
        did: &str,
    ) -> (FindingKind, String) {
        let verb = if writes { "writes" } else { "reads" };
        let (birth, place) = self.block_of(record);
        let [x, y, z] = self.coordinates(place);
        let [i, j, k] = self.who(thread_of(record)).thread;
        let other = format!("thread ({i}, {j}, {k}) of block ({x}, {y}, {z})");
        let other = match mode_of(record) {
            SINGLE => other,
            BLOCKS => format!("threads of several blocks, at last {other},"),
            _ => format!("several threads, among them {other},"),
        };
        let line = self.kernel.line((record & SITES) as u32);
        let rule = match birth == tick_of(self.shared.block_born) {
            true => "no barrier orders the two",
            false => {
                "blocks of a launch run in any order, and no atomics with a fence before the one and behind the other \
                 order the two"
            }
        };
        let what = format!(
            "{verb} {bytes} bytes at {at:#x} ({}), which {other} {did} at {line}: {rule}",
            self.memory.explain(at)
        );
        (FindingKind::GlobalRace, what)
    }
}

/// An access to global memory that generated code does not decide by itself.
///
/// # Safety
///
/// Generated code calls it, with its context, for bytes of the region that the site has met.
pub unsafe extern "C" fn global(ctx: *mut Ctx, site: u32, address: u64, bytes: u32, kind: u32) {
    // SAFETY: by this function's condition; the references end before the fiber is left.
    unsafe {
        let this = owner(ctx);
        let result = (&mut *this).global_race(&*ctx, site, address, bytes, kind);
        if let Err((kind, what)) = result {
            (*this).find(kind, site, (*ctx).thread, &what);
            abandon(this)
        }
    }
}
