//! [`LaunchError`]: why a launch did not bring back every rank's result.

use crate::env::Launcher;
use crate::error::Error;
use phalanx_tensor::Device;
use std::fmt::{self, Debug, Display};

/// Why a launch did not bring back every rank's result. `E` is the error of the ranks' program.
///
/// `Debug` prints the same sentence as `Display`: it is what Rust shows where `main` returns the
/// error.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError<E: Display + Debug> {
    /// A world needs a rank.
    #[error("a world of 0 ranks has nothing to run")]
    NoRanks,
    /// More ranks than one process runs.
    #[error(
        "{asked} ranks are more than one process runs as threads, which is {limit}; mpirun starts \
         ranks as processes of their own"
    )]
    TooManyRanks {
        /// How many were asked for.
        asked: usize,
        /// How many there may be.
        limit: usize,
    },
    /// More threads than make sense for a rank.
    #[error("{asked} threads for each rank are more than it may have, which is {limit}")]
    TooManyThreads {
        /// How many were asked for.
        asked: usize,
        /// How many there may be.
        limit: usize,
    },
    /// Several ranks on cards, which nothing here connects.
    #[error(
        "{size} ranks were asked for, the first one on {device}, but there are no groups of cards here: {reason}"
    )]
    Cards {
        /// The device of the first rank.
        device: Device,
        /// How many ranks were asked for.
        size: usize,
        /// What is missing.
        reason: String,
    },
    /// The system gave no thread.
    #[error("no thread for rank {rank}: {error}")]
    Spawn {
        /// The rank.
        rank: usize,
        /// What the system said.
        error: std::io::Error,
    },
    /// The environment does not say clearly how this process was started.
    #[error(transparent)]
    Environment(#[from] crate::env::Unclear),
    /// A launcher started another number of ranks than the program asks for.
    #[error(
        "{asked} ranks were asked for, but {launcher} started {size}, as {variable} says; if it did \
         not start this process, unset {variable}",
        variable = launcher.size_variable()
    )]
    WorldSize {
        /// What the program asks for.
        asked: usize,
        /// Who started it.
        launcher: Launcher,
        /// How many that one has started.
        size: usize,
    },
    /// The MPI that the program was built for sees another world than its launcher.
    #[error(
        "{launcher} started {size} ranks, but MPI sees a world of {seen}: the program was built for \
         another MPI than the one whose mpirun started it; or {} comes from another job, then unset it",
        launcher.size_variable()
    )]
    OtherMpi {
        /// Who started it.
        launcher: Launcher,
        /// How many that one has started.
        size: usize,
        /// How many MPI sees.
        seen: usize,
    },
    /// The program cannot be a rank of what it was started in.
    #[error(
        "the program was started by {launcher} as one of {size} ranks (so says {}; unset it if that is \
         wrong), but {reason}",
        launcher.size_variable()
    )]
    Unsupported {
        /// Who started it.
        launcher: Launcher,
        /// How many ranks that one has started.
        size: usize,
        /// What is missing.
        reason: String,
    },
    /// The world did not come about; or it has failed, and all ranks had returned well before they could hear of it.
    #[error(transparent)]
    World(Error),
    /// Ranks failed.
    #[error("{first}{}", more(others))]
    Ranks {
        /// The rank that failed first, in time; the others failed because of it, more often than
        /// not.
        first: RankFailure<E>,
        /// The other ranks that failed, in rank order.
        others: Vec<RankFailure<E>>,
    },
}

