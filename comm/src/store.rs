//! [`Store`]: keys and values through which ranks meet before they have a group, and where they have no other
//! way to talk. PyTorch's `torch.distributed.Store`.
//!
//! A store is small and slow, and reaches everybody: it hands out what a group needs to come about, and carries the
//! small talk between ranks whose group has no other engine for it. Data goes elsewhere. There are three makers:
//!
//! - [`MemoryStore`]: for threads of one process;
//! - [`StoreServer`] and [`TcpStore`]: one process serves, others connect;
//! - [`PrefixStore`]: a part of any other.
//!
//! Each implements one method, [`Store::ask`]; all else stands here, once.

mod bytes;
mod clients;
mod frame;
mod memory;
mod prefix;
mod request;
mod server;
mod tcp;

pub(crate) use self::bytes::{Reader, Writer};
pub use self::memory::MemoryStore;
pub use self::prefix::PrefixStore;
pub use self::request::{MOST_KEY_BYTES, MOST_VALUE_BYTES, Reply, Request, Until};
pub use self::server::{StoreLimits, StoreServer};
pub use self::tcp::{TcpConfig, TcpStore};

use crate::error::{Error, Result};
use std::fmt;
use std::time::Duration;

/// Keys and values that several ranks share. Any number of threads may use one handle.
///
/// There are three makers: [`MemoryStore`] for the threads of one process; [`StoreServer`] and [`TcpStore`], where one
/// process serves and others connect; and [`PrefixStore`], a part of any other. A store is small and slow, and reaches
/// everybody: data go elsewhere.
///
/// A key is text of at most [`MOST_KEY_BYTES`], a value any bytes, of at most [`MOST_VALUE_BYTES`]. Each call is done
/// as a whole, or not at all, and calls of all ranks on one store are in one order.
///
/// ```
/// use phalanx_comm::{Error, MemoryStore, Store};
/// use std::time::Duration;
///
/// /// The number that rank 0 has chosen, on every rank.
/// fn agree(store: &dyn Store, rank: usize) -> Result<Vec<u8>, Error> {
///     if rank == 0 {
///         store.set("number", b"42")?;
///     }
///     store.get("number")
/// }
///
/// let store = MemoryStore::new(Duration::from_secs(10));
/// assert_eq!(agree(&store, 0)?, agree(&store, 1)?);
/// # Ok::<(), Error>(())
/// ```
///
/// # Errors
/// Every method returns [`Error::StoreUnreachable`] where the store is lost, and [`Error::StoreRefused`] where a limit
/// is reached. Those that wait return [`Error::StoreTimeout`] when the [deadline](Store::deadline) has passed.
pub trait Store: Send + Sync + fmt::Debug {
    /// Which store it is, for errors: `the store at 10.0.0.1:29500`.
    fn name(&self) -> &str;

    /// The rank that asks, for errors, where that is known.
    fn rank(&self) -> Option<usize>;

    /// How long a call may last.
    fn deadline(&self) -> Duration;

    /// Asks all of these, in this order, and returns the answer to each. Others may be heard in between. The first
    /// that is refused ends it; what stands before it has been done.
    fn ask(&self, requests: &[Request]) -> Result<Vec<Reply>>;

    /// Sets a key, whether it was there or not.
    fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        let (key, value) = (key.to_owned(), value.to_vec());
        one(self, Request::Set { key, value }).map(drop)
    }

    /// The key's value; waits until it is there.
    fn get(&self, key: &str) -> Result<Vec<u8>> {
        let request = Request::Get {
            key: key.to_owned(),
            patience: self.deadline(),
        };
        match one(self, request)? {
            Reply::Value(value) => Ok(value),
            _ => Err(timeout(self, key)),
        }
    }

    /// The key's value if it is there now.
    fn find(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let request = Request::Get {
            key: key.to_owned(),
            patience: Duration::ZERO,
        };
        Ok(match one(self, request)? {
            Reply::Value(value) => Some(value),
            _ => None,
        })
    }

    /// Adds to the number at the key, which is 0 where the key is not there, and returns the sum. Any number of ranks
    /// may add at once: each gets another sum. `get` gives the number in decimal digits.
    fn add(&self, key: &str, amount: i64) -> Result<i64> {
        let key = key.to_owned();
        let request = Request::Add { key, amount };
        match one(self, request.clone())? {
            Reply::Number(sum) => Ok(sum),
            other => Err(confused(self, request, Some(other))),
        }
    }

    /// Sets the key if it is not there, and returns the value that is there then: of several ranks that claim one key,
    /// all get the value of the first. (PyTorch's `compare_set`, with nothing to compare with.)
    fn claim(&self, key: &str, value: &[u8]) -> Result<Vec<u8>> {
        let (key, value) = (key.to_owned(), value.to_vec());
        let request = Request::Claim { key, value };
        match one(self, request.clone())? {
            Reply::Value(there) => Ok(there),
            other => Err(confused(self, request, Some(other))),
        }
    }

    /// Waits until all these keys are there.
    fn wait(&self, keys: &[&str]) -> Result<()> {
        let request = Request::WaitAll {
            until: keys.iter().map(|&key| Until::Set(key.to_owned())).collect(),
            patience: self.deadline(),
        };
        match one(self, request)? {
            Reply::NotYet(missing) => Err(timeout(self, keys.get(missing).unwrap_or(&""))),
            _ => Ok(()),
        }
    }

    /// Removes a key, and returns whether it was there.
    fn delete(&self, key: &str) -> Result<bool> {
        let keys = vec![key.to_owned()];
        let request = Request::Delete { keys };
        match one(self, request.clone())? {
            Reply::Number(removed) => Ok(removed == 1),
            other => Err(confused(self, request, Some(other))),
        }
    }
}

/// Asks one thing.
fn one<S: Store + ?Sized>(store: &S, request: Request) -> Result<Reply> {
    let reply = store.ask(std::slice::from_ref(&request))?.pop();
    reply.ok_or_else(|| confused(store, request, None))
}

fn timeout<S: Store + ?Sized>(store: &S, key: &str) -> Error {
    Error::StoreTimeout {
        store: store.name().to_owned(),
        rank: store.rank(),
        key: key.to_owned(),
        waited: store.deadline(),
    }
}

/// A reply of another kind than the request has.
fn confused<S: Store + ?Sized>(store: &S, request: Request, reply: Option<Reply>) -> Error {
    Error::StoreUnreachable {
        store: store.name().to_owned(),
        rank: store.rank(),
        call: request.to_string(),
        waited: Duration::ZERO,
        reason: format!("it answered something else than it was asked: {reply:?}"),
    }
}
