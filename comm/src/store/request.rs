//! What a store can be asked: [`Request`] and [`Reply`], the limits that hold for every store, and the bytes
//! in which both travel.

use super::bytes::{Reader, Writer};
use std::fmt;
use std::time::Duration;

/// The longest key, in bytes.
pub const MOST_KEY_BYTES: usize = 1 << 10;
/// The longest value, in bytes.
pub const MOST_VALUE_BYTES: usize = 1 << 20;
/// The longest request or reply that travels, in bytes: the longest value, its key, and some numbers.
pub(super) const MOST_FRAME_BYTES: usize = MOST_VALUE_BYTES + MOST_KEY_BYTES + 64;

/// One question to a store. A program uses the methods of [`Store`](super::Store), which ask these.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Request {
    /// Sets a key, whether it was there or not: [`Reply::Done`].
    Set {
        /// The key.
        key: String,
        /// Its value.
        value: Vec<u8>,
    },
    /// Sets a key if it is not there: [`Reply::Value`], the value that is there then. Of several who claim one
    /// key, all get the value of the first.
    Claim {
        /// The key.
        key: String,
        /// Its value, if this one comes first.
        value: Vec<u8>,
    },
    /// Waits until the key is there: [`Reply::Value`], or [`Reply::NotYet`].
    Get {
        /// The key.
        key: String,
        /// How long to wait; no time asks whether it is there now.
        patience: Duration,
    },
    /// Adds to a number, which is 0 where the key is not there: [`Reply::Number`], the sum. The key's value is
    /// the number in decimal digits.
    Add {
        /// The key.
        key: String,
        /// What to add.
        amount: i64,
    },
    /// Waits until all of these hold: [`Reply::Done`], or [`Reply::NotYet`].
    WaitAll {
        /// What is waited for.
        until: Vec<Until>,
        /// How long to wait.
        patience: Duration,
    },
    /// Waits until one of these holds: [`Reply::Index`] of the first in the list that does, or
    /// [`Reply::NotYet`].
    WaitAny {
        /// What is waited for.
        until: Vec<Until>,
        /// How long to wait.
        patience: Duration,
    },
    /// Removes keys: [`Reply::Number`], how many of them were there.
    Delete {
        /// The keys.
        keys: Vec<String>,
    },
    /// Tells a store that serves other processes what to do when this client is gone, that is, when the last of its
    /// connections has ended: to claim this key. It takes the place of what the client has said of this key before.
    /// [`Reply::Done`]. A store in memory has no connections, and does nothing.
    OnDisconnect {
        /// The key.
        key: String,
        /// The value to claim it with; `None` takes back what was said.
        value: Option<Vec<u8>>,
    },
}

/// What can be waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Until {
    /// The key is there.
    Set(String),
    /// The key is there, and the number in it is larger than this one.
    Above(String, i64),
}

/// What a store answers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "said at each request")]
#[non_exhaustive]
pub enum Reply {
    Done,
    Value(Vec<u8>),
    Number(i64),
    Index(usize),
    /// The patience has ended; the first in the list that does not hold.
    NotYet(usize),
}

impl Until {
    pub(crate) fn key(&self) -> &str {
        match self {
            Until::Set(key) | Until::Above(key, _) => key,
        }
    }
}

impl Request {
    /// How long the store may take to answer because it waits for others.
    pub(super) fn patience(&self) -> Duration {
        match self {
            Request::Get { patience, .. }
            | Request::WaitAll { patience, .. }
            | Request::WaitAny { patience, .. } => *patience,
            _ => Duration::ZERO,
        }
    }

    /// All keys that it names.
    pub(crate) fn keys(&self) -> Vec<&str> {
        match self {
            Request::Set { key, .. }
            | Request::Claim { key, .. }
            | Request::Get { key, .. }
            | Request::Add { key, .. }
            | Request::OnDisconnect { key, .. } => vec![key],
            Request::WaitAll { until, .. } | Request::WaitAny { until, .. } => {
                until.iter().map(Until::key).collect()
            }
            Request::Delete { keys } => keys.iter().map(String::as_str).collect(),
        }
    }

