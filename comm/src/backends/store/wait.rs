//! [`StoreWork`]: one rank's side of a call that it has left at the store, and how it waits for the others.

use super::meet::{Dropped, Issued};
use super::session::{DEPARTED, FAULT};
use super::{Endpoint, SENDER, wire};
use crate::check::{Call, Room};
use crate::error::{Error, Result};
use crate::meeting::late::{Clock, grace};
use crate::membership::Membership;
use crate::op::{Op, Signature};
use crate::store::{Reply, Request, Until};
use crate::work::{Pending, Tensors};
use phalanx_tensor::Tensor;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a rank keeps of its own call.
pub(super) struct Posted {
    /// Contiguous; none where the input is the room for the result.
    inputs: Tensors,
    /// Room for the results.
    outputs: Tensors,
}

impl Posted {
    /// Makes room for the results of a checked call, and gives the bytes that the others are to read.
    pub(super) fn new(call: Call, me: &Membership) -> Result<(Posted, Vec<u8>)> {
        let signature = &call.signature;
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
                wire::call(signature, &data.collect::<Result<Vec<_>, _>>()?)
            }
            false => wire::call(signature, &[]),
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
            // What comes is of no input.
            Op::Recv { .. } => {
                let rooms = call.outputs.into_iter().zip(&signature.tensors);
                let rooms = rooms.map(|(room, (dtype, _))| match room {
                    Room::Given(t) if t.is_unique() && t.is_contiguous() => Ok(t),
                    room => Tensor::empty(room.shape().clone(), *dtype, me.device),
                });
                rooms.collect::<Result<Tensors, _>>()?
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
        Ok((Posted { inputs, outputs }, value))
    }

    /// The results, out of all ranks' data; of this rank's own there is none. `None` where a rank's data are too short.
    fn take(
        mut self,
        signature: &Signature,
        me: &Membership,
        data: &[&[u8]],
    ) -> Result<Option<Tensors>> {
        // Whose data the result is; that of all ranks, where there is none.
        let root = match signature.op {
            Op::Recv { .. } => Some(SENDER),
            _ => signature.op.root(),
        };
        if root == Some(me.rank) {
            return Ok(Some(self.outputs));
        }
        let mut at = 0;
        for (i, output) in self.outputs.iter_mut().enumerate() {
            let (dtype, shape) = &signature.tensors[i];
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
    call: Issued,
    /// Until it has the result.
    posted: Option<Posted>,
    /// All have come.
    is_full: bool,
    /// How many departures this rank has looked at.
    departures: i64,
}

impl StoreWork {
    pub(super) fn new(me: Arc<Endpoint>, call: Issued, posted: Posted, is_full: bool) -> StoreWork {
        StoreWork {
            me,
            call,
            posted: Some(posted),
            is_full,
            departures: 0,
        }
    }

    /// All have come: reads what they have left.
    fn finish(mut self) -> Result<Tensors> {
        let (me, call) = (Arc::clone(&self.me), &self.call);
        let (left, is_last) = me.read(call, true)?;
        let data = me.judge(call, &left)?;
        let broken = || {
            let what = "what a rank has left at the store is not there, or too short";
            me.broken(&call.signature, what.into())
        };
        if data.len() + 1 < me.membership.size() {
            return Err(broken());
        }
        let mut by_rank: Vec<&[u8]> = vec![&[]; me.membership.size()];
        for (rank, bytes) in data {
            by_rank[rank] = bytes;
        }
        let posted = self.posted.take();
        let results = posted.map(|posted| posted.take(&call.signature, &me.membership, &by_rank));
        me.ended(call.number, is_last);
        results.transpose()?.flatten().ok_or_else(broken)
    }

    /// Fails if somebody who is still to come has left.
    fn check_departures(&mut self) -> Result<()> {
        let me = &self.me.membership;
        // What a rank has left before it departed is there for whoever has seen that it departed. So ask first who
        // has, then who has not come.
        let (count, gone) = self.me.session.departures(&me.world_ranks)?;
        let (left, _) = self.me.read(&self.call, false)?;
        self.me.judge(&self.call, &left)?;
        let missing = self.me.missing(&left);
        if let Some(&rank) = missing.iter().find(|rank| gone.contains(rank)) {
            return Err(self.me.session.fail(Error::RankReturned {
                group: Arc::clone(&me.name),
                sequence: self.call.number,
                rank,
                waiting: me.world_rank(),
                call: self.call.signature.to_string(),
            }));
        }
        self.departures = count;
        Ok(())
    }

    /// The deadline has passed: fails, unless all have come between the wait and this look.
    fn late(&self) -> Result<()> {
        let me = &self.me.membership;
        let (left, _) = self.me.read(&self.call, false)?;
        self.me.judge(&self.call, &left)?;
        let missing = self.me.missing(&left);
        let Some(&first) = missing.first() else {
            return Ok(());
        };
        let issued = self.me.issued_by(first, &self.call)?;
        Err(self.me.session.fail(Error::DeadlineExceeded {
            group: Arc::clone(&me.name),
            sequence: self.call.number,
            rank: me.world_rank(),
            call: self.call.signature.to_string(),
            missing,
            deadline: me.deadline,
            chain: Vec::new(),
            note: format!("rank {first} has issued {issued} collectives of this group"),
        }))
    }
}

/// It never waits: what is left of the call is done by the rank's next one, or when the rank leaves the world.
impl Drop for StoreWork {
    fn drop(&mut self) {
        if self.posted.is_some() {
            self.me.session.keep(Dropped {
                me: Arc::clone(&self.me),
                call: self.call.clone(),
            });
        }
    }
}

impl StoreWork {
    /// Whether all have come.
    fn look(&mut self) -> Result<bool> {
        if self.is_full {
            return Ok(true);
        }
        let until = vec![self.me.full(self.call.number), Until::Set(FAULT.into())];
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

    fn get(mut self) -> Result<Tensors> {
        let mut clock = Clock::start(Instant::now(), self.me.membership.deadline);
        // When it is looked whether those that have come agree; then after twice as long, and so on. So ranks that
        // differ hear of it before the last one has come, or the deadline has passed.
        let mut suspicion = grace(self.me.membership.deadline);
        while !self.is_full {
            self.me.session.refuse()?;
            let until = vec![
                self.me.full(self.call.number),
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
                    let (left, _) = self.me.read(&self.call, false)?;
                    self.me.judge(&self.call, &left)?;
                }
                _ => {}
            }
        }
        self.finish()
    }
}

impl Pending for StoreWork {
    fn poll(&mut self) -> Result<bool> {
        let seen = self.look();
        seen.map_err(|error| self.me.session.tell(error))
    }

    fn wait(self: Box<Self>) -> Result<Tensors> {
        let session = Arc::clone(&self.me.session);
        let results = self.get();
        results.map_err(|error| session.tell(error))
    }
}
