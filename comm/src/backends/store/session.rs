//! [`Session`]: what a rank shares with all others of its world through the store: who has come, who has left, and
//! the world's failure.
//!
//! The store's order of calls is what makes the ranks agree. A failure is *claimed*, so that the first one counts
//! and everybody, the rank that it comes from included, reads that one back. A rank that leaves first says so under its
//! own key, then raises the number of those that have left, which is what the others wait for.

use super::meet::Dropped;
use crate::backends::watcher;
use crate::error::{Error, Result};
use crate::meeting::fault;
use crate::store::{Reply, Request, Store, Until};
use crate::sync::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// The world's failure.
pub(super) const FAULT: &str = "fault";
/// How many ranks have left.
pub(super) const DEPARTED: &str = "departed";
/// How many ranks have come.
const COME: &str = "come";

fn here(rank: usize) -> String {
    format!("here/{rank}")
}

fn gone(rank: usize) -> String {
    format!("gone/{rank}")
}

/// The longest failure that is left at the store, in bytes.
const MOST_FAULT_BYTES: usize = 64 << 10;

/// A failure as it is left at the store. A program's own message may be of any length; then its start is told.
fn encoded(rank: usize, error: &Error) -> Vec<u8> {
    let bytes = fault::encode(rank, error);
    if bytes.len() <= MOST_FAULT_BYTES {
        return bytes;
    }
    let whole = match error {
        Error::RankFailed { message, .. } => message.clone(),
        other => other.to_string(),
    };
    // JSON may write a character as six bytes, or twice that.
    let start: String = whole.chars().take(MOST_FAULT_BYTES / 16).collect();
    let message = format!("{start}…");
    fault::encode(rank, &Error::RankFailed { rank, message })
}

/// Asks whether a key is there now.
pub(super) fn is_there(key: String) -> Request {
    Request::WaitAll {
        until: vec![Until::Set(key)],
        patience: Duration::ZERO,
    }
}

/// The key's value if it is there now.
pub(super) fn look(key: String) -> Request {
    let patience = Duration::ZERO;
    Request::Get { key, patience }
}

/// A rank of the world, as long as it holds one of its groups.
pub(super) struct Session {
    pub(super) store: Arc<dyn Store>,
    /// This rank's number in the world.
    pub(super) rank: usize,
    failure: Mutex<Failure>,
    /// The calls of all groups that nobody here waits for any more; `None` when the rank has left. The lock is never
    /// held while the store is asked: who drops a work takes it.
    pub(super) dropped: Mutex<Option<Vec<Dropped>>>,
    has_departed: AtomicBool,
}

#[derive(Debug, Default)]
struct Failure {
    /// The world's failure and when this rank's process heard of it.
    fault: Option<(Error, Instant)>,
    /// When the program was told.
    told: Option<Instant>,
}

impl Session {
    /// Takes this rank's place. The store is told what to say if this process ends without a word.
    pub(super) fn join(store: Arc<dyn Store>, rank: usize) -> Result<Session> {
        // The first of those that come as this rank.
        if store.add(&here(rank), 1)? != 1 {
            return Err(Error::StoreRefused {
                store: store.name().to_owned(),
                rank: Some(rank),
                call: "start".into(),
                reason: format!("another process has come as rank {rank} before this one"),
            });
        }
        let death = Error::RankFailed {
            rank,
            message: "its connection to the store has ended without a word: the process has died, or is cut off"
                .into(),
        };
        let last_word = Request::OnDisconnect {
            key: FAULT.into(),
            value: Some(encoded(rank, &death)),
        };
        let come = Request::Add {
            key: COME.into(),
            amount: 1,
        };
        store.ask(&[last_word, come])?;
        Ok(Session {
            store,
            rank,
            failure: Mutex::default(),
            dropped: Mutex::new(Some(Vec::new())),
            has_departed: AtomicBool::new(false),
        })
    }

    /// Waits until all ranks have come, at most for `limit`.
    pub(super) fn meet(&self, size: usize, limit: Duration) -> Result<()> {
        let until = vec![
            Until::Above(COME.into(), size as i64 - 1),
            Until::Set(FAULT.into()),
        ];
        let wait = Request::WaitAny {
            until,
            patience: limit,
        };
        match self.ask(&[wait])?.pop() {
            Some(Reply::Index(0)) => return Ok(()),
            Some(Reply::Index(_)) => return Err(self.hear()),
            _ => {}
        }
        let all: Vec<Request> = (0..size).map(|rank| is_there(here(rank))).collect();
        let replies = self.ask(&all)?;
        let missing: Vec<usize> = (0..size)
            .filter(|&rank| replies[rank] != Reply::Done)
            .collect();
        if missing.is_empty() {
            return Ok(()); // the last has come just now
        }
        Err(self.fail(Error::DeadlineExceeded {
            group: "world".into(),
            sequence: 0,
            rank: self.rank,
            call: "the start".into(),
            note: format!("it has not come to {}", self.store.name()),
            missing,
            deadline: limit,
            chain: Vec::new(),
        }))
    }

