//! [`Header`]: what a rank tells the others about a call before any data moves, and [`Key`], under
//! which the headers of one operation meet. Little-endian bytes, of any length.

use crate::op::{Label, Name, Op, ReduceOp, Signature, Splits};
use phalanx_tensor::{DType, Shape};
use std::sync::Arc;

/// One rank's call, as the other ranks of the group hear of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Header {
    /// The epoch of the world: see [`Detector`](super::detector::Detector).
    pub(super) epoch: u64,
    /// The group: see [`group_id`].
    pub(super) group: u64,
    /// The sender's rank in the group.
    pub(super) from: usize,
    /// The collective's number in the group; of a message, the number among those between the two
    /// ranks.
    pub(super) number: u64,
    /// The first tag of the bulk data that the sender of this header will get from its receiver.
    pub(super) tag: u32,
    /// What was called.
    pub(super) signature: Signature,
}

/// An operation, on whatever rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// The collective of this number in a group.
    Collective { group: u64, number: u64 },
    /// The message of this number between two ranks of a group.
    Message {
        group: u64,
        from: usize,
        to: usize,
        number: u64,
    },
}

impl Header {
    pub(super) fn key(&self) -> Key {
        let (group, number) = (self.group, self.number);
        let message = |from, to| Key::Message {
            group,
            from,
            to,
            number,
        };
        match self.signature.op {
            Op::Send { destination, .. } => message(self.from, destination),
            Op::Recv { source, .. } => message(source, self.from),
            _ => Key::Collective { group, number },
        }
    }

    /// Appends the header to `out`. What follows it is the call's inline data.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        for number in [
            self.epoch,
            self.group,
            self.from as u64,
            self.number,
            u64::from(self.tag),
        ] {
            put(out, number);
        }
        let op = &self.signature.op;
        let reduction = op.reduction().and_then(|r| place(&ReduceOp::ALL, &r));
        let (code, a, b) = match op {
            Op::AllReduce(_) => (0, 0, 0),
            Op::Broadcast { root } => (1, *root, 0),
            Op::Reduce { root, .. } => (2, *root, 0),
            Op::AllGather => (3, 0, 0),
            Op::Gather { root } => (4, *root, 0),
            Op::Scatter { root } => (5, *root, 0),
            Op::ReduceScatter(_) => (6, 0, 0),
            Op::AllToAll => (7, 0, 0),
            Op::AllToAllV(splits) => (8, splits.send.len(), 0),
            Op::Send { destination, tag } => (9, *destination, *tag),
            Op::Recv { source, tag } => (10, *source, *tag),
            Op::Barrier => (11, 0, 0),
            Op::Split => (12, 0, 0),
        };
        out.extend([code, reduction.unwrap_or(NONE)]);
        let tensors = &self.signature.tensors;
        for number in [a as u64, u64::from(b), tensors.len() as u64] {
            put(out, number);
        }
        for (dtype, shape) in tensors {
            out.push(place(&DType::ALL, dtype).unwrap_or(NONE));
            put(out, shape.len() as u64);
            shape.iter().for_each(|&extent| put(out, extent as u64));
        }
        let label = &self.signature.label;
        out.push(u8::from(label.is_some()));
        if let Some(label) = label {
            for number in label.compared() {
                put(out, number);
            }
            put_text(out, label.name.as_str());
        }
        put_text(out, self.signature.beside.as_deref().unwrap_or_default());
        if let Op::AllToAllV(splits) = op {
            let rows = splits.send.iter().chain(&splits.recv);
            rows.for_each(|&rows| put(out, rows as u64));
        }
    }

    /// The header at the start of `bytes`, which keep what follows it. `None` if that is none.
    pub(super) fn read(bytes: &mut &[u8]) -> Option<Header> {
        let [epoch, group, from, number, tag] = numbers(bytes)?;
        let [code, reduction] = *bytes.split_off(..2)?.first_chunk()?;
        let [a, b, count] = numbers(bytes)?;
        let (root, peer) = (usize::try_from(a).ok()?, usize::try_from(a).ok()?);
        let message = u32::try_from(b).ok()?;
        let reduction = ReduceOp::ALL.get(usize::from(reduction)).copied();
        let tensors = (0..count).map(|_| tensor(bytes)).collect::<Option<_>>()?;
        let label = match bytes.split_off_first()? {
            0 => None,
            1 => {
                let [owner, step, part] = numbers(bytes)?;
                let name = Name::new(text(bytes)?);
                Some(Arc::new(Label {
                    name,
                    ..Label::new(owner, step, part)
                }))
            }
            _ => return None,
        };
        let beside = text(bytes)?;
        let op = match code {
            0 => Op::AllReduce(reduction?),
            1 => Op::Broadcast { root },
            2 => Op::Reduce {
                op: reduction?,
                root,
            },
            3 => Op::AllGather,
            4 => Op::Gather { root },
            5 => Op::Scatter { root },
            6 => Op::ReduceScatter(reduction?),
            7 => Op::AllToAll,
            8 => Op::AllToAllV(Arc::new(Splits {
                send: list(bytes, a)?.into(),
                recv: list(bytes, a)?.into(),
            })),
            9 => Op::Send {
                destination: peer,
                tag: message,
            },
            10 => Op::Recv {
                source: peer,
                tag: message,
            },
            11 => Op::Barrier,
            12 => Op::Split,
            _ => return None,
        };
        Some(Header {
            epoch,
            group,
            from: usize::try_from(from).ok()?,
            number,
            tag: u32::try_from(tag).ok()?,
            signature: Signature {
                op,
                tensors,
                label,
                beside: (!beside.is_empty()).then(|| beside.into()),
            },
        })
    }
}

