//! [`StoreWork`]: one rank's side of a call that it has left at the store, and how it waits for the others.

use super::session::{DEPARTED, FAULT, is_there, look};
use super::{Endpoint, wire};
use crate::check::{Call, Room};
use crate::error::{Error, Result};
use crate::meeting::late::{Clock, grace};
use crate::meeting::verdict::{Heard, verdict};
use crate::membership::Membership;
use crate::op::{Op, Signature};
use crate::store::{Reply, Request, Until};
use crate::work::{Pending, Tensors};
use phalanx_tensor::Tensor;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a rank keeps of its own call.
pub(super) struct Posted {
    signature: Signature,
    /// Contiguous; none where the input is the room for the result.
    inputs: Tensors,
    /// Room for the results.
    outputs: Tensors,
}

impl Posted {
    /// Makes room for the results of a checked call, and gives the bytes that the others are to read.
    pub(super) fn new(call: Call, me: &Membership) -> Result<(Posted, Vec<u8>)> {
        let signature = call.signature;
        let root = signature.op.root();
        let mut inputs = Tensors::new();
        for tensor in call.inputs {
            inputs.push(match tensor.is_contiguous() {
                true => tensor,
                false => tensor.contiguous()?,
            });
        }
        // Of a broadcast only the root's values matter.
        let gives = root.is_none_or(|root| root == me.rank);
        let value = match gives {
            true => {
                let data = inputs.iter().map(Tensor::as_bytes);
                wire::call(&signature, &data.collect::<Result<Vec<_>, _>>()?)
            }
            false => wire::call(&signature, &[]),
        };
        let outputs = match signature.op {
            // The tensor is its own result, or the room for it unless somebody else holds it.
            Op::Broadcast { .. } => {
                let mut outputs = Tensors::new();
                for input in std::mem::take(&mut inputs) {
                    outputs.push(match gives || input.is_unique() {
                        true => input,
                        false => {
                            Tensor::empty(input.shape().clone(), input.dtype(), input.device())?
                        }
                    });
                }
                outputs
            }
            _ => {
                let rooms = call.outputs.into_iter().zip(&inputs);
                let rooms = rooms.map(|(room, input)| match room {
                    Room::Given(t) if t.is_unique() && t.is_contiguous() => Ok(t),
                    room => {
                        let (dtype, device) = (input.dtype(), input.device());
                        Tensor::empty(room.shape().clone(), dtype, device)
                    }
                });
                rooms.collect::<Result<Tensors, _>>()?
            }
        };
        let posted = Posted {
            signature,
            inputs,
            outputs,
        };
        Ok((posted, value))
    }

    /// The results, out of all ranks' data; of this rank's own there is none. `None` where a rank's data are too short.
    fn take(mut self, me: &Membership, data: &[&[u8]]) -> Result<Option<Tensors>> {
        let root = self.signature.op.root();
        if root == Some(me.rank) {
            return Ok(Some(self.outputs));
        }
        let mut at = 0;
        for (i, output) in self.outputs.iter_mut().enumerate() {
            let (dtype, shape) = &self.signature.tensors[i];
            let bytes = shape.numel() * dtype.size();
            let into = output.bytes_mut()?;
            let from = |rank: usize| data[rank].get(at..)?.get(..bytes);
            match root {
                Some(root) => match from(root) {
                    Some(from) => into.copy_from_slice(from),
                    None => return Ok(None),
                },
                None => {
                    for rank in 0..me.size() {
                        let from = match rank == me.rank {
                            true => Some(self.inputs[i].as_bytes()?),
                            false => from(rank),
                        };
                        let Some(from) = from else {
                            return Ok(None);
                        };
                        into[rank * bytes..][..bytes].copy_from_slice(from);
                    }
                }
            }
            at += bytes;
        }
        Ok(Some(self.outputs))
    }
}

/// A rank's side of a call that it has left.
pub(super) struct StoreWork {
    me: Arc<Endpoint>,
    number: u64,
    posted: Posted,
    /// All have come.
    is_full: bool,
    /// How many departures this rank has looked at.
    departures: i64,
}

/// What ranks of the group have left of a call, by rank.
type Left = Vec<Option<Vec<u8>>>;

