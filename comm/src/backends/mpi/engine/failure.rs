//! What this rank finds wrong with the operations of others and its own: who differs, who is late, who has left. What
//! comes of it the [`Detector`] says.

use super::*;
use crate::backends::mpi::detector::{Finding, Watch};
use crate::meeting::verdict::{Heard, Verdict, verdict};

impl Core {
    /// The failure of the current epoch, and since when, if it has failed.
    pub(in crate::backends::mpi) fn fault(&self) -> Option<&(Error, Instant)> {
        self.detector.fault(self.detector.epoch())
    }

    /// This rank has found this to be wrong with the current epoch.
    pub(super) fn accuse(&mut self, error: &Error) {
        self.fail(self.detector.epoch(), error);
    }

    /// An epoch has failed, as this rank sees it. What counts is the verdict.
    pub(in crate::backends::mpi) fn fail(&mut self, epoch: u64, error: &Error) {
        self.detector.accuse(Instant::now(), epoch, error);
    }

    pub(super) fn broken(&mut self, failure: Failure) {
        self.accuse(&Error::Transport {
            rank: self.me(),
            call: failure.call.into(),
            message: failure.message,
        });
    }

    /// Judges what is suspect, where all have come or enough time has passed for the others to come.
    pub(super) fn judge(&mut self) {
        let ripe = |key: &&Key| {
            let slot = self.slots.get(**key);
            slot.is_some_and(|slot| {
                let there = slot.arrived.len() + 1;
                let all = slot.mine.as_ref().is_some_and(|m| there == m.ranks.len());
                let margin = self.detector.margin();
                all || slot.suspect.is_some_and(|s| s.elapsed() > margin)
            })
        };
        if let Some(&key) = self.suspects.iter().find(ripe)
            && let Some((epoch, error)) = self.divergence(key)
        {
            self.suspects.clear();
            self.fail(epoch, &error);
        }
    }

    /// Who is the odd one out, among those that have come, and in which epoch.
    fn divergence(&self, key: Key) -> Option<(u64, Error)> {
        let slot = self.slots.get(key)?;
        let mine = slot.mine.as_ref()?;
        let mut calls = vec![Heard {
            rank: self.me(),
            index: mine.index(),
            signature: &mine.exchange.signature,
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
        let error = Error::Divergence {
            group: Arc::clone(&mine.group),
            sequence: mine.number,
            rank: calls[odd].rank,
            call: calls[odd].signature.to_string(),
            other: calls[other].rank,
            other_call: calls[other].signature.to_string(),
            difference,
        };
        Some((slot.epoch, error))
    }

    /// A look at an operation that a thread waits for, and at whom it waits for. Returns how often its data has moved so
    /// far.
    pub(in crate::backends::mpi) fn watch(
        &mut self,
        now: Instant,
        key: Key,
        epoch: u64,
        deadline: Duration,
        watch: &mut Option<Watch>,
    ) {
        let Some(mine) = self.slots.mine(key) else {
            return;
        };
        let steps = mine.exchange.steps;
        if !mine.exchange.has_begun {
            self.check_departures(key, epoch);
        }
        let watch = watch.get_or_insert_with(|| {
            self.slots.begin_wait(key);
            Watch::start(now, deadline, steps)
        });
        // Who is late by what has been read may have come behind it.
        if !self.has_read_all || self.detector.accuses(epoch) {
            return;
        }
        let (slots, me) = (&self.slots, self.wire.rank);
        let own = || slots.standing(me);
        match watch.look(now, steps, epoch, &mut self.detector, own) {
            Finding::Nothing => {}
            Finding::Late(round) => self.late(key, epoch, deadline, round),
            Finding::Deadlock(chain) => self.fail(epoch, &Error::Deadlock { chain }),
        }
    }

    /// The thread waits no more.
    pub(in crate::backends::mpi) fn end_watch(&mut self, key: Key, watch: &mut Option<Watch>) {
        if watch.take().is_some() {
            self.slots.end_wait(key);
        }
    }

    /// Fails if somebody has left whom the operation still waits for.
    fn check_departures(&mut self, key: Key, epoch: u64) {
        let (Some(rank), Some(mine)) = (self.gone(key, epoch), self.slots.mine(key)) else {
            return;
        };
        let error = Error::RankReturned {
            group: Arc::clone(&mine.group),
            sequence: mine.number,
            rank,
            waiting: self.me(),
            call: mine.exchange.signature.to_string(),
        };
        self.fail(epoch, &error);
    }

    /// A rank that has left, and that an operation waits for.
    pub(super) fn gone(&self, key: Key, epoch: u64) -> Option<usize> {
        if !self.detector.has_anybody_left(epoch) {
            return None;
        }
        let mut missing = self.slots.missing(key).into_iter();
        missing.find(|&rank| self.detector.has_left(rank, epoch))
    }

    /// This rank has waited too long. All were asked where they stand, by the question `round`.
    fn late(&mut self, key: Key, epoch: u64, deadline: Duration, round: u32) {
        let missing = self.slots.missing(key);
        let Some(mine) = self.slots.mine(key) else {
            return;
        };
        let note =
            missing
                .first()
                .map_or_else(String::new, |&rank| match mine.exchange.has_begun {
                    true => format!("data to or from rank {rank} has stopped on its way"),
                    false => self.note(key, mine, rank),
                });
        let own = self.slots.standing(self.me());
        let error = Error::DeadlineExceeded {
            group: Arc::clone(&mine.group),
            sequence: mine.number,
            rank: self.me(),
            call: mine.exchange.signature.to_string(),
            chain: self.detector.chain(&missing, epoch, round, &own),
            missing,
            deadline,
            note,
        };
        self.fail(epoch, &error);
    }

    /// What is known about a rank of the world that has not come.
    fn note(&self, key: Key, mine: &Mine, rank: usize) -> String {
        match key {
            Key::Collective { group, .. } => {
                let index = mine.ranks.iter().position(|&r| r == rank);
                let issued = index.map_or(0, |index| self.groups.issued(group, index));
                format!("rank {rank} has issued {issued} collectives of this group")
            }
            Key::Message { .. } => {
                let sends = matches!(mine.exchange.signature.op, Op::Send { .. });
                let what = if sends { "recv" } else { "send" };
                format!("rank {rank} has issued no {what} for it")
            }
        }
    }
}
