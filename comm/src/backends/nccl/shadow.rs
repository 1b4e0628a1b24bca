//! [`Shadow`]: what goes beside each call on cards, by small talk: a word of each rank about what it has called. NCCL
//! compares nothing. So who is missing, who differs and who has left is found here, by the engine that carries the
//! words, and all ranks hear the same of it.
//!
//! The words are calls of the same group on the host's side, so calls on cards and others are one sequence: ranks that
//! come to different ones differ, wherever their tensors are.

use crate::backends::Backend;
use crate::check::{self, Call};
use crate::error::{Error, Result};
use crate::membership::Membership;
use crate::op::{Difference, Label, Op, Signature};
use crate::work::{Pending, Tensors};
use phalanx_tensor::{DType, Tensor};
use smallvec::SmallVec;
use std::fmt::{self, Write as _};
use std::sync::Arc;

/// The group over which the words go.
pub(super) struct Shadow {
    /// The host's side of the group of cards.
    engine: Arc<dyn Backend>,
    /// Where ranks that differ tell each other what they called: in a group of its own, since the next words may be on
    /// their way already.
    texts: Arc<dyn Backend>,
}

/// A word under way, and what this rank has said.
pub(super) struct Said {
    pending: Box<dyn Pending>,
    words: Words,
}

/// FNV-1a of what is printed into it.
struct Hash(u64);

impl fmt::Write for Hash {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(())
    }
}

fn hash(what: impl fmt::Debug) -> i64 {
    let mut hash = Hash(0xcbf2_9ce4_8422_2325);
    // Printing into a hash does not fail.
    let _ = write!(hash, "{what:?}");
    hash.0 as i64
}

/// What a rank says of its call: a number for each respect in which calls may differ.
type Words = [i64; RESPECTS.len()];

const RESPECTS: [Difference; 8] = [
    Difference::Operation,
    Difference::Reduction,
    Difference::Root,
    Difference::Count,
    Difference::DType,
    Difference::Shape,
    Difference::Label,
    Difference::Device,
];

fn words(signature: &Signature, slot: usize) -> Words {
    let Signature {
        op, tensors, label, ..
    } = signature;
    let name = match op.is_message() {
        true => "message", // of two ends
        false => op.name(),
    };
    let rows = usize::from(matches!(op, Op::AllToAllV(_))); // axis 0 may differ
    let types: SmallVec<[DType; 4]> = tensors.iter().map(|(dtype, _)| *dtype).collect();
    let shapes = tensors
        .iter()
        .map(|(_, shape)| &shape[rows.min(shape.len())..]);
    let shapes: SmallVec<[&[usize]; 4]> = shapes.collect();
    [
        hash(name),
        hash(op.reduction()),
        hash(op.root()),
        tensors.len() as i64,
        hash(types),
        hash(shapes),
        hash(label.as_deref().map(Label::compared)),
        slot as i64,
    ]
}

/// The longest text of a call that others are told.
const MOST_TEXT: usize = 512;

impl Shadow {
    /// Beside the group of cards whose host's side this is.
    pub(super) fn new(host: &Arc<dyn Backend>) -> Result<Shadow> {
        let me = host.membership();
        let texts = Membership {
            name: format!("{} in words", me.name).into(),
            ..me.clone()
        };
        Ok(Shadow {
            engine: Arc::clone(host),
            texts: host.split_off(texts)?,
        })
    }

    fn numbers(&self, numbers: &[i64]) -> Result<Tensor> {
        let device = self.engine.membership().device;
        Ok(Tensor::from_slice(numbers, [numbers.len()], device)?)
    }

    /// Bytes of rank 0, for all: it makes them, and the others give as many of their own.
    pub(super) fn share<const N: usize>(&self, mine: [u8; N]) -> Result<[u8; N]> {
        let me = self.engine.membership();
        let mine = Tensor::from_slice(&mine, [N], me.device)?;
        let pending = self.engine.issue(check::broadcast(me, mine, 0)?)?;
        let bytes = first(pending.wait()?)?.to_vec::<u8>()?;
        bytes.try_into().map_err(|_| self.broken("a broadcast"))
    }

