//! [`Message`]: sends and receives that run together; and the head of a message whose receiver does not know its shape.

use crate::check::{self, Call, MOST_AXES};
use crate::error::{Error, Result};
use crate::membership::Membership;
use phalanx_tensor::{DType, Device, Shape, Tensor};

/// One end of a message, for [`ProcessGroup::batch`](crate::ProcessGroup::batch). (PyTorch: `P2POp`.)
#[derive(Debug)]
pub enum Message {
    /// As [`ProcessGroup::send`](crate::ProcessGroup::send).
    Send {
        /// What is sent.
        tensor: Tensor,
        /// To whom.
        destination: usize,
        /// What the receiver compares.
        tag: u32,
    },
    /// As [`ProcessGroup::recv`](crate::ProcessGroup::recv).
    Recv {
        /// The shape of what comes.
        shape: Shape,
        /// Its type.
        dtype: DType,
        /// From whom.
        source: usize,
        /// What the sender said.
        tag: u32,
    },
}

impl Message {
    pub(super) fn check(self, me: &Membership) -> Result<Call> {
        match self {
            Message::Send {
                tensor,
                destination,
                tag,
            } => check::send(me, tensor, destination, tag),
            Message::Recv {
                shape,
                dtype,
                source,
                tag,
            } => check::recv(me, shape, dtype, source, tag),
        }
    }
}

/// The shape of a head: element type, in which memory the tensor is, number of axes, extents.
pub(super) const HEAD: [usize; 1] = [3 + MOST_AXES];

/// What a head says of the tensor that comes behind it.
pub(super) struct Head {
    shape: Shape,
    dtype: DType,
    /// The slot of the card that it is on; `None`: it is in the host's memory.
    slot: Option<usize>,
}

/// What travels before a tensor whose receiver does not know its shape, in a group over these cards of this rank. It is
/// small talk, so it lives in the host's memory.
pub(super) fn head(me: &Membership, cards: &[Device], tensor: &Tensor) -> Result<Tensor> {
    let wrong = |reason: String| Error::InvalidArgument {
        op: "send_any",
        rank: me.world_rank(),
        reason,
    };
    let shape = tensor.shape();
    if shape.len() > MOST_AXES {
        let axes = shape.len();
        let reason = format!("the tensor has {axes} axes; it may have {MOST_AXES}");
        return Err(wrong(reason));
    }
    let dtype = DType::ALL.iter().position(|d| *d == tensor.dtype());
    let mut head = [0; HEAD[0]];
    // A tensor on a card that is none of these is refused by `admit`, before the head is issued.
    let slot = cards.iter().position(|card| *card == tensor.device());
    let memory = slot.map_or(0, |slot| 1 + slot);
    let numbers = [dtype.unwrap_or_default(), memory, shape.len()];
    for (to, number) in head.iter_mut().zip(numbers.iter().chain(shape.iter())) {
        *to = i64::try_from(*number)
            .map_err(|_| wrong(format!("its shape {shape} is too large to be sent")))?;
    }
    Ok(Tensor::from_slice(&head, HEAD, host(me))?)
}

/// The receive of what comes behind such a head. It arrives where it was sent from: on the card of the same slot of this
/// rank's, or in the host's memory.
pub(super) fn behind(
    me: &Membership,
    head: Head,
    cards: &[Device],
    source: usize,
    tag: u32,
) -> Result<Call> {
    let Head { shape, dtype, slot } = head;
    let device = match slot {
        None => host(me),
        Some(slot) => *cards.get(slot).ok_or_else(|| {
            let there = cards.len();
            refused(
                me,
                format!("it was sent from card {slot} of a rank, and this one has {there}"),
            )
        })?,
    };
    check::recv(me, shape, dtype, source, tag)?.with_memory(device)
}