const NONE: u8 = u8::MAX;

fn place<T: PartialEq>(all: &[T], one: &T) -> Option<u8> {
    let at = all.iter().position(|x| x == one)?;
    u8::try_from(at).ok()
}

fn put(out: &mut Vec<u8>, number: u64) {
    out.extend(number.to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put(out, text.len() as u64);
    out.extend(text.as_bytes());
}

fn text<'a>(bytes: &mut &'a [u8]) -> Option<&'a str> {
    let [length] = numbers(bytes)?;
    let text = bytes.split_off(..usize::try_from(length).ok()?)?;
    std::str::from_utf8(text).ok()
}

fn numbers<const N: usize>(bytes: &mut &[u8]) -> Option<[u64; N]> {
    let mut out = [0; N];
    for number in &mut out {
        *number = u64::from_le_bytes(*bytes.split_off(..8)?.first_chunk()?);
    }
    Some(out)
}

fn list(bytes: &mut &[u8], n: u64) -> Option<Vec<usize>> {
    (0..n)
        .map(|_| usize::try_from(numbers::<1>(bytes)?[0]).ok())
        .collect()
}

fn tensor(bytes: &mut &[u8]) -> Option<(DType, Shape)> {
    let dtype = *DType::ALL.get(usize::from(*bytes.split_off_first()?))?;
    let [rank] = numbers(bytes)?;
    Some((dtype, Shape::from(list(bytes, rank)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_round_trip() {
        let splits = Splits {
            send: [1, 0, 7].into(),
            recv: [1, 2, 3].into(),
        };
        let ops = [
            Op::AllReduce(ReduceOp::Avg),
            Op::Broadcast { root: 2 },
            Op::Reduce {
                op: ReduceOp::BitXor,
                root: 1,
            },
            Op::AllGather,
            Op::Gather { root: 3 },
            Op::Scatter { root: 0 },
            Op::ReduceScatter(ReduceOp::Sum),
            Op::AllToAll,
            Op::AllToAllV(Arc::new(splits)),
            Op::Send {
                destination: 4,
                tag: u32::MAX,
            },
            Op::Recv { source: 5, tag: 6 },
            Op::Barrier,
            Op::Split,
        ];
        let one = DType::ALL.map(|dtype| vec![(dtype, Shape::from([3, 0, 1 << 33]))]);
        let all = DType::ALL.map(|dtype| (dtype, Shape::from([2])));
        let many = [vec![], all.to_vec(), vec![(DType::F32, Shape::from(()))]];
        let labels = [
            None,
            Some(Label::new(7, u64::MAX, 3)),
            Some(Label {
                name: Name::new("3SEND_F2"),
                ..Label::new(7, 0, 0)
            }),
        ];
        for (op, label) in ops.iter().flat_map(|op| labels.map(|label| (op, label))) {
            for tensors in one.iter().chain(&many) {
                let header = Header {
                    epoch: 3,
                    group: 3,
                    from: 7,
                    number: u64::MAX,
                    tag: 12,
                    signature: Signature {
                        op: op.clone(),
                        tensors: tensors.clone().into(),
                        label: label.map(Arc::new),
                        beside: label.is_none().then(|| "reduce of what is on cards".into()),
                    },
                };
                let mut bytes = Vec::new();
                header.write(&mut bytes);
                let whole = bytes.len();
                bytes.extend(b"data");
                let mut rest = &bytes[..];
                assert_eq!(Header::read(&mut rest).as_ref(), Some(&header));
                assert_eq!(rest, b"data");
                // No prefix of a header is one.
                for end in 0..whole {
                    assert_eq!(Header::read(&mut &bytes[..end]), None);
                }
            }
        }
    }
}