    /// Asks the store. Where it is lost, so is the world, which this process knows then; whether the program is told is
    /// for the caller to say.
    pub(super) fn ask(&self, requests: &[Request]) -> Result<Vec<Reply>> {
        let replies = self.store.ask(requests);
        replies.map_err(|error| match error.is_fatal() {
            true => self.note(error),
            false => error,
        })
    }

    /// The world's failure, as far as this rank has heard.
    pub(super) fn failure(&self) -> Option<(Error, Instant)> {
        self.failure.lock().fault.clone()
    }

    /// When the program was told of it.
    pub(super) fn told(&self) -> Option<Instant> {
        self.failure.lock().told
    }

    /// The world's failure that is known here, if the program was never told of it.
    pub(super) fn untold(&self) -> Option<Error> {
        let failure = self.failure.lock();
        let fault = failure.fault.as_ref().filter(|_| failure.told.is_none());
        fault.map(|(error, _)| error.clone())
    }

    /// The world's failure, for the program.
    pub(super) fn refuse(&self) -> Result<()> {
        let mut failure = self.failure.lock();
        let Some((error, _)) = failure.fault.clone() else {
            return Ok(());
        };
        failure.told.get_or_insert_with(Instant::now);
        Err(error)
    }

    /// Takes this error for the world's failure, unless another one is; returns what counts.
    pub(super) fn note(&self, error: Error) -> Error {
        let mut failure = self.failure.lock();
        let fault = failure.fault.get_or_insert((error, Instant::now()));
        fault.0.clone()
    }

    /// An error on its way to the program, which is told of the world's failure if it is that.
    pub(super) fn tell(&self, error: Error) -> Error {
        let mut failure = self.failure.lock();
        let fault = failure.fault.as_ref();
        if watcher::is_program() && fault.is_some_and(|(fault, _)| *fault == error) {
            failure.told.get_or_insert_with(Instant::now);
        }
        error
    }

    /// As the store has it: somebody has claimed the failure.
    pub(super) fn hear(&self) -> Error {
        match self.store.get(FAULT) {
            Ok(bytes) => self.note(fault::decode(0, &bytes)),
            Err(lost) => self.note(lost),
        }
    }

    /// Looks whether the world has failed, for the process and not for the program.
    pub(super) fn look_for_failure(&self) {
        let heard = match self.store.find(FAULT) {
            Ok(None) => return,
            Ok(Some(bytes)) => fault::decode(0, &bytes),
            Err(lost) => lost,
        };
        self.note(heard);
    }

    /// Fails the world, unless it has failed; returns the failure that counts.
    pub(super) fn fail(&self, error: Error) -> Error {
        if let Some((error, _)) = self.failure() {
            return error;
        }
        match self.store.claim(FAULT, &encoded(self.rank, &error)) {
            Ok(first) => self.note(fault::decode(0, &first)),
            // Nobody can be told.
            Err(_) => self.note(error),
        }
    }

    /// This rank issues nothing more, and has ended all that it has issued.
    pub(super) fn say_goodbye(&self) {
        if self.has_departed.swap(true, SeqCst) || self.failure().is_some() {
            return;
        }
        let set = Request::Set {
            key: gone(self.rank),
            value: Vec::new(),
        };
        let add = Request::Add {
            key: DEPARTED.into(),
            amount: 1,
        };
        let quiet = Request::OnDisconnect {
            key: FAULT.into(),
            value: None,
        };
        // Where the store is lost, nobody waits for this rank by it.
        let _ = self.store.ask(&[quiet, set, add]);
    }

    /// How many ranks have left; then which of these. In this order: whoever leaves later raises the number again.
    pub(super) fn departures(&self, ranks: &[usize]) -> Result<(i64, Vec<usize>)> {
        let mut requests = vec![look(DEPARTED.into())];
        requests.extend(ranks.iter().map(|&rank| is_there(gone(rank))));
        let replies = self.ask(&requests)?;
        let number = match replies.first() {
            Some(Reply::Value(digits)) => std::str::from_utf8(digits).ok(),
            _ => None,
        };
        let count = number.and_then(|digits| digits.parse().ok()).unwrap_or(0);
        let left = ranks.iter().zip(&replies[1..]);
        let left = left.filter(|(_, reply)| **reply == Reply::Done);
        Ok((count, left.map(|(&rank, _)| rank).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_of_any_length_is_told() {
        for character in ["x", "\u{1}", "é", "🦀"] {
            let error = Error::RankPanicked {
                rank: 2,
                message: character.repeat(1 << 20),
            };
            let bytes = encoded(2, &error);
            assert!(bytes.len() <= MOST_FAULT_BYTES, "{}", bytes.len());
            let Error::RankFailed { rank: 2, message } = fault::decode(0, &bytes) else {
                panic!("{character}");
            };
            assert!(
                message.starts_with(&format!("rank 2 panicked: {character}")),
                "{character}"
            );
            assert!(message.ends_with('…'));
        }
    }
}
