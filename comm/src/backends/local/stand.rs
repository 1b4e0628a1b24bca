//! Where the ranks of a world stand, for others to see: in which waits they sleep, and for whom.

use super::pool::SlotRef;
use super::slot::State;
use super::world::World;
use crate::backends::watcher;
use crate::error::{Error, Link, Stands};
use crate::meeting::late;
use crate::sync::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The waits in which the threads of one rank sleep. Written when a thread goes to sleep for the first time in a wait,
/// and when the wait ends.
#[derive(Default)]
pub(super) struct Standings(Mutex<Waits>);

#[derive(Default)]
struct Waits {
    /// How many there have been.
    count: u64,
    all: Vec<Wait>,
}

struct Wait {
    /// Its number among all waits of the rank.
    number: u64,
    /// Whether a thread of the program sleeps in it, and not one of an engine.
    is_program: bool,
    slot: SlotRef,
    cell: usize,
    group: Arc<str>,
}

/// A wait that others see, until this is dropped.
pub(super) struct Standing<'a> {
    standings: &'a Standings,
    number: u64,
}

impl Drop for Standing<'_> {
    fn drop(&mut self) {
        let mut waits = self.standings.0.lock();
        waits.all.retain(|wait| wait.number != self.number);
    }
}

impl Standings {
    /// Says that a thread of this rank sleeps in this slot, where the rank has posted in this cell. To be taken back
    /// before the rank takes its result (guarantee 10 of [`Slot`](super::slot::Slot)).
    pub(super) fn stand(&self, slot: SlotRef, cell: usize, group: &Arc<str>) -> Standing<'_> {
        let mut waits = self.0.lock();
        waits.count += 1;
        let number = waits.count;
        waits.all.push(Wait {
            number,
            is_program: watcher::is_program(),
            slot,
            cell,
            group: Arc::clone(group),
        });
        Standing {
            standings: self,
            number,
        }
    }

    /// The first wait in which somebody is missing: of the program, or else of an engine's thread, such as one that waits
    /// for what the other ranks say of a call on cards, whose result the program waits for in no call.
    fn seen(&self) -> Option<Stands> {
        // The slots are read under the lock (guarantee 10).
        let waits = self.0.lock();
        let of_program = waits.all.iter().filter(|wait| wait.is_program);
        let of_engines = waits.all.iter().filter(|wait| !wait.is_program);
        of_program.chain(of_engines).find_map(|wait| {
            let missing: Vec<usize> = wait.slot.missing().collect();
            (!missing.is_empty()).then(|| Stands::Waits {
                call: wait.slot.describe(wait.cell),
                group: wait.group.to_string(),
                sequence: wait.slot.sequence(),
                missing,
            })
        })
    }

    /// Whether no thread of the program sleeps.
    fn is_empty(&self) -> bool {
        !self.0.lock().all.iter().any(|wait| wait.is_program)
    }

    /// The program's wait, where it is in one alone and others are to come to it; of the missing those that `matter`.
    fn only(&self, matter: impl Fn(usize) -> bool) -> Option<(Stood, Vec<usize>)> {
        // As above.
        let waits = self.0.lock();
        let mut of_program = waits.all.iter().filter(|wait| wait.is_program);
        let (Some(wait), None) = (of_program.next(), of_program.next()) else {
            return None;
        };
        if wait.slot.state() != State::Filling {
            return None;
        }
        let mut lacks = 0;
        let missing = wait.slot.missing().inspect(|_| lacks += 1);
        let missing: Vec<usize> = missing.filter(|rank| matter(*rank)).collect();
        let number = wait.number;
        Some((Stood { number, lacks }, missing))
    }
}

/// A wait, as it was seen: in one slot nobody who has come goes away, so the same number of missing are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stood {
    number: u64,
    lacks: usize,
}

/// What was seen of all ranks when it was last looked for circles of waits.
#[derive(Default)]
pub(super) struct Looks(Mutex<Look>);

#[derive(Default)]
struct Look {
    last: Option<Instant>,
    stood: Vec<Option<Stood>>,
}

impl World {
    /// Where a rank stands.
    pub(super) fn stands(&self, rank: usize) -> Stands {
        match self.is_gone(rank) {
            true => Stands::Ended,
            false => {
                let rank = self.rank(rank);
                rank.standings
                    .seen()
                    .unwrap_or_else(|| rank.activity.stands())
            }
        }
    }

    /// Where the first of the `missing` stands, then whom that one waits for, and so on.
    pub(super) fn chain(&self, missing: &[usize]) -> Vec<Link> {
        late::chain(missing, |rank| self.stands(rank))
    }

    /// Looks whether ranks wait for each other in a circle, unless somebody has looked within the `pause`.
    ///
    /// Only such waits count as were seen by the look before, too, with as many missing, of ranks all of whose calls
    /// have come from one thread. Then no circle is an illusion, though the ranks are read one after the other: between
    /// the two looks there is a moment at which each rank of the circle sleeps in its wait, and lacks the next one; and
    /// a rank that sleeps, and has no other thread, posts nothing until the one comes for which it waits.
    pub(super) fn circle(&self, pause: Duration) -> Option<Error> {
        let mut look = self.looks.0.lock();
        let is_soon = |last: Instant| last.elapsed() < pause;
        if look.last.is_some_and(is_soon) {
            return None;
        }
        look.last = Some(Instant::now());
        let may_stand = |rank: usize| {
            let state = self.rank(rank);
            state.mark.is_of_one_thread() && !self.is_gone(rank) && !state.standings.is_empty()
        };
        let size = self.size();
        let may_stand: Vec<bool> = (0..size).map(may_stand).collect();
        // Of whom nobody can wait in a circle is left out: where all wait for one that computes, nothing is left.
        let wait = |rank: usize| match may_stand[rank] {
            true => self.rank(rank).standings.only(|rank| may_stand[rank]),
            false => None,
        };
        let waits: Vec<Option<(Stood, Vec<usize>)>> = (0..size).map(wait).collect();
        let stood = waits.iter().map(|wait| Some(wait.as_ref()?.0)).collect();
        let before = std::mem::replace(&mut look.stood, stood);
        let stands = waits
            .into_iter()
            .enumerate()
            .map(|(rank, wait)| match wait {
                Some((stood, missing)) if before.get(rank) == Some(&Some(stood)) => Stands::Waits {
                    call: String::new(),
                    group: String::new(),
                    sequence: 0,
                    missing,
                },
                _ => Stands::RUNS,
            });
        let stands: Vec<Stands> = stands.collect();
        let chain = late::circle(&stands)?.into_iter().map(|link| Link {
            rank: link.rank,
            stands: self.stands(link.rank), // in words, with all that are missing
        });
        Some(Error::Deadlock {
            chain: chain.collect(),
        })
    }
}