impl StoreWork {
    pub(super) fn new(me: Arc<Endpoint>, number: u64, posted: Posted, is_full: bool) -> StoreWork {
        StoreWork {
            me,
            number,
            posted,
            is_full,
            departures: 0,
        }
    }

    /// All have come.
    fn full(&self) -> Until {
        let than = self.me.membership.size() as i64 - 1;
        Until::Above(self.me.count_key(self.number), than)
    }

    /// What the others have left so far, and raises the number of those that have read it, where all have.
    fn read(&self, all: bool) -> Result<(Left, bool)> {
        let me = &self.me.membership;
        let others = (0..me.size()).filter(|&rank| rank != me.rank);
        let mut requests: Vec<Request> = others
            .map(|rank| look(self.me.call_key(self.number, rank)))
            .collect();
        if all {
            requests.push(Request::Add {
                key: self.me.read_key(self.number),
                amount: 1,
            });
        }
        let mut replies = self.me.session.ask(&requests)?;
        let is_last = match all.then(|| replies.pop()).flatten() {
            Some(Reply::Number(read)) => read >= me.size() as i64,
            _ => false,
        };
        let mut left: Left = replies
            .into_iter()
            .map(|reply| match reply {
                Reply::Value(value) => Some(value),
                _ => None,
            })
            .collect();
        left.insert(me.rank, None);
        Ok((left, is_last))
    }

    /// The calls of those that have come, in the order of their ranks; fails if they differ.
    fn judge<'a>(&self, left: &'a [Option<Vec<u8>>]) -> Result<Vec<(usize, &'a [u8])>> {
        let me = &self.me.membership;
        let mut calls: Vec<(usize, Signature)> = Vec::new();
        let mut data = Vec::new();
        for (rank, value) in left.iter().enumerate() {
            if rank == me.rank {
                calls.push((rank, self.posted.signature.clone()));
            } else if let Some(value) = value {
                let Some((signature, rest)) = wire::read_call(value) else {
                    let rank = me.world_ranks[rank];
                    let what = format!("what rank {rank} has left at the store is no call");
                    return Err(self.me.broken(&self.posted.signature, what));
                };
                calls.push((rank, signature));
                data.push((rank, rest));
            }
        }
        let heard: Vec<Heard<'_>> = calls
            .iter()
            .map(|(rank, signature)| Heard {
                rank: me.world_ranks[*rank],
                index: *rank,
                signature,
            })
            .collect();
        let Some(found) = verdict(&heard) else {
            return Ok(data);
        };
        let (odd, other) = (heard[found.odd], heard[found.other]);
        Err(self.me.session.fail(Error::Divergence {
            group: Arc::clone(&me.name),
            sequence: self.number,
            rank: odd.rank,
            call: odd.signature.to_string(),
            other: other.rank,
            other_call: other.signature.to_string(),
            difference: found.difference,
        }))
    }

    /// All have come: reads what they have left.
    fn finish(self) -> Result<Tensors> {
        let (left, is_last) = self.read(true)?;
        let data = self.judge(&left)?;
        let (me, number) = (Arc::clone(&self.me), self.number);
        let broken = |signature: &Signature| {
            let what = "what a rank has left at the store is not there, or too short";
            me.broken(signature, what.into())
        };
        if data.len() + 1 < me.membership.size() {
            return Err(broken(&self.posted.signature));
        }
        let mut by_rank: Vec<&[u8]> = vec![&[]; me.membership.size()];
        for (rank, bytes) in data {
            by_rank[rank] = bytes;
        }
        let signature = self.posted.signature.clone();
        let results = self.posted.take(&me.membership, &by_rank);
        me.issue.lock().open.remove(&number);
        if is_last {
            let ranks = 0..me.membership.size();
            let mut keys: Vec<String> = ranks.map(|rank| me.call_key(number, rank)).collect();
            keys.extend([me.count_key(number), me.read_key(number)]);
            let deletes: Vec<Request> = keys
                .chunks(KEYS)
                .map(|keys| Request::Delete {
                    keys: keys.to_vec(),
                })
                .collect();
            me.session.ask(&deletes)?;
        }
        results?.ok_or_else(|| broken(&signature))
    }

    /// Fails if somebody who is still to come has left.
    fn check_departures(&mut self) -> Result<()> {
        let me = &self.me.membership;
        // What a rank has left before it departed is there for whoever has seen that it departed. So ask first who
        // has, then who has not come.
        let (count, gone) = self.me.session.departures(&me.world_ranks)?;
        let (left, _) = self.read(false)?;
        self.judge(&left)?;
        let missing = missing(me, &left);
        if let Some(&rank) = missing.iter().find(|rank| gone.contains(rank)) {
            return Err(self.me.session.fail(Error::RankReturned {
                group: Arc::clone(&me.name),
                sequence: self.number,
                rank,
                waiting: me.world_rank(),
                call: self.posted.signature.to_string(),
            }));
        }
        self.departures = count;
        Ok(())
    }

    /// The deadline has passed: fails, unless all have come between the wait and this look.
    fn late(&self) -> Result<()> {
        let me = &self.me.membership;
        let (left, _) = self.read(false)?;
        self.judge(&left)?;
        let missing = missing(me, &left);
        let Some(&first) = missing.first() else {
            return Ok(());
        };
        let issued = self.issued_by(first)?;
        Err(self.me.session.fail(Error::DeadlineExceeded {
            group: Arc::clone(&me.name),
            sequence: self.number,
            rank: me.world_rank(),
            call: self.posted.signature.to_string(),
            missing,
            deadline: me.deadline,
            chain: Vec::new(),
            note: format!("rank {first} has issued {issued} collectives of this group"),
        }))
    }

    /// How many calls of the group a rank of the world has issued: the first that it has not is among those that have
    /// not ended here.
    fn issued_by(&self, world_rank: usize) -> Result<u64> {
        let me = &self.me.membership;
        let Some(rank) = me.world_ranks.iter().position(|&rank| rank == world_rank) else {
            return Ok(0);
        };
        let open: Vec<u64> = self.me.issue.lock().open.iter().copied().collect();
        let all: Vec<Request> = open
            .iter()
            .map(|&number| is_there(self.me.call_key(number, rank)))
            .collect();
        let replies = self.me.session.ask(&all)?;
        let first = replies.iter().position(|reply| *reply != Reply::Done);
        Ok(first.map_or(self.number, |at| open[at]))
    }
}

