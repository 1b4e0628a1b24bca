//! [`Word`]: what processes say to each other beside their calls, and its bytes: a kind, an epoch, and what there is to
//! say. The first byte of a parcel tells it from a call's.

use crate::error::{Error, Stands};
use crate::meeting::fault;
use serde::{Deserialize, Serialize};

/// What processes say to each other beside their calls.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Word {
    /// The failure that counts, on all ranks.
    Verdict(Error),
    /// A failure that whoever gets this is to make the verdict.
    Accusation(Error),
    /// The sender issues nothing more in this epoch.
    Departed,
    /// The sender's process is about to end.
    Farewell,
    /// The sender's process is about to be ended by force, since its rank hangs: nobody is to wait for it.
    Doomed,
    /// Where do you stand? With the sender's number for the question.
    Ask(u32),
    /// The answer to the question of this number.
    Answer(u32, Standing),
}

/// Where a rank stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Standing {
    pub(super) stands: Stands,
    /// Whether nothing can end its wait but calls of those that it waits for: all its calls come from one thread, and no
    /// data is on its way.
    pub(super) is_fixed: bool,
}

impl Standing {
    pub(super) const ENDED: Standing = Standing::of(Stands::Ended);
    pub(super) const RUNS: Standing = Standing::of(Stands::RUNS);
    pub(super) const SILENT: Standing = Standing::of(Stands::Silent);

    pub(super) const fn of(stands: Stands) -> Standing {
        Standing {
            stands,
            is_fixed: false,
        }
    }
}

/// A word on its way.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Letter {
    pub(super) to: usize,
    pub(super) epoch: u64,
    pub(super) word: Word,
}

/// The first byte of a parcel that is a call: a [`Header`](super::header::Header), and the call's inline data.
pub(super) const CALL: u8 = 0;

impl Word {
    /// The whole parcel, from rank `me`.
    pub(super) fn write(&self, me: usize, epoch: u64) -> Vec<u8> {
        let (kind, rest) = match self {
            Word::Verdict(error) => (1, fault::encode(me, error)),
            Word::Accusation(error) => (2, fault::encode(me, error)),
            Word::Departed => (3, Vec::new()),
            Word::Farewell => (4, Vec::new()),
            Word::Doomed => (5, Vec::new()),
            Word::Ask(round) => (6, round.to_le_bytes().into()),
            Word::Answer(round, standing) => {
                let mut bytes = Vec::from(round.to_le_bytes());
                bytes.extend(serde_json::to_vec(standing).unwrap_or_default());
                (7, bytes)
            }
        };
        let mut bytes = vec![kind];
        bytes.extend(epoch.to_le_bytes());
        bytes.extend(rest);
        bytes
    }

    /// The word in a parcel of rank `source`, with its epoch. `None` where it is none.
    pub(super) fn read(source: usize, mut bytes: &[u8]) -> Option<(u64, Word)> {
        let kind = *bytes.split_off_first()?;
        let epoch = u64::from_le_bytes(*bytes.split_off(..8)?.first_chunk()?);
        let word = match kind {
            1 => Word::Verdict(fault::decode(source, bytes)),
            2 => Word::Accusation(fault::decode(source, bytes)),
            3 => Word::Departed,
            4 => Word::Farewell,
            5 => Word::Doomed,
            6 => Word::Ask(u32::from_le_bytes(*bytes.first_chunk()?)),
            7 => {
                let round = u32::from_le_bytes(*bytes.split_off(..4)?.first_chunk()?);
                Word::Answer(round, serde_json::from_slice(bytes).ok()?)
            }
            _ => return None,
        };
        Some((epoch, word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip() {
        let error = Error::RankFailed {
            rank: 2,
            message: "no such file".into(),
        };
        let waits = Stands::Waits {
            call: "barrier".into(),
            group: "world/0:1".into(),
            sequence: 7,
            missing: vec![1, 2],
        };
        let words = [
            Word::Verdict(error.clone()),
            Word::Accusation(error),
            Word::Departed,
            Word::Farewell,
            Word::Doomed,
            Word::Ask(u32::MAX),
            Word::Answer(3, Standing::RUNS),
            Word::Answer(4, Standing::of(waits)),
        ];
        for word in words {
            let bytes = word.write(1, 1 << 40);
            assert_ne!(bytes[0], CALL);
            assert_eq!(Word::read(1, &bytes), Some((1 << 40, word)));
        }
        assert_eq!(Word::read(1, &[3]), None);
        assert_eq!(Word::read(1, &[9; 20]), None);
    }
}
