//! [`Detector`]: how the processes of a world agree that it has failed, and on the one error of it. Pure: what was
//! heard and what time it is come in, letters to the others come out, so that a test can play all of it.
//!
//! Every epoch of the world, which is a program that all ranks run, fails by itself. The rules:
//!
//! - A rank that finds something wrong *accuses*, in a letter to rank 0, and waits. Rank 0 makes the first accusation
//!   that it hears its *verdict*, and tells all.
//! - Where no verdict comes within half of the margin, the accuser asks all ranks whether they are there. After another
//!   half it accuses before the lowest rank below itself that has answered; where none has, it gives the verdict itself.
//!   A rank before which another one accuses does the same, beginning with the question.
//! - Whoever knows the verdict answers a question with it, and one who has asked hands it on to all: so the verdict of a
//!   rank that died while it told the others is not lost.
//! - A rank says that its program has ended, and farewell, only when what it accuses has its verdict. What others accuse
//!   then comes to rank 0 on another way, and might overtake what the rank itself had to say.
//! - A rank that has not looked for longer than a quarter of the margin, since it was stopped or had no core, gives no
//!   verdict before it has listened for half of the margin: another one may have given it meanwhile.
//!
//! What holds by them (tests cite these words), where a letter takes no longer than an eighth of the margin between
//! processes that run, however long processes are stopped, whichever die:
//!
//! - AGREED: all live ranks get one and the same error;
//! - ALIVE: nobody who has answered since it was asked is called silent;
//! - OWN WORDS: nobody who has failed, and lives until the verdict, is said to have returned;
//! - IN TIME: no wait is longer than the deadline, two looks, and twice the margin.

mod watch;

#[cfg(test)]
mod simulator;
#[cfg(test)]
mod tests;

pub(super) use self::watch::{Finding, Watch};

use super::word::{Letter, Standing, Word};
use crate::error::{Error, Link, Stands};
use crate::meeting::{fault, late};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How a rank's program ended.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ended {
    /// It returned well; what the process does then is its affair.
    Well,
    /// By a failure of its own, then.
    Failed(Instant),
}

/// What is known of a process.
struct Peer {
    /// The number of epochs whose programs it has ended.
    ended: u64,
    farewell: bool,
    doomed: bool,
    heard: Instant,
    /// Its last answer, and the number of the question.
    answer: Option<(u32, Standing)>,
}

/// What is known of an epoch.
#[derive(Default)]
struct Epoch {
    fault: Option<(Error, Instant)>,
    accusation: Option<Accusation>,
    /// When this rank's program was given the failure.
    told: Option<Instant>,
    ended: Option<Ended>,
    /// Whether the others are to be told, with the verdict, that this rank's program has ended.
    departs: bool,
}

/// A failure that waits for a verdict.
struct Accusation {
    error: Error,
    /// Before whom it was made.
    judge: usize,
    /// When all are asked, unless the verdict has come.
    due: Instant,
    /// The question, and when it was asked.
    asked: Option<(u32, Instant)>,
}

pub(super) struct Detector {
    me: usize,
    epoch: u64,
    margin: Duration,
    epochs: BTreeMap<u64, Epoch>,
    peers: Box<[Peer]>,
    /// The number of the last question.
    round: u32,
    looked: Option<Instant>,
    /// When this process went on, after it had not looked for long.
    resumed: Option<Instant>,
    /// Whether it is about to end, and says so when no failure waits for its verdict any more.
    leaves: bool,
    letters: Vec<Letter>,
}

/// The shortest margin: the threads that listen sleep for up to 5 ms.
const LEAST_MARGIN: Duration = Duration::from_millis(100);

impl Detector {
    pub(super) fn new(me: usize, size: usize, now: Instant) -> Detector {
        let peer = |_| Peer {
            ended: 0,
            farewell: false,
            doomed: false,
            heard: now,
            answer: None,
        };
        Detector {
            me,
            epoch: 0,
            margin: LEAST_MARGIN,
            epochs: BTreeMap::new(),
            peers: (0..size).map(peer).collect(),
            round: 0,
            looked: None,
            resumed: None,
            leaves: false,
            letters: Vec::new(),
        }
    }