/// How many keys are removed by one request.
const KEYS: usize = 1024;

/// The ranks of the world that have left nothing.
fn missing(me: &Membership, left: &[Option<Vec<u8>>]) -> Vec<usize> {
    let others = (0..me.size()).filter(|&rank| rank != me.rank && left[rank].is_none());
    others.map(|rank| me.world_ranks[rank]).collect()
}

impl Pending for StoreWork {
    fn poll(&mut self) -> Result<bool> {
        if self.is_full {
            return Ok(true);
        }
        let until = vec![self.full(), Until::Set(FAULT.into())];
        let request = Request::WaitAny {
            until,
            patience: Duration::ZERO,
        };
        match self.me.session.ask(&[request])?.pop() {
            Some(Reply::Index(0)) => {
                self.is_full = true;
                Ok(true)
            }
            Some(Reply::Index(_)) => Err(self.me.session.hear()),
            _ => Ok(false),
        }
    }

    fn wait(mut self: Box<Self>) -> Result<Tensors> {
        let mut clock = Clock::start(Instant::now(), self.me.membership.deadline);
        // When it is looked whether those that have come agree; then after twice as long, and so on. So ranks that
        // differ hear of it before the last one has come, or the deadline has passed.
        let mut suspicion = grace(self.me.membership.deadline);
        while !self.is_full {
            self.me.session.refuse()?;
            let until = vec![
                self.full(),
                Until::Set(FAULT.into()),
                Until::Above(DEPARTED.into(), self.departures),
            ];
            let patience = clock.pause();
            let request = Request::WaitAny { until, patience };
            let reply = self.me.session.ask(&[request])?.pop();
            let waited = clock.look(Instant::now());
            match reply {
                Some(Reply::Index(0)) => self.is_full = true,
                Some(Reply::Index(1)) => return Err(self.me.session.hear()),
                Some(Reply::Index(_)) => self.check_departures()?,
                _ if clock.is_over() => {
                    self.late()?;
                    self.is_full = true;
                }
                _ if waited >= suspicion => {
                    suspicion = suspicion.saturating_mul(2);
                    let (left, _) = self.read(false)?;
                    self.judge(&left)?;
                }
                _ => {}
            }
        }
        self.finish()
    }
}