    /// Says what this rank calls, on the card of which slot. It waits for nobody.
    pub(super) fn say(&self, signature: &Signature, slot: usize) -> Result<Said> {
        let me = self.engine.membership();
        let words = words(signature, slot);
        let mut call: Call = match &signature.op {
            Op::Send { destination, tag } => {
                check::send(me, self.numbers(&words)?, *destination, *tag)?
            }
            Op::Recv { source, tag } => {
                check::recv(me, [words.len()].into(), DType::I64, *source, *tag)?
            }
            Op::AllToAllV(splits) => {
                let sends = splits.send.iter().map(|&rows| rows as i64);
                let row: Vec<i64> = words.into_iter().chain(sends).collect();
                check::all_gather(me, self.numbers(&row)?)?
            }
            _ => check::all_gather(me, self.numbers(&words)?)?,
        };
        // Whoever waits for it, or calls something else, waits for that call, or differs from it.
        call.signature.beside = Some(signature.to_string().into());
        Ok(Said {
            pending: self.engine.issue(call)?,
            words,
        })
    }

    /// Waits for what the others say of their call of this number, and compares.
    ///
    /// # Errors
    /// The world's failure; among them, that ranks differ here.
    pub(super) fn compare(&self, said: Said, number: u64, signature: &Signature) -> Result<()> {
        let Said { pending, words } = said;
        let heard = pending.wait()?;
        let Some(heard) = heard.into_iter().next() else {
            return Ok(()); // a send: the receiver compares
        };
        let me = self.engine.membership();
        let heard = heard.to_vec::<i64>()?;
        let differs = |heard: &[i64]| (0..words.len()).find(|&at| heard[at] != words[at]);
        match &signature.op {
            Op::Recv { source, .. } => match differs(&heard) {
                None => Ok(()),
                Some(at) => {
                    let theirs = "another tensor to send".to_owned();
                    self.differ(
                        *source,
                        theirs,
                        me.rank,
                        signature.to_string(),
                        RESPECTS[at],
                        number,
                    )
                }
            },
            Op::AllToAllV(splits) => {
                let rows: Vec<&[i64]> = heard.chunks_exact(words.len() + me.size()).collect();
                let all = rows.iter().filter_map(|row| row.first_chunk().copied());
                self.expect_agreement(&all.collect::<Vec<Words>>(), number, signature)?;
                let sent = rows.iter().map(|row| row[words.len() + me.rank]);
                let mut sent = sent.zip(&splits.recv);
                let odd = sent.position(|(rows, &expected)| rows != expected as i64);
                match odd {
                    None => Ok(()),
                    Some(rank) => {
                        let theirs = format!("{} with other splits", signature.op.name());
                        self.differ(
                            rank,
                            theirs,
                            me.rank,
                            signature.to_string(),
                            Difference::Splits,
                            number,
                        )
                    }
                }
            }
            _ => self.expect_agreement(heard.as_chunks().0, number, signature),
        }
    }

    /// What ranks say of their calls is the same. All of them look at the same words, and find the same rank that differs.
    fn expect_agreement(&self, all: &[Words], number: u64, signature: &Signature) -> Result<()> {
        let Some((odd, other)) = odd_one_out(all) else {
            return Ok(());
        };
        let at = (0..RESPECTS.len()).find(|&at| all[odd][at] != all[other][at]);
        let respect = RESPECTS[at.unwrap_or(0)];
        let texts = self.tell(signature.to_string())?;
        let [theirs, others] = [odd, other].map(|rank| texts[rank].clone());
        self.differ(odd, theirs, other, others, respect, number)
    }

