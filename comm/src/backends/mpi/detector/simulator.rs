//! A simulator of detectors: worlds of a few ranks in which letters are late, ranks stop, die, fail, end early or compute
//! for long, and several accuse at the same time. A seed replays any of them.

use super::*;
use crate::backends::mpi::word::{Letter, Standing, Word};
use std::collections::{HashMap, VecDeque};

pub(super) const DEADLINE: Duration = Duration::from_millis(1600);
/// A process that runs looks this often, in milliseconds.
pub(super) const LOOK: u64 = 4;
/// No letter takes longer: less than an eighth of the margin, which is 160 ms.
const LONGEST: u64 = 18;
/// When the play is over.
pub(super) const END: u64 = 12_000;
/// Operations that every rank issues and waits for, one after the other.
const OPERATIONS: u64 = 3;

/// A generator of random numbers: xorshift, 64 bits.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `n`.
    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// What a rank does beside the program of all.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Trouble {
    None,
    /// It computes from this operation on, and looks.
    Computes(u64),
    /// It ends its program before this operation.
    Returns(u64),
    /// It fails at this time.
    Fails(u64),
    /// It ends the world at this time, and its program then ends well.
    Aborts(u64),
    /// Its process dies at this time; of what it is about to say then, so many letters leave.
    Dies(u64, usize),
    /// Its process dies while it tells a verdict, so many letters of which leave.
    DiesTelling(usize),
}

/// What is carried: a word of the detector, or the call of an operation.
enum Parcel {
    Word(u64, Word),
    Call(u64),
}

pub(super) struct Rank {
    detector: Detector,
    trouble: Trouble,
    /// It is stopped from the one time to the other.
    pub(super) stopped: (u64, u64),
    /// What it does next, and when it may.
    operation: u64,
    ready: u64,
    pub(super) waits: Option<(Watch, u64)>,
    calls: Vec<u64>,
    pub(super) is_dead: bool,
    has_ended: bool,
    /// When it got its failure, and how long it had waited.
    pub(super) failed: Option<(Error, u64)>,
}

pub(super) struct World {
    start: Instant,
    random: Random,
    pub(super) ranks: Vec<Rank>,
    /// In transit: by sender and receiver, in order, with the time of arrival.
    wires: HashMap<(usize, usize), VecDeque<(u64, Parcel)>>,
    /// The longest that a letter takes.
    longest: u64,
}

fn late(rank: usize, operation: u64, missing: Vec<usize>, chain: Vec<Link>) -> Error {
    Error::DeadlineExceeded {
        group: "world".into(),
        sequence: operation,
        rank,
        call: "barrier".into(),
        missing,
        deadline: DEADLINE,
        note: String::new(),
        chain,
    }
}

impl World {
    pub(super) fn new(seed: u64) -> World {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        for _ in 0..8 {
            random.next();
        }
        let start = Instant::now();
        let size = 2 + random.below(5) as usize;
        let has_stops = random.one_in(2);
        let is_tight = random.one_in(2);
        let ranks = (0..size).map(|me| {
            let mut detector = Detector::new(me, size, start);
            detector.begin(DEADLINE, |_| true);
            let trouble = match random.below(9) {
                _ if is_tight && random.one_in(2) => Trouble::Fails(100 + random.below(300)),
                0 => Trouble::Computes(random.below(OPERATIONS)),
                1 => Trouble::Returns(random.below(OPERATIONS)),
                2 if random.one_in(2) => Trouble::Aborts(100 + random.below(60)),
                2 => Trouble::Fails(100 + random.below(60)),
                3 if random.one_in(2) => Trouble::Aborts(random.below(600)),
                3 => Trouble::Fails(random.below(600)),
                4 if !has_stops && random.one_in(2) => {
                    Trouble::DiesTelling(random.below(6) as usize)
                }
                4 if has_stops => Trouble::Dies(random.below(2500), usize::MAX),
                4 => Trouble::Dies(random.below(2500), random.below(8) as usize),
                _ => Trouble::None,
            };
            let stopped = match has_stops && random.one_in(3) {
                // While others decide about an early failure; or at any time.
                true if is_tight => {
                    let from = 60 + random.below(200);
                    (from, from + random.below(500))
                }
                true => {
                    let from = random.below(3000);
                    (from, from + random.below(4000))
                }
                false => (0, 0),
            };
            Rank {
                detector,
                trouble,
                stopped,
                operation: 0,
                ready: random.below(300),
                waits: None,
                calls: vec![0; size],
                is_dead: false,
                has_ended: false,
                failed: None,
            }
        });
        let ranks = ranks.collect();
        let longest = 1 + random.below(LONGEST);
        World {
            start,
            random,
            ranks,
            wires: HashMap::new(),
            longest,
        }
    }

    fn send(&mut self, now: u64, from: usize, to: usize, parcel: Parcel) {
        let takes = 1 + self.random.below(self.longest);
        let wire = self.wires.entry((from, to)).or_default();
        // In order within a pair, in any order between pairs.
        let before = wire.back().map_or(0, |(at, _)| *at);
        wire.push_back((before.max(now + takes), parcel));
    }

    /// What has come, in the order of arrival.
    fn arrived(&mut self, now: u64, to: usize) -> Vec<(usize, Parcel)> {
        let mut all = Vec::new();
        for from in 0..self.ranks.len() {
            let Some(wire) = self.wires.get_mut(&(from, to)) else {
                continue;
            };
            while wire.front().is_some_and(|(at, _)| *at <= now) {
                all.extend(wire.pop_front().map(|(at, parcel)| (at, from, parcel)));
            }
        }
        all.sort_by_key(|(at, from, _)| (*at, *from));
        all.into_iter()
            .map(|(_, from, parcel)| (from, parcel))
            .collect()
    }

