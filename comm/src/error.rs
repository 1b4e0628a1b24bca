//! The crate's one error type.
//!
//! Where a group of ranks fails, every live rank gets the same value. Ranks are named by their
//! number in the world, also in errors of a group that was split off.

use crate::op::{Difference, ReduceOp};
use phalanx_tensor::{DType, Shape};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// `Result` with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong between ranks.
///
/// The first variants are mistakes in a single call: the call had no effect, and the group goes
/// on. [`is_fatal`](Error::is_fatal) tells the others, after which the group refuses all work.
///
/// `Debug` prints the same sentence as `Display`: it is what Rust shows where `main` returns the
/// error.
#[derive(Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A root, source or destination that is no rank of the group.
    #[error("{op} on rank {rank}: there is no {role} rank {value} in a group of {size}")]
    RankOutOfRange {
        /// The operation.
        op: &'static str,
        /// The rank that called.
        rank: usize,
        /// What the argument stands for: `root`, `source`, `destination`.
        role: &'static str,
        /// The argument.
        value: usize,
        /// The number of ranks in the group.
        size: usize,
    },
    /// A tensor whose shape the operation cannot use.
    #[error("{op} on rank {rank}: shape {shape} is not usable: {reason}")]
    InvalidShape {
        /// The operation.
        op: &'static str,
        /// The rank that called.
        rank: usize,
        /// The offending shape.
        shape: Shape,
        /// What was expected.
        reason: String,
    },
    /// A reduction that is not defined for the element type.
    #[error("{op} on rank {rank}: {reduction} is not defined for elements of type {dtype}")]
    UnsupportedReduction {
        /// The operation.
        op: &'static str,
        /// The rank that called.
        rank: usize,
        /// The reduction.
        reduction: ReduceOp,
        /// The offending element type.
        dtype: DType,
    },
    /// Any other argument that makes no sense.
    #[error("{op} on rank {rank}: {reason}")]
    InvalidArgument {
        /// The operation.
        op: &'static str,
        /// The rank that called.
        rank: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor could not be made or read.
    #[error(transparent)]
    Tensor(#[from] phalanx_tensor::Error),
    /// Two ranks called different things where one collective was expected.
    #[error(
        "the ranks of group {group} disagree on the {difference} of number {sequence}: \
         rank {rank} called {call}, but rank {other} called {other_call}"
    )]
    Divergence {
        /// The group.
        group: Arc<str>,
        /// The collective's number in the group, or the message's number between the two ranks.
        sequence: u64,
        /// The rank that differs from most others (from rank `other`, where there are two).
        rank: usize,
        /// What it called.
        call: String,
        /// A rank that it differs from.
        other: usize,
        /// What that one called.
        other_call: String,
        /// What differs.
        difference: Difference,
    },
    /// A rank did not come in time.
    #[error(
        "rank {rank} waited {deadline:?} in {call} (number {sequence} of group {group}) for {}{}{}",
        ranks(missing),
        following(missing, chain),
        after_colon(note)
    )]
    DeadlineExceeded {
        /// The group.
        group: Arc<str>,
        /// The collective's number in the group, or the message's number between the two ranks.
        sequence: u64,
        /// The rank whose patience ended.
        rank: usize,
        /// What it waited in.
        call: String,
        /// The ranks that did not come.
        missing: Vec<usize>,
        /// How long it waited.
        deadline: Duration,
        /// What is known about the first of the missing; empty where nothing is.
        note: String,
        /// Where the first of the missing stands, then whom that one waits for, and so on, as far as it is known.
        chain: Vec<Link>,
    },
    /// Ranks wait for each other in a circle: none of them can ever go on.
    #[error("{} wait for each other: {}", circle(chain), around(chain))]
    Deadlock {
        /// Where each of them stands, each one waiting for the next, and the last for the first.
        chain: Vec<Link>,
    },
    /// A rank ended while an operation was under way that it had issued and never waited for.
    #[error(
        "rank {rank} ended without having waited for {call} (number {sequence} of group {group}), which was under way"
    )]
    Abandoned {
        /// The group.
        group: Arc<str>,
        /// The collective's number in the group, or the message's number between the two ranks.
        sequence: u64,
        /// The rank that ended.
        rank: usize,
        /// What it had called.
        call: String,
    },
    /// A rank ended while another waited for it.
    #[error(
        "rank {rank} returned without the call that rank {waiting} waits for: \
         {call} (number {sequence} of group {group})"
    )]
    RankReturned {
        /// The group.
        group: Arc<str>,
        /// The collective's number in the group, or the message's number between the two ranks.
        sequence: u64,
        /// The rank that returned.
        rank: usize,
        /// A rank that waits for it.
        waiting: usize,
        /// What that one called.
        call: String,
    },
    /// A rank's program returned an error.
    #[error("rank {rank} failed: {message}")]
    RankFailed {
        /// The rank.
        rank: usize,
        /// Its error.
        message: String,
    },
    /// A rank's program panicked.
    #[error("rank {rank} panicked: {message}")]
    RankPanicked {
        /// The rank.
        rank: usize,
        /// The panic's message.
        message: String,
    },
    /// What carries the messages reported an error.
    #[error("rank {rank}: {call} failed: {message}")]
    Transport {
        /// The rank that it was reported to.
        rank: usize,
        /// The function that failed, as in `MPI_Isend`.
        call: String,
        /// What it said.
        message: String,
    },
    /// A [store](crate::Store) was not there in time, or is lost.
    #[error(
        "{} cannot reach {store}: {call} failed after {:?}: {reason}",
        somebody(*rank),
        rounded(*waited)
    )]
    StoreUnreachable {
        /// Which store: `the store at 10.0.0.1:29500`.
        store: String,
        /// The rank that asked, where that is known.
        rank: Option<usize>,
        /// What it asked, with the key: ``get of `loss` ``.
        call: String,
        /// How long it had waited.
        waited: Duration,
        /// What is known about it.
        reason: String,
    },
    /// A key did not come in time. The store is as good as before.
    #[error(
        "{} waited {:?} for the key `{key}`, and nobody has set it in {store}",
        somebody(*rank),
        rounded(*waited)
    )]
    StoreTimeout {
        /// Which store.
        store: String,
        /// The rank that waited, where that is known.
        rank: Option<usize>,
        /// The key.
        key: String,
        /// How long it waited.
        waited: Duration,
    },
    /// A store does not do what it is asked: a limit is reached, or a value is no number. It is as good as before.
    #[error("{store} refuses the {call} by {}: {reason}", somebody(*rank))]
    StoreRefused {
        /// Which store.
        store: String,
        /// The rank that asked, where that is known.
        rank: Option<usize>,
        /// What it asked, with the key.
        call: String,
        /// Why not.
        reason: String,
    },
    /// A rank called `abort`.
    #[error("rank {rank} aborted the group: {reason}")]
    Aborted {
        /// The rank.
        rank: usize,
        /// Its reason.
        reason: String,
    },
}

