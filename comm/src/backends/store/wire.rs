//! What ranks leave at the store: a call, with its data.

use crate::op::{Label, Name, Op, Signature};
use crate::store::{Reader, Writer};
use phalanx_tensor::{DType, Shape};
use std::sync::Arc;

/// The operations that this engine carries, by the number that travels, with the rank and the tag that they name. None has
/// a reduction.
fn code(op: &Op) -> Option<(u8, usize, u32)> {
    match op {
        Op::Barrier => Some((0, 0, 0)),
        Op::AllGather => Some((1, 0, 0)),
        Op::Broadcast { root } => Some((2, *root, 0)),
        Op::Split => Some((3, 0, 0)),
        Op::Send { destination, tag } => Some((4, *destination, *tag)),
        Op::Recv { source, tag } => Some((5, *source, *tag)),
        _ => None,
    }
}

/// Whether the engine carries this operation.
pub(super) fn carries(op: &Op) -> bool {
    code(op).is_some()
}

/// A rank's call: what it called, and its tensors' bytes one behind the other.
pub(super) fn call(signature: &Signature, data: &[&[u8]]) -> Vec<u8> {
    let mut out = Writer::default();
    let (code, rank, tag) = code(&signature.op).unwrap_or((u8::MAX, 0, 0));
    out.byte(code).number(rank as u64).number(u64::from(tag));
    out.number(signature.tensors.len() as u64);
    for (dtype, shape) in &signature.tensors {
        let at = DType::ALL.iter().position(|one| one == dtype);
        out.byte(at.map_or(u8::MAX, |at| at as u8))
            .number(shape.len() as u64);
        for &extent in shape.iter() {
            out.number(extent as u64);
        }
    }
    match &signature.label {
        None => {
            out.byte(0);
        }
        Some(label) => {
            out.byte(1)
                .number(label.owner)
                .number(label.step)
                .number(label.part)
                .text(label.name.as_str());
        }
    }
    out.text(signature.beside.as_deref().unwrap_or_default());
    for bytes in data {
        out.raw(bytes);
    }
    out.into_bytes()
}

/// The call in these bytes, and where its data begin. `None` where it is none.
pub(super) fn read_call(bytes: &[u8]) -> Option<(Signature, &[u8])> {
    let mut from = Reader::new(bytes);
    let (code, rank) = (from.byte()?, from.size()?);
    let tag = u32::try_from(from.number()?).ok()?;
    let op = match code {
        0 => Op::Barrier,
        1 => Op::AllGather,
        2 => Op::Broadcast { root: rank },
        3 => Op::Split,
        4 => Op::Send {
            destination: rank,
            tag,
        },
        5 => Op::Recv { source: rank, tag },
        _ => return None,
    };
    let count = from.size()?;
    let mut tensors = smallvec::SmallVec::new();
    for _ in 0..count {
        let dtype = *DType::ALL.get(usize::from(from.byte()?))?;
        let rank = from.size()?;
        let extents: Option<Vec<usize>> = (0..rank).map(|_| from.size()).collect();
        tensors.push((dtype, Shape::from(extents?)));
    }
    let label = match from.byte()? {
        0 => None,
        1 => Some(Arc::new(Label {
            owner: from.number()?,
            step: from.number()?,
            part: from.number()?,
            name: Name::new(from.text()?),
        })),
        _ => return None,
    };
    let beside = from.text()?;
    let signature = Signature {
        op,
        tensors,
        label,
        beside: (!beside.is_empty()).then(|| beside.into()),
    };
    Some((signature, from.rest()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use smallvec::smallvec;

    #[test]
    fn calls_round_trip() {
        let label = Label {
            name: Name::new("3SEND_F2"),
            ..Label::new(7, u64::MAX, 3)
        };
        for op in [
            Op::Barrier,
            Op::AllGather,
            Op::Broadcast { root: 3 },
            Op::Split,
            Op::Send {
                destination: 2,
                tag: u32::MAX,
            },
            Op::Recv { source: 9, tag: 1 },
        ] {
            for label in [None, Some(Arc::new(label))] {
                for dtype in DType::ALL {
                    let signature = Signature {
                        op: op.clone(),
                        tensors: smallvec![
                            (dtype, Shape::from([3, 0, 1 << 33])),
                            (dtype, [].into())
                        ],
                        label: label.clone(),
                        beside: label.is_none().then(|| "reduce of what is on cards".into()),
                    };
                    let bytes = call(&signature, &[b"da", b"ta"]);
                    assert_eq!(read_call(&bytes), Some((signature, &b"data"[..])));
                    for end in 0..bytes.len() - 4 {
                        assert_eq!(read_call(&bytes[..end]), None);
                    }
                }
            }
        }
    }
}
