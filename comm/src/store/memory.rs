//! [`MemoryStore`]: a store in the memory of one process, shared by its threads; and [`Memory`], which also holds
//! what a [`StoreServer`](super::StoreServer) serves.

use super::request::{Answer, Refusal, Reply, Request, Until};
use super::{Store, StoreLimits};
use crate::error::{Error, Result};
use crate::sync::{Mutex, Shared};
use std::collections::HashMap;
use std::sync::Arc;
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// A store that the threads of one process share. A clone is another handle on the same keys. PyTorch's
/// `HashStore`.
///
/// ```
/// use phalanx_comm::{MemoryStore, Store};
/// use std::time::Duration;
///
/// let store = MemoryStore::new(Duration::from_secs(10));
/// let other = store.clone();
/// let thread = std::thread::spawn(move || other.get("greeting")); // it waits
/// store.set("greeting", b"hello")?;
/// assert_eq!(thread.join().unwrap()?, b"hello");
/// assert_eq!(store.add("visitors", 2)?, 2);
/// # Ok::<(), phalanx_comm::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct MemoryStore {
    pub(super) memory: Shared<Memory>,
    pub(super) name: Arc<str>,
    rank: Option<usize>,
    deadline: Duration,
}

impl MemoryStore {
    /// An empty store, whose calls wait for so long.
    pub fn new(deadline: Duration) -> MemoryStore {
        let memory = Shared::new(Memory::new(StoreLimits::default()));
        MemoryStore::over(memory, "the store in memory", deadline)
    }

    pub(super) fn over(memory: Shared<Memory>, name: &str, deadline: Duration) -> MemoryStore {
        MemoryStore {
            memory,
            name: name.into(),
            rank: None,
            deadline,
        }
    }

    /// The same store for this rank, which its errors name.
    pub fn for_rank(self, rank: usize) -> MemoryStore {
        MemoryStore {
            rank: Some(rank),
            ..self
        }
    }

