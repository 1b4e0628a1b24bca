//! How this rank comes and goes: epochs begin and end, operations that nobody waits for are finished, and a rank that
//! does not end in a failed world is ended.

use super::*;
use crate::backends::activity::Activity;
use crate::backends::mpi::detector::Ended;
use crate::line::report;

/// How long a rank may have gone on in a world that has `failed` then, if by `now` it has gone on for
/// longer: without a call since the failure; or since it was told, or failed itself. One whose program
/// ended well without having been told, whenever that was, has no part in the failure: its process may
/// go on with what it does after.
fn overdue(
    failed: Instant,
    told: Option<Instant>,
    ended: Option<Ended>,
    patience: Patience,
    now: Instant,
) -> Option<Duration> {
    let (since, limit) = match (told, ended) {
        (Some(knows), _) | (None, Some(Ended::Failed(knows))) => (knows.max(failed), patience.told),
        (None, Some(Ended::Well)) => return None,
        (None, None) => (failed, patience.untold),
    };
    (now.saturating_duration_since(since) > limit).then_some(limit)
}

/// How much this process remembers of what it has done with others: see
/// [`footprint`](crate::backends::mpi::footprint).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Groups of which a handle is left.
    pub groups: usize,
    /// Operations, of this rank or of others, that are not done or whose results nobody has taken.
    pub operations: usize,
    /// Small messages that are being sent or received.
    pub parcels: usize,
    /// Epochs of the world, each the run of a program, of which something is known.
    pub epochs: usize,
}

impl Core {
    /// Begins a program, and returns its epoch, and where it says what this rank does between its calls.
    pub(in crate::backends::mpi) fn begin(
        &mut self,
        config: &LaunchConfig,
    ) -> (u64, Arc<Activity>) {
        self.patience = config.patience();
        let before = self.detector.epoch();
        let groups = &self.groups;
        let epoch = self
            .detector
            .begin(config.deadline, |epoch| groups.has(epoch));
        if epoch != before {
            self.has_failed = false;
            self.slots.begin();
            let is_hopeless = |mine: &Mine| mine.is_abandoned && mine.exchange.is_in_flight();
            self.keeps_data |= self.slots.under_way().any(is_hopeless);
            // Of what is over, only what somebody has a handle on: nobody finishes the rest any more.
            self.slots.retain(|slot| {
                let is_held = |mine: &Mine| !mine.is_abandoned;
                slot.epoch >= epoch || slot.mine.as_ref().is_some_and(is_held)
            });
            self.moving.retain(|key| self.slots.is_under_way(*key));
            self.suspects.retain(|key| self.slots.is_under_way(*key));
        }
        (epoch, self.slots.activity())
    }

    /// There is one more handle on a group, or one less.
    pub(in crate::backends::mpi) fn enter(&mut self, group: u64, epoch: u64, size: usize) {
        self.groups.enter(group, epoch, size);
    }

    pub(in crate::backends::mpi) fn leave(&mut self, group: u64) {
        self.groups.leave(group);
    }

    /// This rank's program of this epoch has ended. Says whether that is the current one: of another one, nothing is noted.
    pub(in crate::backends::mpi) fn end(&mut self, epoch: u64, how: Ended) -> bool {
        let is_current = epoch == self.detector.epoch();
        if is_current {
            self.detector.end(how);
            self.send_letters();
        }
        is_current
    }

    /// An operation of the epoch that this rank has issued, that nobody waits for, and that is not done; and whether it
    /// never will be, since somebody has left without it.
    pub(in crate::backends::mpi) fn abandoned(&self, epoch: u64) -> Option<(Key, bool)> {
        let key = self.slots.abandoned(epoch)?;
        Some((key, self.gone(key, epoch).is_some()))
    }

    /// How often data of an operation has moved.
    pub(in crate::backends::mpi) fn steps(&self, key: Key) -> u64 {
        self.slots.mine(key).map_or(0, |mine| mine.exchange.steps)
    }

