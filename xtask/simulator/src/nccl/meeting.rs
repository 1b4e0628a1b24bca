//! One collective of all its ranks, or one send with its receive: who has called, and what each has given.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::call::Call;
use super::reduce::Turn;
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

#[derive(Default)]
struct Inside {
    calls: Vec<Option<Placed>>,
    given: Vec<Option<Arc<[u8]>>>,
    turn: Option<Turn>,
    /// The calls do not match: it never ends.
    broken: bool,
    /// It was reported as a part of a circle.
    circular: bool,
    /// What all ranks get, if they all get the same.
    result: Option<Arc<[u8]>>,
}

/// The meeting. A party is a rank; of a send and its receive, the sender is party 0, and the receiver party 1.
pub struct Meeting {
    key: Key,
    ranks: usize,
    inside: Mutex<Inside>,
}

impl Meeting {
    /// A meeting of a communicator of so many ranks.
    pub fn new(ranks: usize, key: Key) -> Meeting {
        let parties = match key {
            Key::Collective(_) => ranks,
            Key::Pair { .. } => 2,
        };
        let inside = Inside {
            calls: vec![None; parties],
            given: vec![None; parties],
            ..Inside::default()
        };
        Meeting {
            key,
            ranks,
            inside: Mutex::new(inside),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a call in, and gives the calls so far; a sentence if it does not fit to an earlier one.
    pub fn place(&self, party: usize, placed: Placed, turn: Turn) -> Option<String> {
        let mut inside = self.lock();
        inside.turn.get_or_insert(turn);
        let mut others = inside.calls.iter().flatten();
        let other = others.find(|other| !other.call.matches(&placed.call));
        let sentence = other.map(|other| {
            let which = match self.key {
                Key::Collective(number) => format!("collective {number}"),
                Key::Pair { from, to, number } => {
                    format!("transfer {number} from rank {from} to rank {to}")
                }
            };
            format!(
                "The calls of {which} of a communicator of {} ranks do not match: rank {} calls {}, and rank {} calls {}.",
                self.ranks, other.rank, other.call, placed.rank, placed.call
            )
        });
        let first = sentence.is_some() && !inside.broken;
        inside.broken |= sentence.is_some();
        inside.calls[party] = Some(placed);
        sentence.filter(|_| first)
    }

    /// The calls of all parties, when all have called.
    pub fn called(&self) -> Option<Vec<Placed>> {
        self.lock().calls.iter().cloned().collect()
    }

    /// The calls so far.
    pub fn calls(&self) -> Vec<Placed> {
        self.lock().calls.iter().flatten().cloned().collect()
    }

    /// Says that it was reported as a part of a circle; whether it was before.
    pub fn report_circle(&self) -> bool {
        std::mem::replace(&mut self.lock().circular, true)
    }

    /// Gives what a party has for the others.
    pub fn give(&self, party: usize, bytes: Vec<u8>) {
        self.lock().given[party] = Some(bytes.into());
    }

    /// Whether all have given, and it can end.
    pub fn is_complete(&self) -> bool {
        let inside = self.lock();
        !inside.broken && inside.given.iter().all(Option::is_some)
    }

    /// The parties that have not given, as the end of a sentence.
    pub fn missing(&self) -> String {
        let inside = self.lock();
        if inside.broken {
            return "its ranks' calls do not match".to_owned();
        }
        let missing = inside.given.iter().enumerate();
        let missing = missing.filter(|(_, given)| given.is_none());
        let ranks: Vec<_> = missing
            .map(|(party, _)| match (self.key, party) {
                (Key::Pair { from, .. }, 0) => from.to_string(),
                (Key::Pair { to, .. }, _) => to.to_string(),
                (Key::Collective(_), rank) => rank.to_string(),
            })
            .collect();
        format!("it waits for rank {}", ranks.join(", "))
    }

    /// What a rank gets, after all have given.
    pub fn result(&self, rank: usize, call: &Call) -> Arc<[u8]> {
        use super::call::Kind;
        let (given, turn) = {
            let inside = self.lock();
            if let Some(result) = &inside.result {
                return result.clone();
            }
            let given: Vec<_> = inside.given.iter().flatten().cloned().collect();
            (given, inside.turn.unwrap_or(Turn(0)))
        };
        let given: Vec<&[u8]> = given.iter().map(|given| &given[..]).collect();
        let result: Arc<[u8]> = call.result(rank, turn, &given).into();
        if matches!(call.kind, Kind::AllReduce(_) | Kind::AllGather) {
            self.lock().result = Some(result.clone());
        }
        result
    }
}
