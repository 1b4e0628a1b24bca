//! One collective of all its ranks, or one send with its receive: who has called, and what each has given.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::call::{Call, Kind};
use super::reduce::Turn;
use super::shared::Folder;
use crate::device::clock::Clock;

/// Which meeting of a communicator it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// The collective of this number, counted from 1.
    Collective(u64),
    /// Of the sends from one rank to another, the one of this number.
    Pair {
        /// The sender.
        from: usize,
        /// The receiver.
        to: usize,
        /// The number, counted from 1.
        number: u64,
    },
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Collective(number) => write!(f, "collective {number}"),
            Key::Pair { from, to, number } => {
                write!(f, "transfer {number} from rank {from} to rank {to}")
            }
        }
    }
}

/// Where in the streams of this process a call lies.
#[derive(Clone, Debug)]
pub struct Place {
    /// The stream.
    pub stream: usize,
    /// The operation of the stream that ends the call.
    pub finish: u32,
    /// What is ordered before the call has ended, also itself: the clock of its first operation.
    pub clock: Clock,
}

/// A call that has its place.
#[derive(Clone, Debug)]
pub struct Placed {
    /// The rank that calls.
    pub rank: usize,
    /// What it calls.
    pub call: Call,
    /// Where.
    pub place: Place,
}

/// Who takes part: a rank; of a send and its receive, the sender is the first party, and the receiver the second one.
struct Party {
    rank: usize,
    process: u32,
    /// What it must have in common with the others, and what it is called in a report.
    said: Option<(String, String)>,
    /// Its call, if it is in this process.
    placed: Option<Placed>,
    given: Option<Arc<[u8]>>,
    /// How it would add up; the first party's word counts.
    turn: Turn,
}

struct Inside {
    parties: Vec<Party>,
    /// The calls do not match: it never ends.
    broken: bool,
    /// It was reported as a part of a circle.
    circular: bool,
    /// What all ranks get, if they all get the same.
    result: Option<Arc<[u8]>>,
}

/// The meeting.
pub struct Meeting {
    key: Key,
    ranks: usize,
    /// What its files are called, and where they are.
    name: String,
    folder: Folder,
    inside: Mutex<Inside>,
}

impl Inside {
    /// Takes in what a party calls; a sentence if it does not fit to what another one has called.
    fn say(&mut self, party: usize, said: (String, String), what: &str) -> Option<String> {
        let rank = self.parties[party].rank;
        let others = self
            .parties
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != party);
        let mut known = others.filter_map(|(_, other)| Some((other.rank, other.said.as_ref()?)));
        let other = known.find(|(_, other)| other.0 != said.0);
        let sentence = other.map(|(other, theirs)| {
            format!(
                "The calls of {what} do not match: rank {other} calls {}, and rank {rank} calls {}.",
                theirs.1, said.1
            )
        });
        self.parties[party].said = Some(said);
        let is_first = !self.broken;
        self.broken |= sentence.is_some();
        sentence.filter(|_| is_first)
    }
}

