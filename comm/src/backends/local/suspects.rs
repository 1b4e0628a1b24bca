//! Slots in which ranks disagree, until it is known who differs from most others.

use super::Group;
use super::pool::SlotRef;
use super::world::World;
use crate::error::Error;
use crate::sync::{Mutex, Shared};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A slot in which ranks disagree. Whoever comes by looks at it: who waits, who makes a call, and the launch.
pub(super) struct Suspect {
    slot: SlotRef,
    /// Keeps the slot.
    _group: Shared<Group>,
    name: Arc<str>,
    since: Instant,
}

/// All of a world. More than one only where ranks disagree in several groups at the same time.
#[derive(Default)]
pub(super) struct Suspects(Mutex<Vec<Suspect>>);

impl Suspects {
    /// Notes that two ranks disagree in `slot`. Returns whether that is new.
    pub(super) fn add(&self, slot: SlotRef, group: &Shared<Group>, name: &Arc<str>) -> bool {
        let mut all = self.0.lock();
        let is_new = all.iter().all(|suspect| suspect.slot != slot);
        if is_new {
            all.push(Suspect {
                slot,
                _group: group.clone(),
                name: Arc::clone(name),
                since: Instant::now(),
            });
        }
        is_new
    }

    /// The verdict on the first slot that is ripe for it: all have come, or those who have not have left, or the grace
    /// is over. Else how long to wait for the next one.
    pub(super) fn judge(&self, world: &World, grace: Duration) -> Result<Option<Duration>, Error> {
        let mut due: Option<Duration> = None;
        for suspect in self.0.lock().iter() {
            let left = grace.saturating_sub(suspect.since.elapsed());
            // What a rank posted before it left is visible to whoever has seen that it left, and read below.
            let is_ripe = left.is_zero() || suspect.slot.missing().all(|rank| world.is_gone(rank));
            if is_ripe && let Some(found) = suspect.slot.verdict() {
                return Err(Error::Divergence {
                    group: Arc::clone(&suspect.name),
                    sequence: suspect.slot.sequence(),
                    rank: found.rank,
                    call: found.call,
                    other: found.other,
                    other_call: found.other_call,
                    difference: found.difference,
                });
            }
            due = Some(due.map_or(left, |due| due.min(left)));
        }
        Ok(due)
    }
}