impl Error {
    /// Whether the whole world has failed: every rank gets this error, and all further work is
    /// refused with it.
    pub fn is_fatal(&self) -> bool {
        !matches!(
            self,
            Error::RankOutOfRange { .. }
                | Error::InvalidShape { .. }
                | Error::UnsupportedReduction { .. }
                | Error::InvalidArgument { .. }
                | Error::Tensor(_)
                | Error::StoreTimeout { .. }
                | Error::StoreRefused { .. }
        )
    }

    /// The rank that has returned from its program, and the number of the call that another one waits
    /// for, where that is what went wrong: [`Error::RankReturned`]. A loop that ends sooner on one rank
    /// than on the others ends so.
    pub fn returned_early(&self) -> Option<(usize, u64)> {
        match self {
            Error::RankReturned { rank, sequence, .. } => Some((*rank, *sequence)),
            _ => None,
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a rank stands, for which another one waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The rank.
    pub rank: usize,
    /// What it does.
    pub stands: Stands,
}

/// What a rank does while another one waits for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Stands {
    /// It waits itself.
    Waits {
        /// In what.
        call: String,
        /// The group of that.
        group: String,
        /// The collective's number in the group, or the message's number between the two ranks.
        sequence: u64,
        /// For whom.
        missing: Vec<usize>,
    },
    /// It waits in no call: it computes, or sleeps.
    Runs {
        /// What it does, as it has said by [`set_activity`](crate::ProcessGroup::set_activity); empty where it has said
        /// nothing.
        activity: String,
    },
    /// Its program has ended.
    Ended,
    /// Nothing is heard of it.
    Silent,
}

impl Stands {
    /// It has not said what it does.
    pub(crate) const RUNS: Stands = Stands::Runs {
        activity: String::new(),
    };
}

impl fmt::Display for Stands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stands::Waits {
                call,
                group,
                sequence,
                missing,
            } => write!(
                f,
                "waits in {call} (number {sequence} of group {group}) for {}",
                ranks(missing)
            ),
            Stands::Runs { activity } => {
                f.write_str("waits in no call")?;
                match &activity[..] {
                    "" => Ok(()),
                    activity => write!(f, ", but is in {activity}"),
                }
            }
            Stands::Ended => f.write_str("has ended its program"),
            Stands::Silent => f.write_str("gives no sign"),
        }
    }
}

/// A chain behind `for rank 0`: `, which waits in … for rank 1, which …`. Where one waits for several, the next is
/// named.
fn following(missing: &[usize], chain: &[Link]) -> String {
    let mut text = String::new();
    let mut before = missing;
    for Link { rank, stands } in chain {
        text += &match before {
            [_] => format!(", which {stands}"),
            _ => format!("; rank {rank} {stands}"),
        };
        before = match stands {
            Stands::Waits { missing, .. } => missing,
            _ => &[],
        };
    }
    text
}

/// The ranks of a circle.
fn circle(chain: &[Link]) -> String {
    let mut all: Vec<usize> = chain.iter().map(|link| link.rank).collect();
    all.sort_unstable();
    ranks(&all)
}

/// A circle, from its first rank to its last.
fn around(chain: &[Link]) -> String {
    match chain {
        [] => String::new(),
        [first, rest @ ..] => {
            let missing = match &first.stands {
                Stands::Waits { missing, .. } => &missing[..],
                _ => &[],
            };
            let rest = following(missing, rest);
            format!("rank {} {}{rest}", first.rank, first.stands)
        }
    }
}

/// `rank 1`, or whoever has none.
fn somebody(rank: Option<usize>) -> String {
    rank.map_or_else(|| "this process".into(), |rank| format!("rank {rank}"))
}

/// In whole milliseconds, unless it is less than one.
fn rounded(time: Duration) -> Duration {
    match time.as_millis() {
        0 => time,
        _ => Duration::new(time.as_secs(), time.subsec_millis() * 1_000_000),
    }
}

fn after_colon(note: &str) -> String {
    match note {
        "" => String::new(),
        note => format!(": {note}"),
    }
}

/// `rank 1` or `ranks 1, 3`.
fn ranks(missing: &[usize]) -> String {
    let list: Vec<String> = missing.iter().map(usize::to_string).collect();
    let plural = if list.len() == 1 { "" } else { "s" };
    format!("rank{plural} {}", list.join(", "))
}