impl<E: Display + Debug> LaunchError<E> {
    /// The same with other failures of the ranks.
    pub(super) fn with_kinds<O: Display + Debug>(
        self,
        mut kind: impl FnMut(usize, FailureKind<E>) -> FailureKind<O>,
    ) -> LaunchError<O> {
        let mut failure = |failure: RankFailure<E>| RankFailure {
            rank: failure.rank,
            kind: kind(failure.rank, failure.kind),
        };
        match self {
            LaunchError::NoRanks => LaunchError::NoRanks,
            LaunchError::TooManyRanks { asked, limit } => {
                LaunchError::TooManyRanks { asked, limit }
            }
            LaunchError::TooManyThreads { asked, limit } => {
                LaunchError::TooManyThreads { asked, limit }
            }
            LaunchError::Cards {
                device,
                size,
                reason,
            } => LaunchError::Cards {
                device,
                size,
                reason,
            },
            LaunchError::Spawn { rank, error } => LaunchError::Spawn { rank, error },
            LaunchError::Environment(unclear) => LaunchError::Environment(unclear),
            LaunchError::WorldSize {
                asked,
                launcher,
                size,
            } => LaunchError::WorldSize {
                asked,
                launcher,
                size,
            },
            LaunchError::OtherMpi {
                launcher,
                size,
                seen,
            } => LaunchError::OtherMpi {
                launcher,
                size,
                seen,
            },
            LaunchError::Unsupported {
                launcher,
                size,
                reason,
            } => LaunchError::Unsupported {
                launcher,
                size,
                reason,
            },
            LaunchError::World(error) => LaunchError::World(error),
            LaunchError::Ranks { first, others } => LaunchError::Ranks {
                first: failure(first),
                others: others.into_iter().map(failure).collect(),
            },
        }
    }
}

impl<E: Display + Debug> Debug for LaunchError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

fn more<E>(others: &[RankFailure<E>]) -> String {
    match others.len() {
        0 => String::new(),
        n => format!(" ({n} more failed after it)"),
    }
}

/// How one rank failed. `Debug` prints the same sentence as `Display`.
pub struct RankFailure<E> {
    /// The rank.
    pub rank: usize,
    /// What happened.
    pub kind: FailureKind<E>,
}

/// An error or a panic.
#[derive(Debug)]
pub enum FailureKind<E> {
    /// The rank's program returned this error.
    Error(E),
    /// The rank's program panicked with this message.
    Panic(String),
}

impl<E: Display> Display for RankFailure<E> {
    /// A sentence that says the rank, and says it once.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rank = self.rank;
        match &self.kind {
            FailureKind::Error(e) => {
                let text = format!("{e:#}");
                match begins_with(&text, rank) {
                    true => f.write_str(&text),
                    false => write!(f, "rank {rank}: {text}"),
                }
            }
            FailureKind::Panic(message) => write!(f, "rank {rank} panicked: {message}"),
        }
    }
}

impl<E: Display> Debug for RankFailure<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

/// Whether a sentence says at once that it is about this rank: `rank 1 waited …`, or
/// `all_reduce on rank 1: …`.
fn begins_with(text: &str, rank: usize) -> bool {
    let head = text.split(": ").next().unwrap_or_default();
    let name = format!("rank {rank}");
    let ends = |rest: &str| !rest.starts_with(|c: char| c.is_ascii_digit());
    head.strip_prefix(&name).is_some_and(ends) || head.ends_with(&format!(" on {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranks(rank: usize, text: &str) -> LaunchError<String> {
        LaunchError::Ranks {
            first: RankFailure {
                rank,
                kind: FailureKind::Error(text.to_owned()),
            },
            others: Vec::new(),
        }
    }

    #[test]
    fn the_rank_is_said_once() {
        for (text, want) in [
            ("no such file", "rank 1: no such file"),
            ("rank 1 waited 3s", "rank 1 waited 3s"),
            ("rank 10 waited 3s", "rank 1: rank 10 waited 3s"),
            ("barrier on rank 1: no", "barrier on rank 1: no"),
            ("barrier on rank 11: no", "rank 1: barrier on rank 11: no"),
            ("it failed: on rank 1", "rank 1: it failed: on rank 1"),
        ] {
            assert_eq!(ranks(1, text).to_string(), want);
        }
    }

    /// Who prints an error with its sources prints the system's reason once: it is in the sentence.
    #[test]
    fn the_reason_is_said_once() {
        let spawn = LaunchError::<String>::Spawn {
            rank: 1,
            error: std::io::Error::other("no memory"),
        };
        assert_eq!(spawn.to_string(), "no thread for rank 1: no memory");
        assert!(std::error::Error::source(&spawn).is_none());
    }

    /// What `main` shows that returns it.
    #[test]
    fn debug_is_the_sentence() {
        let error = ranks(1, "no such file");
        assert_eq!(format!("{error:?}"), "rank 1: no such file");
        let error: Box<dyn std::error::Error> = Box::new(error);
        assert_eq!(format!("{error:?}"), "rank 1: no such file");
        let error = Error::RankFailed {
            rank: 1,
            message: "no such file".into(),
        };
        assert_eq!(format!("{error:?}"), "rank 1 failed: no such file");
    }
}
