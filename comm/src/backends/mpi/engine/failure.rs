//! How the world of this process fails: who differs, who is late, who has left, and how the others
//! hear of it.

use super::*;
use crate::line::report;
use crate::meeting::verdict::{Heard, Verdict, verdict};

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

impl Core {
    /// The failure of the world, if it has failed.
    pub(in crate::backends::mpi) fn fault(&self) -> Option<&(Error, Instant)> {
        self.fault.as_ref()
    }

    /// How long this rank may have gone on in a failed world, if it has gone on for longer: see
    /// [`overdue`]. What it does after its farewell is of no concern.
    pub(in crate::backends::mpi) fn is_overdue(&self) -> Option<Duration> {
        let (_, failed) = self.fault.as_ref()?;
        match self.farewells[self.me()] {
            true => None,
            false => overdue(
                *failed,
                self.told,
                self.ended,
                self.patience,
                Instant::now(),
            ),
        }
    }

    /// Says, here and to all others, that this rank's process is about to be ended, after so long.
    pub(in crate::backends::mpi) fn give_up(&mut self, limit: Duration) {
        if let Some((error, _)) = &self.fault {
            let rank = self.me();
            let still = format!("rank {rank} has not ended {limit:?} after the world has failed");
            report(format_args!("{still}, so its process is ended: {error}"));
        }
        let me = self.me();
        self.doomed[me] = true;
        self.tell_all(Kind::Doomed);
    }

    /// Whether all other processes are about to end, one way or another.
    pub(in crate::backends::mpi) fn all_others_end(&self) -> bool {
        let mut others = self.others();
        others.all(|rank| self.farewells[rank] || self.doomed[rank])
    }

    /// Whether a failure of this rank waits for rank 0's verdict.
    pub(in crate::backends::mpi) fn accuses(&self) -> bool {
        self.accusation.is_some()
    }

    /// The world has failed, as this rank sees it. What counts is what rank 0 has heard first, so
    /// that all ranks get the same error.
    pub(in crate::backends::mpi) fn fail(&mut self, error: Error) {
        if self.fault.is_some() || self.accusation.is_some() {
            return;
        }
        if self.me() == 0 {
            self.proclaim(error);
        } else {
            let mut bytes = vec![Kind::Accusation as u8];
            bytes.extend(fault::encode(self.me(), &error));
            // First: a failure to send it is no second one.
            self.accusation = Some((error, Instant::now()));
            self.post(0, bytes);
        }
    }

    pub(in crate::backends::mpi) fn broken(&mut self, failure: Failure) {
        self.fail(Error::Transport {
            rank: self.me(),
            call: failure.call.into(),
            message: failure.message,
        });
    }

    pub(in crate::backends::mpi) fn proclaim(&mut self, error: Error) {
        let mut bytes = vec![Kind::Verdict as u8];
        bytes.extend(fault::encode(self.me(), &error));
        self.convict(fault::decode(self.me(), &bytes[1..])); // the same value as everybody's
        for rank in self.others() {
            self.post(rank, bytes.clone());
        }
    }

    pub(in crate::backends::mpi) fn convict(&mut self, error: Error) {
        self.accusation = None;
        self.fault.get_or_insert((error, Instant::now()));
    }

    /// Judges what is suspect, where all have come or enough time has passed.
    pub(in crate::backends::mpi) fn judge(&mut self) {
        if let Some((error, since)) = &self.accusation {
            if since.elapsed() > VERDICT {
                let error = error.clone();
                self.proclaim(error);
            }
            return;
        }
        let ripe = |key: &&Key| {
            let slot = self.slots.get(key);
            slot.is_some_and(|slot| {
                let there = slot.arrived.len() + 1;
                let all = slot.mine.as_ref().is_some_and(|m| there == m.ranks.len());
                all || slot.suspect.is_some_and(|s| s.elapsed() > SUSPICION)
            })
        };
        if let Some(&key) = self.suspects.iter().find(ripe)
            && let Some(error) = self.divergence(key)
        {
            self.suspects.clear();
            self.fail(error);
        }
    }