    /// The same request, of other keys.
    pub(super) fn map_keys(&self, f: impl Fn(&str) -> String) -> Request {
        let until = |list: &[Until]| {
            let one = |until: &Until| match until {
                Until::Set(key) => Until::Set(f(key)),
                Until::Above(key, number) => Until::Above(f(key), *number),
            };
            list.iter().map(one).collect()
        };
        let mut request = self.clone();
        match &mut request {
            Request::Set { key, .. }
            | Request::Claim { key, .. }
            | Request::Get { key, .. }
            | Request::Add { key, .. }
            | Request::OnDisconnect { key, .. } => *key = f(key),
            Request::WaitAll { until: list, .. } | Request::WaitAny { until: list, .. } => {
                *list = until(list);
            }
            Request::Delete { keys } => keys.iter_mut().for_each(|key| *key = f(key)),
        }
        request
    }

    /// Why no store takes it, if so: a limit, and what it is.
    pub(super) fn refusal(&self) -> Option<String> {
        let too_long = |what: &str, bytes: usize, limit: usize| {
            let sentence = format!("its {what} has {bytes} bytes, and the limit is {limit}");
            (bytes > limit).then_some(sentence)
        };
        let keys = self.keys();
        let mut keys = keys.iter();
        let key = keys.find_map(|key| too_long("key", key.len(), MOST_KEY_BYTES));
        let value = match self {
            Request::Set { value, .. } | Request::Claim { value, .. } => value.len(),
            Request::OnDisconnect { value, .. } => value.as_ref().map_or(0, Vec::len),
            _ => 0,
        };
        let value = too_long("value", value, MOST_VALUE_BYTES);
        let listed: usize = self.keys().iter().map(|key| key.len() + 16).sum();
        let list = too_long("list of keys", listed, MOST_FRAME_BYTES / 2);
        key.or(value).or(list)
    }

    pub(super) fn write(&self, out: &mut Writer) {
        let list = |out: &mut Writer, until: &[Until], patience: &Duration| {
            out.duration(*patience);
            out.number(until.len() as u64);
            for until in until {
                match until {
                    Until::Set(key) => out.byte(0).text(key),
                    Until::Above(key, number) => out.byte(1).text(key).number(*number as u64),
                };
            }
        };
        match self {
            Request::Set { key, value } => {
                out.byte(1).text(key).bytes(value);
            }
            Request::Claim { key, value } => {
                out.byte(2).text(key).bytes(value);
            }
            Request::Get { key, patience } => {
                out.byte(3).text(key).duration(*patience);
            }
            Request::Add { key, amount } => {
                out.byte(4).text(key).number(*amount as u64);
            }
            Request::WaitAll { until, patience } => list(out.byte(5), until, patience),
            Request::WaitAny { until, patience } => list(out.byte(6), until, patience),
            Request::Delete { keys } => {
                out.byte(7).number(keys.len() as u64);
                for key in keys {
                    out.text(key);
                }
            }
            Request::OnDisconnect { key, value: None } => {
                out.byte(8).text(key);
            }
            Request::OnDisconnect {
                key,
                value: Some(value),
            } => {
                out.byte(9).text(key).bytes(value);
            }
        }
    }