impl Meeting {
    /// A meeting of a communicator whose ranks are in these processes.
    pub fn new(clique: &str, processes: &[u32], key: Key) -> Meeting {
        let ranks: Vec<usize> = match key {
            Key::Collective(_) => (0..processes.len()).collect(),
            Key::Pair { from, to, .. } => vec![from, to],
        };
        let parties = ranks.into_iter().map(|rank| Party {
            rank,
            process: processes[rank],
            said: None,
            placed: None,
            given: None,
            turn: Turn(0),
        });
        let name = match key {
            Key::Collective(number) => format!("post-{clique}-{number}"),
            Key::Pair { from, to, number } => format!("post-{clique}-{from}-{to}-{number}"),
        };
        Meeting {
            key,
            ranks: processes.len(),
            name,
            folder: Folder::of(clique),
            inside: Mutex::new(Inside {
                parties: parties.collect(),
                broken: false,
                circular: false,
                result: None,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn what(&self) -> String {
        format!("{} of a communicator of {} ranks", self.key, self.ranks)
    }

    /// Takes a call in; a sentence if it does not fit to an earlier one.
    pub fn place(&self, party: usize, placed: Placed, turn: Turn) -> Option<String> {
        let mut inside = self.lock();
        let said = (placed.call.common(), placed.call.to_string());
        inside.parties[party].turn = turn;
        inside.parties[party].placed = Some(placed);
        inside.say(party, said, &self.what())
    }

    /// The calls of this process, when all its parties have called.
    pub fn called(&self) -> Option<Vec<Placed>> {
        let own = std::process::id();
        let inside = self.lock();
        let parties = inside.parties.iter();
        let here = parties.filter(|party| party.process == own);
        here.map(|party| party.placed.clone()).collect()
    }

    /// The calls of this process so far.
    pub fn calls(&self) -> Vec<Placed> {
        let inside = self.lock();
        let placed = inside
            .parties
            .iter()
            .filter_map(|party| party.placed.clone());
        placed.collect()
    }

    /// Says that it was reported as a part of a circle; whether it was before.
    pub fn report_circle(&self) -> bool {
        std::mem::replace(&mut self.lock().circular, true)
    }

    /// Gives what a party of this process has for the others, also for those in other processes.
    ///
    /// # Errors
    /// A sentence: it cannot be given to another process.
    pub fn give(&self, party: usize, bytes: Vec<u8>) -> Result<(), String> {
        let own = std::process::id();
        let mut inside = self.lock();
        let mut names: Vec<_> = {
            let others = inside.parties.iter().map(|party| party.process);
            let others = others.filter(|process| *process != own);
            others.map(|process| self.file(party, process)).collect()
        };
        names.sort_unstable();
        names.dedup();
        let from = &mut inside.parties[party];
        if !names.is_empty() {
            let (common, call) = from.said.clone().unwrap_or_default();
            let mut text = format!("{common}\n{call}\n{}\n", from.turn.0).into_bytes();
            text.extend(&bytes);
            self.folder.publish(&names, &text).map_err(|error| {
                format!(
                    "What rank {} gives to another process cannot be written: {error}.",
                    from.rank
                )
            })?;
        }
        from.given = Some(bytes.into());
        Ok(())
    }

    fn file(&self, party: usize, process: u32) -> String {
        format!("{}-{party}-for-{process}", self.name)
    }

    /// Looks for what parties in other processes have given; sentences, if their calls do not fit.
    pub fn look(&self) -> Vec<String> {
        let own = std::process::id();
        let mut sentences = Vec::new();
        let mut inside = self.lock();
        for party in 0..inside.parties.len() {
            let from = &mut inside.parties[party];
            if from.process == own || from.given.is_some() {
                continue;
            }
            let Some(bytes) = self.folder.take(&self.file(party, own)) else {
                continue;
            };
            let mut parts = bytes.splitn(4, |byte| *byte == b'\n');
            let mut text =
                || String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
            let said = (text(), text());
            from.turn = Turn(text().parse().unwrap_or(0));
            from.given = Some(parts.next().unwrap_or_default().into());
            sentences.extend(inside.say(party, said, &self.what()));
        }
        sentences
    }

    /// Whether all have given, and it can end.
    pub fn is_complete(&self) -> bool {
        let inside = self.lock();
        !inside.broken && inside.parties.iter().all(|party| party.given.is_some())
    }

    /// The parties that have not given, as the end of a sentence.
    pub fn missing(&self) -> String {
        let inside = self.lock();
        if inside.broken {
            return "its ranks' calls do not match".to_owned();
        }
        let missing = inside.parties.iter().filter(|party| party.given.is_none());
        let ranks: Vec<_> = missing.map(|party| party.rank.to_string()).collect();
        format!("it waits for rank {}", ranks.join(", "))
    }

    /// What a rank gets, after all have given.
    pub fn result(&self, rank: usize, call: &Call) -> Arc<[u8]> {
        let (given, turn) = {
            let inside = self.lock();
            if let Some(result) = &inside.result {
                return result.clone();
            }
            let given = inside
                .parties
                .iter()
                .filter_map(|party| party.given.clone());
            (given.collect::<Vec<_>>(), inside.parties[0].turn)
        };
        let given: Vec<&[u8]> = given.iter().map(|given| &given[..]).collect();
        let result: Arc<[u8]> = call.result(rank, turn, &given).into();
        if matches!(call.kind, Kind::AllReduce(_) | Kind::AllGather) {
            self.lock().result = Some(result.clone());
        }
        result
    }
}