    /// Who is the odd one out, among those that have come.
    pub(in crate::backends::mpi) fn divergence(&self, key: Key) -> Option<Error> {
        let slot = self.slots.get(&key)?;
        let mine = slot.mine.as_ref()?;
        let own = &mine.exchange.signature;
        let mut calls = vec![Heard {
            rank: self.me(),
            index: rank_of(&own.op, mine),
            signature: own,
        }];
        calls.extend(slot.arrived.iter().map(|a| Heard {
            rank: a.rank,
            index: a.header.from,
            signature: &a.header.signature,
        }));
        calls.sort_by_key(|call| call.rank);
        let Verdict {
            odd,
            other,
            difference,
        } = verdict(&calls)?;
        Some(Error::Divergence {
            group: Arc::clone(&mine.group),
            sequence: mine.number,
            rank: calls[odd].rank,
            call: calls[odd].signature.to_string(),
            other: calls[other].rank,
            other_call: calls[other].signature.to_string(),
            difference,
        })
    }

    /// Fails if somebody has left whom the operation still waits for.
    pub(in crate::backends::mpi) fn check_departures(&mut self, key: Key, run: u64) {
        let gone: Vec<usize> = self.missing(key);
        let has_left = |&r: &usize| self.departed[r] > run || self.farewells[r];
        let gone = gone.into_iter().find(has_left);
        let slot = self.slots.get(&key).and_then(|slot| slot.mine.as_ref());
        let (Some(rank), Some(mine)) = (gone, slot) else {
            return;
        };
        let error = Error::RankReturned {
            group: Arc::clone(&mine.group),
            sequence: mine.number,
            rank,
            waiting: self.me(),
            call: mine.exchange.signature.to_string(),
        };
        self.fail(error);
    }

    /// The ranks that an operation of this rank waits for: that have not called, or whose data does
    /// not come.
    pub(in crate::backends::mpi) fn missing(&self, key: Key) -> Vec<usize> {
        let Some(slot) = self.slots.get(&key) else {
            return Vec::new();
        };
        let Some(mine) = &slot.mine else {
            return Vec::new();
        };
        if mine.exchange.has_begun() {
            let lagging = mine.exchange.lagging();
            return lagging.into_iter().map(|peer| mine.ranks[peer]).collect();
        }
        let here = |rank: &usize| slot.arrived.iter().any(|a| a.rank == *rank);
        let others = mine.ranks.iter().enumerate().filter(|(i, _)| *i != mine.me);
        let others = others.map(|(_, &rank)| rank);
        others.filter(|rank| !here(rank)).collect()
    }

    /// Asks those that an operation waits for whether they are there.
    pub(in crate::backends::mpi) fn ping(&mut self, key: Key) {
        for rank in self.missing(key) {
            self.post(rank, vec![Kind::Ping as u8]);
        }
    }

    /// This rank has waited too long. `asked` is when it has last asked the others for a sign.
    pub(in crate::backends::mpi) fn late(
        &mut self,
        key: Key,
        deadline: Duration,
        asked: Option<Instant>,
    ) {
        let missing = self.missing(key);
        let Some(mine) = self.slots.get(&key).and_then(|s| s.mine.as_ref()) else {
            return;
        };
        let note = missing.first().map_or_else(String::new, |&rank| {
            let known = match mine.exchange.has_begun() {
                true => format!("data to or from rank {rank} has stopped on its way"),
                false => self.note(key, rank),
            };
            let sign = match asked {
                Some(asked) if self.heard[rank] >= asked => ", and its process is alive",
                Some(_) => ", and its process gives no sign",
                None => "",
            };
            known + sign
        });
        let error = Error::DeadlineExceeded {
            group: Arc::clone(&mine.group),
            sequence: mine.number,
            rank: self.me(),
            call: mine.exchange.signature.to_string(),
            missing,
            deadline,
            note,
            chain: Vec::new(),
        };
        self.fail(error);
    }

    /// What is known about a rank that has not come.
    pub(in crate::backends::mpi) fn note(&self, key: Key, rank: usize) -> String {
        match key {
            Key::Collective { group, .. } => {
                let issued = self.issued.get(&(group, rank)).copied().unwrap_or(0);
                format!("rank {rank} has issued {issued} collectives of this group")
            }
            Key::Message { .. } => {
                let mine = self.slots.get(&key).and_then(|slot| slot.mine.as_ref());
                let sends =
                    mine.is_some_and(|m| matches!(m.exchange.signature.op, Op::Send { .. }));
                let what = if sends { "recv" } else { "send" };
                format!("rank {rank} has issued no {what} for it")
            }
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