    /// The request in these bytes, and in all of them; `None` where they are none.
    pub(super) fn read(bytes: &[u8]) -> Option<Request> {
        let mut from = Reader::new(bytes);
        let until = |from: &mut Reader<'_>| {
            let n = from.number()?;
            // No capacity on the word of a stranger: the bytes end sooner.
            (0..n)
                .map(|_| match from.byte()? {
                    0 => Some(Until::Set(from.text()?)),
                    1 => Some(Until::Above(from.text()?, from.number()? as i64)),
                    _ => None,
                })
                .collect::<Option<Vec<Until>>>()
        };
        let request = match from.byte()? {
            1 => Request::Set {
                key: from.text()?,
                value: from.bytes()?.to_vec(),
            },
            2 => Request::Claim {
                key: from.text()?,
                value: from.bytes()?.to_vec(),
            },
            3 => Request::Get {
                key: from.text()?,
                patience: from.duration()?,
            },
            4 => Request::Add {
                key: from.text()?,
                amount: from.number()? as i64,
            },
            5 => Request::WaitAll {
                patience: from.duration()?,
                until: until(&mut from)?,
            },
            6 => Request::WaitAny {
                patience: from.duration()?,
                until: until(&mut from)?,
            },
            7 => {
                let n = from.number()?;
                let keys = (0..n)
                    .map(|_| from.text())
                    .collect::<Option<Vec<String>>>()?;
                Request::Delete { keys }
            }
            8 => Request::OnDisconnect {
                key: from.text()?,
                value: None,
            },
            9 => Request::OnDisconnect {
                key: from.text()?,
                value: Some(from.bytes()?.to_vec()),
            },
            _ => return None,
        };
        from.is_empty().then_some(request)
    }
}

impl fmt::Display for Request {
    /// As the method of `Store`: `` get of `loss` ``.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Request::Set { .. } => "set",
            Request::Claim { .. } => "claim",
            Request::Get { .. } => "get",
            Request::Add { .. } => "add",
            Request::WaitAll { .. } | Request::WaitAny { .. } => "wait",
            Request::Delete { .. } => "delete",
            Request::OnDisconnect { .. } => "on_disconnect",
        })?;
        let keys = self.keys();
        let Some(first) = keys.first() else {
            return Ok(());
        };
        let shown: String = first.chars().take(80).collect();
        let cut = if shown.len() < first.len() { "…" } else { "" };
        write!(f, " of `{shown}{cut}`")?;
        match keys.len() {
            1 => Ok(()),
            n => write!(f, " and {} more", n - 1),
        }
    }
}

/// What comes back over a connection: a reply, or why there is none.
pub(super) type Answer = Result<Reply, Refusal>;

/// Why a store does not do what it is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// This request; others are as welcome as before.
    Request(String),
    /// All requests, from now on.
    Closed(String),
}

pub(super) fn write_answer(answer: &Answer, out: &mut Writer) {
    match answer {
        Ok(Reply::Done) => {
            out.byte(0);
        }
        Ok(Reply::Value(value)) => {
            out.byte(1).bytes(value);
        }
        Ok(Reply::Number(number)) => {
            out.byte(2).number(*number as u64);
        }
        Ok(Reply::Index(index)) => {
            out.byte(3).number(*index as u64);
        }
        Ok(Reply::NotYet(index)) => {
            out.byte(4).number(*index as u64);
        }
        Err(Refusal::Request(why)) => {
            out.byte(5).text(why);
        }
        Err(Refusal::Closed(why)) => {
            out.byte(6).text(why);
        }
    }
}