/// What such a head says.
pub(super) fn read_head(me: &Membership, head: &Tensor) -> Result<Head> {
    let head = head.to_vec::<i64>()?;
    let number = |at: usize| head.get(at).and_then(|n| usize::try_from(*n).ok());
    let read = || {
        let dtype = *DType::ALL.get(number(0)?)?;
        let axes = number(2).filter(|axes| *axes <= MOST_AXES)?;
        let extents = (3..3 + axes).map(number).collect::<Option<Vec<_>>>()?;
        Some(Head {
            shape: Shape::from(extents),
            dtype,
            slot: number(1)?.checked_sub(1),
        })
    };
    read().ok_or_else(|| {
        let reason = format!("what came is no shape, {head:?}: it was not sent by `send_any`");
        refused(me, reason)
    })
}

fn refused(me: &Membership, reason: String) -> Error {
    Error::InvalidArgument {
        op: "recv_any",
        rank: me.world_rank(),
        reason,
    }
}

/// The host's memory of a rank.
pub(super) fn host(me: &Membership) -> Device {
    match me.device.is_cpu() {
        true => me.device,
        false => Device::cpu(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Room;
    use crate::op::Op;
    use std::time::Duration;

    fn rank_1_of_2() -> Membership {
        Membership {
            rank: 1,
            world_ranks: [0, 1].into(),
            name: "world".into(),
            device: Device::cpu(0),
            deadline: Duration::from_secs(1),
        }
    }

    fn from_the_second_card() -> Head {
        Head {
            shape: [2].into(),
            dtype: DType::F32,
            slot: Some(1),
        }
    }

    #[test]
    fn a_head_says_what_comes_behind_it() {
        let me = rank_1_of_2();
        for (shape, dtype) in [(&[][..], DType::Bool), (&[3, 0, 5], DType::F32)] {
            let tensor = Tensor::zeros(shape, dtype, Device::cpu(0)).unwrap();
            let head = read_head(&me, &head(&me, &[], &tensor).unwrap()).unwrap();
            assert_eq!((&*head.shape, head.dtype, head.slot), (shape, dtype, None));
            let call = behind(&me, head, &[], 0, 7).unwrap();
            assert_eq!(call.signature.op, Op::Recv { source: 0, tag: 7 });
            assert_eq!(*call.signature.tensors, [(dtype, Shape::from(shape))]);
        }
        let many = Tensor::zeros([1; MOST_AXES + 1], DType::F32, Device::cpu(0)).unwrap();
        let error = head(&me, &[], &many).unwrap_err().to_string();
        let expected = "send_any on rank 1: the tensor has 15 axes; it may have 14";
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn a_tensor_arrives_on_the_card_of_the_same_slot() {
        // For want of two cards.
        let cards = [Device::cuda(0), Device::cpu(0)];
        let call = behind(&rank_1_of_2(), from_the_second_card(), &cards, 0, 7).unwrap();
        assert_eq!(call.outputs[0].shape(), &Shape::from([2]));
        assert!(matches!(&call.outputs[0], Room::Given(t) if t.device() == cards[1]));
    }

    #[test]
    fn a_head_from_a_card_that_is_not_here_is_refused() {
        let cards = [Device::cuda(0)];
        let error = behind(&rank_1_of_2(), from_the_second_card(), &cards, 0, 7).unwrap_err();
        assert_eq!(
            error.to_string(),
            "recv_any on rank 1: it was sent from card 1 of a rank, and this one has 1"
        );
    }

    #[test]
    fn what_is_no_head_is_refused() {
        let me = rank_1_of_2();
        let good: [i64; HEAD[0]] = std::array::from_fn(|at| i64::from(at == 2)); // [0]
        let numbers = |head: &[i64]| Tensor::from_slice(head, [head.len()], Device::cpu(0));
        assert!(read_head(&me, &numbers(&good).unwrap()).is_ok());
        // An element type, a memory, a number of axes and an extent that are none.
        let types = DType::ALL.len() as i64;
        let axes = MOST_AXES as i64 + 1;
        for (at, odd) in [(0, -1), (0, types), (1, -1), (2, -1), (2, axes), (3, -1)] {
            let mut head = good.to_vec();
            head.push(0); // so that it does not end before the extents do
            head[at] = odd;
            let Err(error) = read_head(&me, &numbers(&head).unwrap()) else {
                panic!("{head:?} is taken for a head");
            };
            assert!(
                error.to_string().contains("it was not sent by `send_any`"),
                "{error}"
            );
        }
    }
}
