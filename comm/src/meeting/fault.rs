//! A world's failure in a form that travels between processes: JSON.

use crate::error::{Error, Link};
use crate::op::Difference;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The fatal variants of [`enum@Error`], field by field.
#[derive(Serialize, Deserialize)]
enum Fault {
    Divergence {
        group: String,
        sequence: u64,
        rank: usize,
        call: String,
        other: usize,
        other_call: String,
        difference: u8,
    },
    DeadlineExceeded {
        group: String,
        sequence: u64,
        rank: usize,
        call: String,
        missing: Vec<usize>,
        deadline: Duration,
        note: String,
        chain: Vec<Link>,
    },
    Deadlock {
        chain: Vec<Link>,
    },
    Abandoned {
        group: String,
        sequence: u64,
        rank: usize,
        call: String,
    },
    RankReturned {
        group: String,
        sequence: u64,
        rank: usize,
        waiting: usize,
        call: String,
    },
    RankFailed {
        rank: usize,
        message: String,
    },
    RankPanicked {
        rank: usize,
        message: String,
    },
    Aborted {
        rank: usize,
        reason: String,
    },
    Transport {
        rank: usize,
        call: String,
        message: String,
    },
}

/// The bytes of a fatal error. An error of a single call becomes the failure of its rank.
pub(crate) fn encode(rank: usize, error: &Error) -> Vec<u8> {
    let fault = match error.clone() {
        Error::Divergence {
            group,
            sequence,
            rank,
            call,
            other,
            other_call,
            difference,
        } => Fault::Divergence {
            group: group.to_string(),
            sequence,
            rank,
            call,
            other,
            other_call,
            difference: Difference::ALL
                .iter()
                .position(|d| *d == difference)
                .map_or(0, |at| at as u8),
        },
        Error::DeadlineExceeded {
            group,
            sequence,
            rank,
            call,
            missing,
            deadline,
            note,
            chain,
        } => Fault::DeadlineExceeded {
            group: group.to_string(),
            sequence,
            rank,
            call,
            missing,
            deadline,
            note,
            chain,
        },
        Error::Deadlock { chain } => Fault::Deadlock { chain },
        Error::Abandoned {
            group,
            sequence,
            rank,
            call,
        } => Fault::Abandoned {
            group: group.to_string(),
            sequence,
            rank,
            call,
        },
        Error::RankReturned {
            group,
            sequence,
            rank,
            waiting,
            call,
        } => Fault::RankReturned {
            group: group.to_string(),
            sequence,
            rank,
            waiting,
            call,
        },
        Error::RankFailed { rank, message } => Fault::RankFailed { rank, message },
        Error::RankPanicked { rank, message } => Fault::RankPanicked { rank, message },
        Error::Aborted { rank, reason } => Fault::Aborted { rank, reason },
        Error::Transport {
            rank,
            call,
            message,
        } => Fault::Transport {
            rank,
            call,
            message,
        },
        other => Fault::RankFailed {
            rank,
            message: other.to_string(),
        },
    };
    serde_json::to_vec(&fault).unwrap_or_default()
}

/// The error in `bytes`, which rank `source` has sent.
pub(crate) fn decode(source: usize, bytes: &[u8]) -> Error {
    let Ok(fault) = serde_json::from_slice(bytes) else {
        return Error::RankFailed {
            rank: source,
            message: "its message about it is not readable".into(),
        };
    };
    match fault {
        Fault::Divergence {
            group,
            sequence,
            rank,
            call,
            other,
            other_call,
            difference,
        } => Error::Divergence {
            group: group.into(),
            sequence,
            rank,
            call,
            other,
            other_call,
            difference: Difference::ALL[usize::from(difference).min(Difference::ALL.len() - 1)],
        },
        Fault::DeadlineExceeded {
            group,
            sequence,
            rank,
            call,
            missing,
            deadline,
            note,
            chain,
        } => Error::DeadlineExceeded {
            group: group.into(),
            sequence,
            rank,
            call,
            missing,
            deadline,
            note,
            chain,
        },
        Fault::Deadlock { chain } => Error::Deadlock { chain },
        Fault::Abandoned {
            group,
            sequence,
            rank,
            call,
        } => Error::Abandoned {
            group: group.into(),
            sequence,
            rank,
            call,
        },
        Fault::RankReturned {
            group,
            sequence,
            rank,
            waiting,
            call,
        } => Error::RankReturned {
            group: group.into(),
            sequence,
            rank,
            waiting,
            call,
        },
        Fault::RankFailed { rank, message } => Error::RankFailed { rank, message },
        Fault::RankPanicked { rank, message } => Error::RankPanicked { rank, message },
        Fault::Aborted { rank, reason } => Error::Aborted { rank, reason },
        Fault::Transport {
            rank,
            call,
            message,
        } => Error::Transport {
            rank,
            call,
            message,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_difference_arrives_as_it_was() {
        for difference in Difference::ALL {
            let error = Error::Divergence {
                group: "world".into(),
                sequence: 3,
                rank: 1,
                call: "barrier".into(),
                other: 0,
                other_call: "barrier (owner 1, step 2, part 3)".into(),
                difference,
            };
            assert_eq!(decode(1, &encode(1, &error)), error);
        }
    }
}
