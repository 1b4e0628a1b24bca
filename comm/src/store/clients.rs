//! [`Clients`]: who is connected to a server, and what each has left to its end.
//!
//! A client is a process and not a connection: calls of several threads take several connections, and any of them may
//! carry any request. So what a client has left belongs to it as a whole, and is done when its last connection has ended.

use super::request::{MOST_KEY_BYTES, MOST_VALUE_BYTES, Refusal};
use crate::sync::Mutex;
use std::collections::{BTreeMap, HashMap};

/// All that one client has left to its end has so many bytes at most, so that a client holds no more of the server's
/// memory than one request does.
const MOST_BYTES: usize = MOST_VALUE_BYTES + MOST_KEY_BYTES;
/// What a claim counts besides its key and its value.
const EACH: usize = 64;

/// The claims of a client, by key.
pub(super) type Claims = BTreeMap<String, Vec<u8>>;

/// The clients that have a connection.
#[derive(Debug, Default)]
pub(super) struct Clients {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// How many clients there have been; their numbers begin at 1.
    count: u64,
    live: HashMap<u64, Live>,
}

#[derive(Debug, Default)]
struct Live {
    connections: usize,
    claims: Claims,
}

impl Clients {
    /// A connection begins: the first of a new client, or another one of the client with this number, if it has one yet.
    pub(super) fn enter(&self, number: Option<u64>) -> Result<u64, Refusal> {
        let mut table = self.table.lock();
        let number = match number {
            None => {
                table.count += 1;
                let number = table.count;
                table.live.insert(number, Live::default());
                number
            }
            Some(number) => number,
        };
        let Some(live) = table.live.get_mut(&number) else {
            let why = format!("its client {number} has no connection any more, and counts as gone");
            return Err(Refusal::Closed(why));
        };
        live.connections += 1;
        Ok(number)
    }

    /// A connection has ended. With the last one its client is gone: gives what it has left to its end.
    pub(super) fn leave(&self, number: u64) -> Claims {
        let mut table = self.table.lock();
        let Some(live) = table.live.get_mut(&number) else {
            return Claims::new();
        };
        live.connections -= 1;
        if live.connections > 0 {
            return Claims::new();
        }
        let gone = table.live.remove(&number);
        gone.map(|live| live.claims).unwrap_or_default()
    }

    /// This client leaves a claim of `key` to its end, or takes it back. What it has left for other keys stays.
    pub(super) fn leave_to_end(
        &self,
        number: u64,
        key: &str,
        value: Option<&[u8]>,
    ) -> Result<(), Refusal> {
        let mut table = self.table.lock();
        let Some(live) = table.live.get_mut(&number) else {
            return Ok(());
        };
        let Some(value) = value else {
            live.claims.remove(key);
            return Ok(());
        };
        let others = live.claims.iter().filter(|(other, _)| *other != key);
        let others: usize = others
            .map(|(key, value)| key.len() + value.len() + EACH)
            .sum();
        let bytes = others + key.len() + value.len();
        if bytes > MOST_BYTES {
            return Err(Refusal::Request(format!(
                "the client would leave {bytes} bytes to its end, and the limit is {MOST_BYTES}"
            )));
        }
        live.claims.insert(key.to_owned(), value.to_vec());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_gone_with_its_last_connection() {
        let clients = Clients::default();
        let one = clients.enter(None).unwrap();
        let two = clients.enter(None).unwrap();
        assert_ne!(one, two);
        assert_eq!(clients.enter(Some(one)).unwrap(), one);
        clients.leave_to_end(one, "a", Some(b"1")).unwrap();
        clients.leave_to_end(one, "b", Some(b"2")).unwrap();
        clients.leave_to_end(one, "b", None).unwrap();
        clients.leave_to_end(two, "a", Some(b"3")).unwrap();
        assert!(clients.leave(one).is_empty());
        let left = clients.leave(one);
        assert_eq!(
            left.into_iter().collect::<Vec<_>>(),
            [("a".into(), b"1".to_vec())]
        );
        // It does not come back.
        assert!(matches!(clients.enter(Some(one)), Err(Refusal::Closed(_))));
        assert!(matches!(clients.enter(Some(77)), Err(Refusal::Closed(_))));
        assert_eq!(clients.leave(two).len(), 1);
        assert!(clients.table.lock().live.is_empty());
    }

    #[test]
    fn what_a_client_leaves_has_a_limit() {
        let clients = Clients::default();
        let one = clients.enter(None).unwrap();
        let value = vec![0; MOST_VALUE_BYTES];
        for _ in 0..3 {
            clients.leave_to_end(one, "a", Some(&value)).unwrap();
        }
        let refusal = clients.leave_to_end(one, "b", Some(&value)).unwrap_err();
        let Refusal::Request(why) = refusal else {
            panic!("{refusal:?}");
        };
        assert!(why.ends_with("and the limit is 1049600"), "{why}");
        clients.leave_to_end(one, "a", None).unwrap();
        clients.leave_to_end(one, "b", Some(&value)).unwrap();
    }
}