    pub(super) fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let me = self.me;
        (0..self.peers.len()).filter(move |&rank| rank != me)
    }

    /// Begins an epoch with this deadline: the next one, if this rank has ended the current one. What is known of earlier
    /// ones is forgotten where it `is_used` no more and nobody can ask for it.
    pub(super) fn begin(&mut self, deadline: Duration, is_used: impl Fn(u64) -> bool) -> u64 {
        if self
            .epochs
            .get(&self.epoch)
            .is_some_and(|e| e.ended.is_some())
        {
            self.epoch += 1;
        }
        self.margin = late::grace(deadline).max(LEAST_MARGIN);
        let (current, peers) = (self.epoch, &self.peers);
        self.epochs.retain(|&number, epoch| {
            let is_over = epoch.fault.is_some() || peers.iter().all(|p| p.ended > number);
            number >= current || is_used(number) || !is_over
        });
        current
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// How long ranks that differ are left alone until the others have come, and for how long a verdict is waited for.
    pub(super) fn margin(&self) -> Duration {
        self.margin
    }

    /// The failure of an epoch, if it has failed, and since when.
    pub(super) fn fault(&self, epoch: u64) -> Option<&(Error, Instant)> {
        self.epochs.get(&epoch)?.fault.as_ref()
    }

    /// The failure of an epoch, of which this rank's program is told with it.
    pub(super) fn tell(&mut self, now: Instant, epoch: u64) -> Option<Error> {
        // What never failed is looked up only: this is every call's way.
        let epoch = self.epochs.get_mut(&epoch)?;
        let (error, _) = epoch.fault.as_ref()?;
        epoch.told.get_or_insert(now);
        Some(error.clone())
    }

    /// When the program of this epoch was told of its failure.
    pub(super) fn told(&self, epoch: u64) -> Option<Instant> {
        self.epochs.get(&epoch)?.told
    }

    /// How this rank's program of this epoch ended, if it has.
    pub(super) fn ended(&self, epoch: u64) -> Option<Ended> {
        self.epochs.get(&epoch)?.ended
    }

    /// Whether a failure of the epoch waits for its verdict.
    pub(super) fn accuses(&self, epoch: u64) -> bool {
        let epoch = self.epochs.get(&epoch);
        epoch.is_some_and(|epoch| epoch.accusation.is_some())
    }

    /// Whether a failure of any epoch waits for its verdict.
    pub(super) fn is_waiting(&self) -> bool {
        self.epochs.values().any(|epoch| epoch.accusation.is_some())
    }

    /// Whether a rank issues nothing more in this epoch.
    pub(super) fn has_left(&self, rank: usize, epoch: u64) -> bool {
        self.peers[rank].ended > epoch || self.peers[rank].farewell
    }

    /// Whether some rank issues nothing more in this epoch.
    pub(super) fn has_anybody_left(&self, epoch: u64) -> bool {
        (0..self.peers.len()).any(|rank| self.has_left(rank, epoch))
    }

    /// Whether this process has said farewell.
    pub(super) fn has_said_farewell(&self) -> bool {
        self.peers[self.me].farewell
    }

    /// Whether all processes are about to end in order.
    pub(super) fn all_say_farewell(&self) -> bool {
        self.peers.iter().all(|peer| peer.farewell)
    }

    /// Whether all other processes are about to end, one way or another.
    pub(super) fn all_others_end(&self) -> bool {
        let mut others = self.others().map(|rank| &self.peers[rank]);
        others.all(|peer| peer.farewell || peer.doomed)
    }

    /// A rank that has not said farewell, nor anything else since `then`.
    pub(super) fn silent_since(&self, then: Instant) -> Option<usize> {
        let mut others = self.others();
        others.find(|&rank| !self.peers[rank].farewell && self.peers[rank].heard < then)
    }

    /// Something has come from this rank.
    pub(super) fn hear(&mut self, now: Instant, from: usize) {
        self.peers[from].heard = now;
    }

    /// Takes a word of another rank. `standing` tells where this one stands in the current epoch.
    pub(super) fn receive(
        &mut self,
        now: Instant,
        from: usize,
        epoch: u64,
        word: Word,
        standing: impl FnOnce() -> Standing,
    ) {
        let fault = self.fault(epoch).map(|(error, _)| error.clone());
        let peer = &mut self.peers[from];
        match (word, fault) {
            (Word::Verdict(error), _) => self.convict(now, epoch, error, from),
            (Word::Accusation(_) | Word::Ask(_), Some(error)) => {
                self.post(from, epoch, Word::Verdict(error));
            }
            (Word::Accusation(error), None) => self.take_up(epoch, error, now),
            (Word::Ask(round), None) => {
                let has_ended = self.ended(epoch).is_some() || epoch < self.epoch;
                let standing = match epoch > self.epoch {
                    _ if has_ended => Standing::ENDED,
                    true => Standing::RUNS,
                    false => standing(),
                };
                self.post(from, epoch, Word::Answer(round, standing));
            }
            (Word::Answer(round, standing), _) => peer.answer = Some((round, standing)),
            (Word::Departed, _) => peer.ended = peer.ended.max(epoch + 1),
            (Word::Farewell, _) => peer.farewell = true,
            (Word::Doomed, _) => peer.doomed = true,
        }
    }

    /// This rank has found this to be wrong. What counts is the verdict.
    pub(super) fn accuse(&mut self, now: Instant, epoch: u64, error: &Error) {
        if self.fault(epoch).is_some() || self.accuses(epoch) {
            return;
        }
        // The same value as everybody's.
        let error = fault::decode(self.me, &fault::encode(self.me, error));
        if self.me != 0 {
            self.post(0, epoch, Word::Accusation(error.clone()));
        }
        self.take_up(epoch, error, now + self.margin / 2);
    }

    /// An accusation, about which all are asked when it is `due`.
    fn take_up(&mut self, epoch: u64, error: Error, due: Instant) {
        let epoch = self.epochs.entry(epoch).or_default();
        let accusation = epoch.accusation.get_or_insert(Accusation {
            error,
            judge: 0,
            due,
            asked: None,
        });
        accusation.due = accusation.due.min(due);
    }

    /// Looks at what waits for a verdict. Called often, and only when all has been taken that has come.
    pub(super) fn look(&mut self, now: Instant) {
        let passed = |since: Instant| now.saturating_duration_since(since);
        if self
            .looked
            .is_some_and(|last| passed(last) > self.margin / 4)
        {
            self.resumed = Some(now);
        }
        self.looked = Some(now);
        if !self.is_waiting() {
            return;
        }
        let waiting = self.epochs.iter().filter(|(_, e)| e.accusation.is_some());
        for epoch in waiting.map(|(&number, _)| number).collect::<Vec<_>>() {
            self.judge(now, epoch);
        }
    }

    fn judge(&mut self, now: Instant, number: u64) {
        let half = self.margin / 2;
        let resumed = self.resumed;
        let round = self.round.wrapping_add(1);
        let peers = &self.peers;
        let Some(epoch) = self.epochs.get_mut(&number) else {
            return;
        };
        let Some(accusation) = &mut epoch.accusation else {
            return;
        };
        let passed = |since: Instant| now.saturating_duration_since(since);
        match accusation.asked {
            _ if self.me == 0 => {
                if resumed.is_none_or(|then| passed(then) >= half) {
                    self.proclaim(now, number);
                }
            }
            None if now < accusation.due => {}
            None => {
                accusation.asked = Some((round, now));
                // Those too that have said farewell: they are there still, and may be the only ones to know the verdict.
                self.ask_those(number, |_| true);
            }
            Some((_, then)) if passed(then) < half => {}
            Some((round, then)) => {
                let answered = |&rank: &usize| peers[rank].has_answered(round).is_some();
                let lower = (0..self.me).find(answered);
                match lower {
                    Some(judge) => {
                        (accusation.due, accusation.asked) = (now + half, None);
                        if judge != accusation.judge {
                            accusation.judge = judge;
                            let word = Word::Accusation(accusation.error.clone());
                            self.post(judge, number, word);
                        }
                    }
                    // What those have said who ran meanwhile is not all in.
                    None if resumed.is_some_and(|resumed| resumed > then) => {
                        (accusation.due, accusation.asked) = (now, None);
                    }
                    None => self.proclaim(now, number),
                }
            }
        }
    }

    fn proclaim(&mut self, now: Instant, epoch: u64) {
        let accusation = self
            .epochs
            .get_mut(&epoch)
            .and_then(|e| e.accusation.take());
        if let Some(Accusation { error, .. }) = accusation {
            self.convict(now, epoch, error.clone(), self.me);
            self.tell_all(epoch, &Word::Verdict(error));
        }
    }

    fn convict(&mut self, now: Instant, number: u64, error: Error, from: usize) {
        let epoch = self.epochs.entry(number).or_default();
        if epoch.fault.is_some() {
            return;
        }
        epoch.fault = Some((error.clone(), now));
        let departs = std::mem::take(&mut epoch.departs);
        let accusation = epoch.accusation.take();
        if accusation.is_some_and(|accusation| accusation.asked.is_some()) {
            for rank in self.others().filter(|&rank| rank != from) {
                self.post(rank, number, Word::Verdict(error.clone()));
            }
        }
        if departs {
            self.tell_all(number, &Word::Departed);
        }
        if self.leaves {
            self.bid_farewell();
        }
    }

    /// This rank's program has ended: it issues nothing more in the current epoch. The others are told at once, or when what
    /// this rank accuses has its verdict.
    pub(super) fn end(&mut self, how: Ended) {
        let number = self.epoch;
        let epoch = self.epochs.entry(number).or_default();
        match how {
            Ended::Well => {
                epoch.ended.get_or_insert(how);
                epoch.departs = epoch.accusation.is_some();
                let waits = epoch.departs;
                self.peers[self.me].ended = number + 1;
                if !waits {
                    self.tell_all(number, &Word::Departed);
                }
            }
            Ended::Failed(_) => epoch.ended = Some(how),
        }
    }

    /// This process is about to end in order, and says so: at once, or when what it accuses has its verdict.
    pub(super) fn bid_farewell(&mut self) {
        self.leaves = self.is_waiting();
        if !self.leaves && !self.has_said_farewell() {
            self.peers[self.me].farewell = true;
            self.tell_all(self.epoch, &Word::Farewell);
        }
    }

    /// This process is about to be ended by force.
    pub(super) fn give_up(&mut self) {
        self.peers[self.me].doomed = true;
        self.tell_all(self.epoch, &Word::Doomed);
    }

    /// Asks all who have not said farewell where they stand. Returns the number of the question.
    pub(super) fn ask(&mut self, epoch: u64) -> u32 {
        self.ask_those(epoch, |peer| !peer.farewell)
    }

    fn ask_those(&mut self, epoch: u64, wanted: impl Fn(&Peer) -> bool) -> u32 {
        self.round = self.round.wrapping_add(1);
        let round = self.round;
        for rank in self.others() {
            if wanted(&self.peers[rank]) {
                self.post(rank, epoch, Word::Ask(round));
            }
        }
        round
    }

    /// Where a rank stands in an epoch, as it has answered the question of this number or a later one.
    pub(super) fn stands(&self, rank: usize, epoch: u64, round: u32, own: &Standing) -> Standing {
        match self.peers[rank].has_answered(round) {
            _ if rank == self.me => own.clone(),
            Some(standing) => standing.clone(),
            None if self.has_left(rank, epoch) => Standing::ENDED,
            None => Standing::SILENT,
        }
    }

    /// Where the first of the missing stands, then whom that one waits for, and so on.
    pub(super) fn chain(
        &self,
        missing: &[usize],
        epoch: u64,
        round: u32,
        own: &Standing,
    ) -> Vec<Link> {
        late::chain(missing, |rank| self.stands(rank, epoch, round, own).stands)
    }

    /// Ranks that wait for each other, as they have answered this question, and that nothing can free.
    fn circle(&self, epoch: u64, round: u32, own: &Standing) -> Option<Vec<Link>> {
        let stands = |rank| match self.stands(rank, epoch, round, own) {
            Standing {
                stands,
                is_fixed: true,
            } => stands,
            _ => Stands::RUNS,
        };
        let all: Vec<Stands> = (0..self.peers.len()).map(stands).collect();
        late::circle(&all)
    }

    fn tell_all(&mut self, epoch: u64, word: &Word) {
        for rank in self.others() {
            self.post(rank, epoch, word.clone());
        }
    }

    fn post(&mut self, to: usize, epoch: u64, word: Word) {
        self.letters.push(Letter { to, epoch, word });
    }

    /// What is to be sent, of each receiver in this order.
    pub(super) fn letters(&mut self) -> Vec<Letter> {
        std::mem::take(&mut self.letters)
    }

    /// How many epochs it knows something of.
    pub(super) fn epochs(&self) -> usize {
        self.epochs.len()
    }
}

impl Peer {
    /// Its answer to the question of this number, or to a later one.
    fn has_answered(&self, round: u32) -> Option<&Standing> {
        let (answered, standing) = self.answer.as_ref()?;
        (answered.wrapping_sub(round) < u32::MAX / 2).then_some(standing)
    }
}