    /// The same store, whose calls by this handle wait for so long.
    pub fn with_deadline(self, deadline: Duration) -> MemoryStore {
        MemoryStore { deadline, ..self }
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.memory.shelf.lock().values.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Store for MemoryStore {
    fn name(&self) -> &str {
        &self.name
    }

    fn rank(&self) -> Option<usize> {
        self.rank
    }

    fn deadline(&self) -> Duration {
        self.deadline
    }

    fn ask(&self, requests: &[Request]) -> Result<Vec<Reply>> {
        let one = |request: &Request| {
            let start = Instant::now();
            let answer = self.memory.answer(request, Duration::MAX);
            answer.map_err(|refusal| failure(self, request, start.elapsed(), refusal))
        };
        requests.iter().map(one).collect()
    }
}

/// What a store's refusal is to its caller.
pub(super) fn failure(
    store: &dyn Store,
    request: &Request,
    waited: Duration,
    refusal: Refusal,
) -> Error {
    let (store, rank, call) = (store.name().to_owned(), store.rank(), request.to_string());
    match refusal {
        Refusal::Request(reason) => Error::StoreRefused {
            store,
            rank,
            call,
            reason,
        },
        Refusal::Closed(reason) => Error::StoreUnreachable {
            store,
            rank,
            call,
            waited,
            reason,
        },
    }
}

/// Keys and their values, and who waits for them.
#[derive(Debug)]
pub(super) struct Memory {
    shelf: Mutex<Shelf>,
    limits: StoreLimits,
}

#[derive(Debug, Default)]
struct Shelf {
    values: HashMap<String, Vec<u8>>,
    /// Of all keys and values together.
    bytes: usize,
    /// By key, so that a `set` wakes nobody but those who wait for it.
    waiters: HashMap<String, Vec<(u64, Thread)>>,
    tickets: u64,
    /// Why nothing is answered any more.
    closed: Option<String>,
}

impl Memory {
    pub(super) fn new(limits: StoreLimits) -> Memory {
        Memory {
            shelf: Mutex::default(),
            limits,
        }
    }

    /// Does what is asked; a request that waits does so for its own patience, and no longer than `limit`.
    pub(super) fn answer(&self, request: &Request, limit: Duration) -> Answer {
        if let Some(why) = request.refusal() {
            return Err(Refusal::Request(why));
        }
        let patience = request.patience().min(limit);
        match request {
            Request::Set { key, value } => {
                self.now(|shelf| shelf.set(&self.limits, key, value.clone()))
            }
            Request::Claim { key, value } => self.now(|shelf| {
                if let Some(there) = shelf.values.get(key) {
                    return Ok(Reply::Value(there.clone()));
                }
                shelf.set(&self.limits, key, value.clone())?;
                Ok(Reply::Value(value.clone()))
            }),
            Request::Add { key, amount } => self.now(|shelf| {
                let there = match shelf.values.get(key) {
                    None => Some(0),
                    Some(_) => shelf.number(key),
                };
                let refused = |why: &str| Refusal::Request(why.into());
                let there = there.ok_or_else(|| refused("its value is no number"))?;
                let sum = there.checked_add(*amount);
                let sum = sum.ok_or_else(|| refused("the sum is no 64-bit number"))?;
                shelf.set(&self.limits, key, sum.to_string().into_bytes())?;
                Ok(Reply::Number(sum))
            }),
            Request::Delete { keys } => self.now(|shelf| {
                let there = keys.iter().filter(|key| shelf.remove(key)).count();
                Ok(Reply::Number(there as i64))
            }),
            Request::OnDisconnect { .. } => self.now(|_| Ok(Reply::Done)),
            Request::Get { key, patience: _ } => self.wait(&[key], patience, |shelf| {
                let value = shelf.values.get(key);
                value.map_or(Err(0), |value| Ok(Reply::Value(value.clone())))
            }),
            Request::WaitAll { until, .. } => self.wait(&request.keys(), patience, |shelf| {
                match until.iter().position(|until| !shelf.holds(until)) {
                    None => Ok(Reply::Done),
                    Some(missing) => Err(missing),
                }
            }),
            Request::WaitAny { until, .. } => self.wait(&request.keys(), patience, |shelf| {
                let first = until.iter().position(|until| shelf.holds(until));
                first.map(Reply::Index).ok_or(0)
            }),
        }
    }

    /// From now on nothing is answered, and nobody waits.
    pub(super) fn close(&self, why: &str) {
        let mut shelf = self.shelf.lock();
        shelf.closed.get_or_insert_with(|| why.to_owned());
        let waiters = shelf.waiters.values().flatten();
        waiters.for_each(|(_, thread)| thread.unpark());
    }

    fn now(&self, f: impl FnOnce(&mut Shelf) -> Answer) -> Answer {
        let mut shelf = self.shelf.lock();
        shelf.open()?;
        f(&mut shelf)
    }

    /// Sleeps until `look` finds what it looks for; else answers with what it lacks.
    fn wait(
        &self,
        keys: &[&str],
        patience: Duration,
        look: impl Fn(&Shelf) -> Result<Reply, usize>,
    ) -> Answer {
        let start = Instant::now();
        let mut ticket = None;
        loop {
            let mut shelf = self.shelf.lock();
            let open = shelf.open();
            let found = look(&shelf);
            let left = patience.saturating_sub(start.elapsed());
            match (open, found) {
                (Ok(()), Err(_)) if !left.is_zero() => {}
                (open, found) => {
                    if let Some(ticket) = ticket {
                        shelf.leave(ticket, keys);
                    }
                    return open.map(|()| found.unwrap_or_else(Reply::NotYet));
                }
            }
            if ticket.is_none() {
                ticket = Some(shelf.queue(keys));
            }
            drop(shelf);
            // It may end too soon, as any sleep of a thread may, which is why this is a loop. Who sets a key
            // between the look and the sleep has left the thread a token, and the sleep ends at once.
            thread::park_timeout(left);
        }
    }
}

impl Shelf {
    fn open(&self) -> Result<(), Refusal> {
        match &self.closed {
            Some(why) => Err(Refusal::Closed(why.clone())),
            None => Ok(()),
        }
    }

    fn set(&mut self, limits: &StoreLimits, key: &str, value: Vec<u8>) -> Answer {
        let before = self.values.get(key).map(Vec::len);
        let more_keys = self.values.len() + usize::from(before.is_none());
        let grown = self.bytes + value.len() + if before.is_none() { key.len() } else { 0 };
        let bytes = grown - before.unwrap_or(0);
        let full = |what: &str, would: usize, limit: usize| {
            let sentence = format!("the store would hold {would} {what}, and its limit is {limit}");
            (would > limit).then_some(Refusal::Request(sentence))
        };
        let keys = full("keys", more_keys, limits.keys);
        if let Some(refusal) = keys.or_else(|| full("bytes", bytes, limits.bytes)) {
            return Err(refusal);
        }
        self.bytes = bytes;
        match self.values.get_mut(key) {
            Some(there) => *there = value,
            None => drop(self.values.insert(key.to_owned(), value)),
        }
        let waiters = self.waiters.get(key).into_iter().flatten();
        waiters.for_each(|(_, thread)| thread.unpark());
        Ok(Reply::Done)
    }

    fn remove(&mut self, key: &str) -> bool {
        let removed = self.values.remove(key);
        if let Some(value) = &removed {
            self.bytes -= key.len() + value.len();
        }
        removed.is_some()
    }

    fn number(&self, key: &str) -> Option<i64> {
        std::str::from_utf8(self.values.get(key)?)
            .ok()?
            .parse()
            .ok()
    }

    fn holds(&self, until: &Until) -> bool {
        match until {
            Until::Set(key) => self.values.contains_key(key),
            Until::Above(key, than) => self.number(key).is_some_and(|number| number > *than),
        }
    }

    /// Puts this thread among those that wait for these keys.
    fn queue(&mut self, keys: &[&str]) -> u64 {
        self.tickets += 1;
        let ticket = self.tickets;
        for &key in keys {
            let waiters = self.waiters.entry(key.to_owned()).or_default();
            waiters.push((ticket, thread::current()));
        }
        ticket
    }

    fn leave(&mut self, ticket: u64, keys: &[&str]) {
        for &key in keys {
            if let Some(waiters) = self.waiters.get_mut(key) {
                waiters.retain(|(of, _)| *of != ticket);
                if waiters.is_empty() {
                    self.waiters.remove(key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> MemoryStore {
        MemoryStore::new(Duration::from_millis(50))
    }

    #[test]
    fn who_has_waited_leaves_nothing_behind() {
        let store = store();
        assert!(store.get("never").is_err());
        assert!(store.wait(&["never", "ever"]).is_err());
        store.set("a", b"1").unwrap();
        store.get("a").unwrap();
        store.delete("a").unwrap();
        let shelf = store.memory.shelf.lock();
        assert!(shelf.waiters.is_empty(), "{:?}", shelf.waiters);
        assert_eq!((shelf.bytes, shelf.values.len()), (0, 0));
    }

    #[test]
    fn limits_of_keys_and_bytes_hold_whatever_is_set_again() {
        let limits = StoreLimits {
            keys: 2,
            bytes: 20,
            ..StoreLimits::default()
        };
        let memory = Shared::new(Memory::new(limits));
        let store = MemoryStore::over(memory, "the small store", Duration::ZERO);
        store.set("a", &[0; 9]).unwrap();
        store.set("b", &[0; 9]).unwrap();
        store.set("a", &[1; 9]).unwrap();
        let why = store.set("c", b"").unwrap_err().to_string();
        assert!(
            why.ends_with("the store would hold 3 keys, and its limit is 2"),
            "{why}"
        );
        let why = store.set("a", &[0; 10]).unwrap_err().to_string();
        assert!(
            why.ends_with("the store would hold 21 bytes, and its limit is 20"),
            "{why}"
        );
        assert_eq!(store.get("a").unwrap(), [1; 9]);
        store.delete("b").unwrap();
        store.set("a", &[2; 19]).unwrap();
    }

    #[test]
    fn a_closed_store_says_why_at_once() {
        let store = MemoryStore::new(Duration::from_secs(60));
        let waits = store.clone();
        let waiter = thread::spawn(move || waits.get("never"));
        thread::sleep(Duration::from_millis(20));
        store.memory.close("its server has ended");
        let error = waiter.join().unwrap().unwrap_err();
        assert!(matches!(&error, Error::StoreUnreachable { .. }), "{error}");
        assert!(
            error.to_string().ends_with("its server has ended"),
            "{error}"
        );
        assert!(store.set("a", b"").is_err());
    }
}