    /// What all ranks have called, in words. All of them ask, since all have heard the same.
    fn tell(&self, mut mine: String) -> Result<Vec<String>> {
        let me = self.texts.membership();
        while mine.len() > MOST_TEXT {
            mine.pop();
        }
        let mut bytes = mine.into_bytes();
        bytes.resize(MOST_TEXT, 0);
        let bytes = Tensor::from_vec(bytes, [MOST_TEXT], me.device)?;
        let pending = self.texts.issue(check::all_gather(me, bytes)?)?;
        let bytes = first(pending.wait()?)?.to_vec::<u8>()?;
        let text = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes);
            text.trim_end_matches('\0').to_owned()
        };
        Ok(bytes.chunks(MOST_TEXT).map(text).collect())
    }

    /// Ends the world, since one rank differs.
    fn differ(
        &self,
        odd: usize,
        call: String,
        other: usize,
        other_call: String,
        difference: Difference,
        sequence: u64,
    ) -> Result<()> {
        let me = self.engine.membership();
        let error = Error::Divergence {
            group: Arc::clone(&me.name),
            sequence,
            rank: me.world_ranks[odd],
            call,
            other: me.world_ranks[other],
            other_call,
            difference,
        };
        self.engine.fail(error.clone());
        Err(self.engine.fault().unwrap_or(error))
    }

    fn broken(&self, call: &str) -> Error {
        Error::Transport {
            rank: self.engine.membership().world_rank(),
            call: call.to_owned(),
            message: "something else has come than a rank has said".into(),
        }
    }

    pub(super) fn engine(&self) -> &dyn Backend {
        &*self.engine
    }
}

fn first(tensors: Tensors) -> Result<Tensor> {
    tensors.into_iter().next().ok_or_else(|| Error::Transport {
        rank: 0,
        call: "small talk".into(),
        message: "nothing has come".into(),
    })
}

/// Who says what the fewest say, where ranks differ, of those the last; and the first of those that say what most do.
fn odd_one_out(all: &[Words]) -> Option<(usize, usize)> {
    let with = |words: &Words| all.iter().filter(|other| *other == words).count();
    let counts: Vec<usize> = all.iter().map(with).collect();
    let odd = (0..all.len()).rev().min_by_key(|&rank| counts[rank])?;
    let differing = (0..all.len()).filter(|&rank| all[rank] != all[odd]);
    let other = differing.rev().max_by_key(|&rank| counts[rank])?;
    Some((odd, other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::ReduceOp;
    use phalanx_tensor::Shape;
    use smallvec::smallvec;

    /// The tests of failures look for words of this length in errors, where they do not belong.
    #[test]
    fn words_have_eight_numbers() {
        assert_eq!(RESPECTS.len(), 8);
    }

    #[test]
    fn the_odd_one_is_who_has_the_fewest_with_it() {
        let odd = |words: &[i64]| {
            let all: Vec<Words> = words.iter().map(|&word| [word; RESPECTS.len()]).collect();
            odd_one_out(&all)
        };
        assert_eq!(odd(&[3, 3, 3]), None);
        assert_eq!(odd(&[3, 4]), Some((1, 0)));
        assert_eq!(odd(&[4, 3, 3]), Some((0, 1)));
        assert_eq!(odd(&[3, 3, 4, 4]), Some((3, 0)));
        assert_eq!(odd(&[]), None);
    }

    #[test]
    fn words_differ_where_signatures_do() {
        let signature = |op: Op, dtype, shape: &[usize]| Signature {
            op,
            tensors: smallvec![(dtype, Shape::from(shape))],
            label: None,
            beside: None,
        };
        let ours = signature(Op::AllReduce(ReduceOp::Sum), DType::F32, &[2, 3]);
        let others = [
            signature(Op::ReduceScatter(ReduceOp::Sum), DType::F32, &[2, 3]),
            signature(Op::AllReduce(ReduceOp::Max), DType::F32, &[2, 3]),
            signature(Op::AllReduce(ReduceOp::Sum), DType::F64, &[2, 3]),
            signature(Op::AllReduce(ReduceOp::Sum), DType::F32, &[3, 2]),
        ];
        for other in others {
            let (a, b) = (words(&ours, 0), words(&other, 0));
            let first = (0..a.len())
                .find(|&at| a[at] != b[at])
                .map(|at| RESPECTS[at]);
            assert_eq!(first, Signature::difference((0, &ours), (1, &other)));
        }
    }
}