    /// This rank has ended, and an operation that it never waited for is not done.
    pub(in crate::backends::mpi) fn fail_abandoned(&mut self, key: Key, epoch: u64) {
        let Some(mine) = self.slots.mine(key) else {
            return;
        };
        let error = Error::Abandoned {
            group: Arc::clone(&mine.group),
            sequence: mine.number,
            rank: self.me(),
            call: mine.exchange.signature.to_string(),
        };
        self.fail(epoch, &error);
    }

    /// How long this rank may have gone on in a failed world, if it has gone on for longer: see
    /// [`overdue`]. What it does after its farewell is of no concern.
    pub(in crate::backends::mpi) fn is_overdue(&self) -> Option<Duration> {
        let (_, failed) = self.fault()?;
        if self.detector.has_said_farewell() {
            return None;
        }
        let epoch = self.detector.epoch();
        let (told, ended) = (self.detector.told(epoch), self.detector.ended(epoch));
        overdue(*failed, told, ended, self.patience, Instant::now())
    }

    /// Says, here and to all others, that this rank's process is about to be ended, after so long.
    pub(in crate::backends::mpi) fn give_up(&mut self, limit: Duration) {
        if let Some((error, _)) = self.fault() {
            let rank = self.me();
            let still = format!("rank {rank} has not ended {limit:?} after the world has failed");
            report(format_args!("{still}, so its process is ended: {error}"));
        }
        self.detector.give_up();
        self.send_letters();
    }

    /// This process is about to end.
    pub(in crate::backends::mpi) fn bid_farewell(&mut self) {
        self.detector.bid_farewell();
        self.send_letters();
    }

    /// When this rank's program was told that the world has failed, if it was.
    pub(in crate::backends::mpi) fn told(&self) -> Option<Instant> {
        self.detector.told(self.detector.epoch())
    }

    /// Whether MPI still has data of an operation. After a failure it keeps it.
    pub(in crate::backends::mpi) fn is_moving(&self) -> bool {
        !self.moving.is_empty() || self.keeps_data
    }

    /// Asks the ranks that have not said farewell for a sign.
    pub(in crate::backends::mpi) fn call_the_roll(&mut self) {
        self.detector.ask(self.detector.epoch());
        self.send_letters();
    }

    /// How much there is in its maps.
    pub(in crate::backends::mpi) fn footprint(&self) -> Footprint {
        Footprint {
            groups: self.groups.len(),
            operations: self.slots.len(),
            parcels: self.outbox.len() + self.inbox.len(),
            epochs: self.detector.epochs(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_a_limit_when_the_world_has_failed() {
        let start = Instant::now();
        let seconds = Duration::from_secs;
        let at = |s: u64| start + seconds(s);
        let patience = Patience {
            untold: seconds(3),
            told: seconds(60),
        };
        let overdue =
            |told: Option<u64>, ended, now| overdue(at(10), told.map(at), ended, patience, at(now));
        let failed = |then| Some(Ended::Failed(at(then)));
        // It makes no call.
        assert_eq!(overdue(None, None, 13), None);
        assert_eq!(overdue(None, None, 14), Some(seconds(3)));
        // It is told, and counts anew; what it returns then makes no difference.
        for ended in [None, Some(Ended::Well), failed(13)] {
            assert_eq!(overdue(Some(12), ended, 72), None);
            assert_eq!(overdue(Some(12), ended, 73), Some(seconds(60)));
        }
        // It has failed itself: before the verdict, or after.
        for (then, limit) in [(9, 70), (11, 71)] {
            assert_eq!(overdue(None, failed(then), limit), None);
            assert_eq!(overdue(None, failed(then), limit + 1), Some(seconds(60)));
        }
        // It has done its part, and the process does something else.
        assert_eq!(overdue(None, Some(Ended::Well), 100_000), None);
    }
}
