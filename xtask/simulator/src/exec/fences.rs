//! What fences and atomics order between threads, also of different blocks: by PTX's rule, a fence before a strong write
//! (an atomic, a volatile store) releases what its thread has done and knows, and a strong read of the same place
//! (an atomic, a volatile load) with a fence behind it acquires that. This is how the last block of a launch may read
//! what the others have written.
//!
//! A place keeps a list of what was released there. Each write adds to it, also a plain store that a card would take for
//! a new beginning; so of two orders that differ only by that, the weaker one is not noticed.

use std::collections::HashMap;
use std::rc::Rc;

use super::abi::Ctx;
use super::engine::{Runner, owner};
use super::global::{LANES, SINGLE, mode_of, thread_of, tick_of};
use super::race::Behind;

/// How much of the lists of places a thread knows: the address of each, and how many of its entries.
type Knowledge = Vec<(u64, usize)>;

fn join(into: &mut Knowledge, other: &Knowledge) {
    for (place, len) in other {
        match into.iter_mut().find(|(known, _)| known == place) {
            Some((_, known)) => *known = (*len).max(*known),
            None => into.push((*place, *len)),
        }
    }
}

/// What comes before a fence.
#[derive(Debug)]
struct Token {
    /// The tick at which the block was born.
    block: u64,
    /// Whether the fence reaches other blocks.
    wide: bool,
    thread: u32,
    behind: Behind,
    /// All records of its block from before this tick: its last whole barrier.
    ordered: u64,
    knows: Knowledge,
}

impl Token {
    fn covers(&self, record: u64) -> bool {
        let (tick, thread) = (tick_of(record), thread_of(record));
        let lane = |thread: u32| {
            thread / 32 == self.thread / 32 && tick < self.behind.lanes[thread as usize % 32]
        };
        if tick < self.ordered {
            return true;
        }
        match mode_of(record) {
            SINGLE => {
                let part =
                    |members: &[u32; 32]| members[thread as usize / 32] >> (thread % 32) & 1 == 1;
                let mut parts = self.behind.parts.iter();
                thread == self.thread && tick < self.behind.tick
                    || lane(thread)
                    || parts.any(|(at, members)| tick < *at && part(members))
            }
            LANES => (thread / 32 * 32..).take(32).all(lane),
            _ => false,
        }
    }
}

#[derive(Debug, Default)]
struct Place {
    tokens: Vec<Rc<Token>>,
    knows: Knowledge,
}

/// What a launch has released, and what the threads of its block know of that.
#[derive(Debug, Default)]
pub struct Fences {
    places: HashMap<u64, Place>,
    /// What the next strong write of a thread releases.
    ready: HashMap<u32, Rc<Token>>,
    /// What the next fence of a thread acquires.
    met: HashMap<u32, Knowledge>,
    known: HashMap<u32, Knowledge>,
    /// What all threads of the block know.
    block: Knowledge,
}

impl Fences {
    /// A new block.
    pub fn start(&mut self) {
        self.ready.clear();
        self.met.clear();
        self.known.clear();
        self.block.clear();
    }

    /// A barrier of the whole block.
    pub fn share(&mut self) {
        for (_, known) in self.known.drain() {
            join(&mut self.block, &known);
        }
    }

    /// A synchronisation of some threads.
    pub fn share_among(&mut self, members: impl Fn(u32) -> bool, all: impl Iterator<Item = u32>) {
        let mut joint = Knowledge::new();
        for (_, known) in self.known.iter().filter(|(thread, _)| members(**thread)) {
            join(&mut joint, known);
        }
        if !joint.is_empty() {
            for thread in all {
                self.known.insert(thread, joint.clone());
            }
        }
    }

    fn all_known(&self, thread: u32) -> impl Iterator<Item = &(u64, usize)> {
        self.known
            .get(&thread)
            .into_iter()
            .flatten()
            .chain(&self.block)
    }

    /// Whether `thread`, of the block born at `here`, has acquired something that fits from the block born at `block`.
    fn acquired(&self, thread: u32, here: u64, block: u64, fits: impl Fn(&Token) -> bool) -> bool {
        self.all_known(thread).any(|(place, len)| {
            let tokens = &self.places[place].tokens[..*len];
            let first = tokens.partition_point(|token| token.block < block);
            let own = tokens[first..]
                .iter()
                .take_while(|token| token.block == block);
            own.into_iter()
                .any(|token| (token.wide || here == block) && fits(token))
        })
    }

    /// Whether what `record` of the block born at `block` stands for comes before what `thread` does now.
    pub fn order(&self, thread: u32, here: u64, block: u64, record: u64) -> bool {
        self.acquired(thread, here, block, |token| token.covers(record))
    }

    /// Whether `thread` has acquired anything from the block born at `block`.
    pub fn knows(&self, thread: u32, here: u64, block: u64) -> bool {
        self.acquired(thread, here, block, |_| true)
    }
}

impl Runner<'_> {
    /// A strong access: what it releases and what it may acquire.
    pub fn meet_at(&mut self, thread: u32, address: u64, reads: bool, writes: bool) {
        let fences = &mut self.worker.fences;
        if fences.ready.is_empty() && fences.places.is_empty() {
            return;
        }
        if reads && let Some(place) = fences.places.get(&address) {
            let met = fences.met.entry(thread).or_default();
            join(met, &place.knows);
            join(met, &vec![(address, place.tokens.len())]);
        }
        if writes && let Some(token) = fences.ready.get(&thread) {
            let place = fences.places.entry(address).or_default();
            join(&mut place.knows, &token.knows);
            place.tokens.push(token.clone());
        }
    }

    /// A fence of `thread`, which is the one that runs; `wide` if it reaches other blocks.
    fn fence(&mut self, thread: u32, wide: bool) {
        let worker = &mut self.worker;
        let behind = worker.clocks.fence(thread);
        let fences = &mut worker.fences;
        if let Some(met) = fences.met.remove(&thread) {
            join(fences.known.entry(thread).or_default(), &met);
        }
        let mut knows = fences.block.clone();
        if let Some(known) = fences.known.get(&thread) {
            join(&mut knows, known);
        }
        let token = Token {
            block: tick_of(self.shared.block_born),
            wide,
            thread,
            behind,
            ordered: tick_of(self.shared.block_ordered),
            knows,
        };
        fences.ready.insert(thread, Rc::new(token));
    }
}

/// `membar` and `fence`.
///
/// # Safety
///
/// Generated code calls it, with its context.
pub unsafe extern "C" fn fence(ctx: *mut Ctx, _site: u32, wide: u32) {
    // SAFETY: by this function's condition; the references end before the fiber is left.
    unsafe {
        let runner = &mut *owner(ctx);
        if !runner.kernel.looks_for_races() {
            return;
        }
        runner.fence((*ctx).thread, wide != 0);
        let clock = runner.worker.clocks.now();
        runner.worker.clocks.stamp(&mut *ctx, clock);
    }
}