    /// Plays it to its end.
    pub(super) fn run(&mut self) {
        for now in 0..END {
            let is_over = |rank: &Rank| rank.is_dead || rank.has_ended && rank.failed.is_some();
            if self.ranks.iter().all(is_over) {
                return;
            }
            for me in 0..self.ranks.len() {
                // Ranks look at different times.
                if (now + me as u64).is_multiple_of(LOOK) {
                    self.step(now, me);
                }
            }
        }
    }

    fn step(&mut self, now: u64, me: usize) {
        let at = self.start + Duration::from_millis(now);
        let size = self.ranks.len();
        let rank = &self.ranks[me];
        if rank.is_dead || (rank.stopped.0..rank.stopped.1).contains(&now) {
            return;
        }
        for (from, parcel) in self.arrived(now, me) {
            let rank = &mut self.ranks[me];
            rank.detector.hear(at, from);
            match parcel {
                Parcel::Call(operation) => rank.calls[from] = operation + 1,
                Parcel::Word(epoch, word) => {
                    let standing = rank.standing(me);
                    rank.detector.receive(at, from, epoch, word, || standing);
                }
            }
        }
        let rank = &mut self.ranks[me];
        rank.detector.look(at);
        let calls = rank.program(now, at, me);
        let mut letters = rank.detector.letters();
        let tells = |letter: &Letter| matches!(letter.word, Word::Verdict(_));
        let leave = match rank.trouble {
            Trouble::Dies(then, leave) if now >= then => Some(leave),
            Trouble::DiesTelling(leave) if letters.iter().any(tells) => Some(leave),
            _ => None,
        };
        if let Some(leave) = leave {
            rank.is_dead = true;
            letters.truncate(leave);
        }
        for to in (0..size).filter(|&to| to != me) {
            for &operation in &calls {
                self.send(now, me, to, Parcel::Call(operation));
            }
        }
        for Letter { to, epoch, word } in letters {
            self.send(now, me, to, Parcel::Word(epoch, word));
        }
    }
}

impl Rank {
    fn missing(&self, me: usize) -> Vec<usize> {
        let others = (0..self.calls.len()).filter(|&rank| rank != me);
        others
            .filter(|&rank| self.calls[rank] <= self.operation)
            .collect()
    }

    fn standing(&self, me: usize) -> Standing {
        match self.waits.is_some() {
            false => Standing::RUNS,
            true => Standing {
                stands: Stands::Waits {
                    call: "barrier".into(),
                    group: "world".into(),
                    sequence: self.operation,
                    missing: self.missing(me),
                },
                is_fixed: true,
            },
        }
    }

    /// A step of the rank's program. Returns the operations that it issues.
    fn program(&mut self, now: u64, at: Instant, me: usize) -> Vec<u64> {
        let mut issued = Vec::new();
        if let Some((error, _)) = self.detector.fault(0) {
            if self.failed.is_none() {
                self.failed = Some((error.clone(), now));
                self.has_ended = true;
                self.detector.bid_farewell();
            }
            return issued;
        }
        if self.has_ended || now < self.ready {
            return issued;
        }
        match self.trouble {
            Trouble::Fails(then) | Trouble::Aborts(then) if now >= then => {
                let error = Error::RankFailed {
                    rank: me,
                    message: "on purpose".into(),
                };
                return self.fail(at, &error);
            }
            Trouble::Computes(from) if self.operation >= from && self.waits.is_none() => {
                return issued;
            }
            Trouble::Returns(before) if self.operation >= before && self.waits.is_none() => {
                self.has_ended = true;
                self.detector.end(Ended::Well);
                return issued;
            }
            _ => {}
        }
        if self.operation == OPERATIONS {
            self.has_ended = true;
            self.detector.end(Ended::Well);
            return issued;
        }
        if self.waits.is_none() {
            issued.push(self.operation);
            self.waits = Some((Watch::start(at, DEADLINE, 0), now));
        }
        let missing = self.missing(me);
        if missing.is_empty() {
            self.waits = None;
            self.operation += 1;
            self.ready = now + 20;
            return issued;
        }
        if self.detector.accuses(0) {
            return issued;
        }
        if let Some(&gone) = missing
            .iter()
            .find(|&&rank| self.detector.has_left(rank, 0))
        {
            let error = Error::RankReturned {
                group: "world".into(),
                sequence: self.operation,
                rank: gone,
                waiting: me,
                call: "barrier".into(),
            };
            self.detector.accuse(at, 0, &error);
            return issued;
        }
        let own = self.standing(me);
        if let Some((watch, _)) = &mut self.waits
            && let Finding::Late(round) = watch.look(at, 0, 0, &mut self.detector, || own.clone())
        {
            let chain = self.detector.chain(&missing, 0, round, &own);
            let error = late(me, self.operation, missing, chain);
            self.detector.accuse(at, 0, &error);
        }
        issued
    }

    /// Its program fails, and its process ends, as soon as it may.
    fn fail(&mut self, at: Instant, error: &Error) -> Vec<u64> {
        self.detector.end(Ended::Failed(at));
        self.detector.accuse(at, 0, error);
        if matches!(self.trouble, Trouble::Aborts(_)) {
            self.detector.end(Ended::Well);
        }
        self.detector.bid_farewell();
        self.has_ended = true;
        Vec::new()
    }

    /// Whether it fails by itself, if it comes to that.
    pub(super) fn may_fail(&self) -> bool {
        matches!(self.trouble, Trouble::Fails(_) | Trouble::Aborts(_))
    }
}