/// The answer in these bytes, and in all of them; `None` where they are none.
pub(super) fn read_answer(bytes: &[u8]) -> Option<Answer> {
    let mut from = Reader::new(bytes);
    let index = |from: &mut Reader<'_>| usize::try_from(from.number()?).ok();
    let answer = match from.byte()? {
        0 => Ok(Reply::Done),
        1 => Ok(Reply::Value(from.bytes()?.to_vec())),
        2 => Ok(Reply::Number(from.number()? as i64)),
        3 => Ok(Reply::Index(index(&mut from)?)),
        4 => Ok(Reply::NotYet(index(&mut from)?)),
        5 => Err(Refusal::Request(from.text()?)),
        6 => Err(Refusal::Closed(from.text()?)),
        _ => return None,
    };
    from.is_empty().then_some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests() -> Vec<Request> {
        let until = vec![Until::Set("a".into()), Until::Above("é".into(), -3)];
        let patience = Duration::from_millis(1500);
        vec![
            Request::Set {
                key: "k".into(),
                value: vec![0, 255],
            },
            Request::Claim {
                key: String::new(),
                value: vec![],
            },
            Request::Get {
                key: "k".into(),
                patience: Duration::MAX,
            },
            Request::Add {
                key: "n".into(),
                amount: i64::MIN,
            },
            Request::WaitAll {
                until: until.clone(),
                patience,
            },
            Request::WaitAny { until, patience },
            Request::Delete {
                keys: vec!["a".into(), "b".into()],
            },
            Request::OnDisconnect {
                key: "fault".into(),
                value: None,
            },
            Request::OnDisconnect {
                key: "fault".into(),
                value: Some(vec![7]),
            },
        ]
    }

    #[test]
    fn requests_and_answers_round_trip_and_no_part_of_one_is_one() {
        for request in requests() {
            let mut out = Writer::default();
            request.write(&mut out);
            let bytes = out.into_bytes();
            assert_eq!(Request::read(&bytes), Some(request));
            for end in 0..bytes.len() {
                assert_eq!(Request::read(&bytes[..end]), None);
            }
            assert_eq!(Request::read(&[&bytes[..], &[0]].concat()), None);
        }
        let answers: [Answer; 7] = [
            Ok(Reply::Done),
            Ok(Reply::Value(vec![1, 2, 3])),
            Ok(Reply::Number(-1)),
            Ok(Reply::Index(4)),
            Ok(Reply::NotYet(0)),
            Err(Refusal::Request("no".into())),
            Err(Refusal::Closed("gone".into())),
        ];
        for answer in answers {
            let mut out = Writer::default();
            write_answer(&answer, &mut out);
            let bytes = out.into_bytes();
            assert_eq!(read_answer(&bytes), Some(answer));
            for end in 0..bytes.len() {
                assert_eq!(read_answer(&bytes[..end]), None);
            }
        }
    }

    /// A length of 2⁶⁴ − 1 is no reason to ask for as much memory.
    #[test]
    fn lengths_of_strangers_are_not_believed() {
        for code in 1..=9 {
            let bytes = [&[code][..], &[0xff; 40]].concat();
            assert_eq!(Request::read(&bytes), None, "{code}");
        }
    }

    #[test]
    fn limits_are_told_with_their_number() {
        let set = |key: usize, value: usize| Request::Set {
            key: "k".repeat(key),
            value: vec![0; value],
        };
        assert_eq!(set(MOST_KEY_BYTES, MOST_VALUE_BYTES).refusal(), None);
        let why = set(MOST_KEY_BYTES + 1, 0).refusal().unwrap();
        assert_eq!(why, "its key has 1025 bytes, and the limit is 1024");
        let why = set(1, MOST_VALUE_BYTES + 1).refusal().unwrap();
        assert_eq!(why, "its value has 1048577 bytes, and the limit is 1048576");
        let keys = vec!["k".repeat(1000); 1000];
        let why = Request::Delete { keys }.refusal().unwrap();
        assert!(
            why.starts_with("its list of keys has 1016000 bytes"),
            "{why}"
        );
    }

    #[test]
    fn requests_are_named_with_their_first_key() {
        let text = |i: usize| requests()[i].to_string();
        assert_eq!(text(0), "set of `k`");
        assert_eq!(text(4), "wait of `a` and 1 more");
        assert_eq!(text(7), "on_disconnect of `fault`");
        let long = Request::Get {
            key: "k".repeat(100),
            patience: Duration::ZERO,
        };
        assert_eq!(long.to_string(), format!("get of `{}…`", "k".repeat(80)));
    }

    #[test]
    fn keys_are_mapped_wherever_they_stand() {
        for request in requests() {
            let mapped = request.map_keys(|key| format!("p/{key}"));
            let want: Vec<String> = request.keys().iter().map(|k| format!("p/{k}")).collect();
            assert_eq!(mapped.keys(), want);
            assert_eq!(mapped.map_keys(|key| key[2..].to_owned()), request);
        }
    }
}
