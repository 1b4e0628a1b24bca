//! How the calls of a group's ranks meet at the store: who has come to one, what they have left, whether that goes
//! together, and how it is removed.

use super::session::{Session, is_there, look};
use super::{Endpoint, wire};
use crate::error::{Error, Result};
use crate::meeting::verdict::{Heard, verdict};
use crate::op::Signature;
use crate::store::{Reply, Request, Until};
use std::sync::Arc;
use std::time::Duration;

/// A call that this rank has left.
#[derive(Debug, Clone)]
pub(super) struct Issued {
    /// Its number in the group.
    pub(super) number: u64,
    pub(super) signature: Signature,
}

/// What the other ranks of the group have left of a call, by rank.
pub(super) type Left = Vec<Option<Vec<u8>>>;

/// How many keys are removed by one request.
const KEYS: usize = 1024;

impl Endpoint {
    /// What rank `rank` leaves of call `number`.
    pub(super) fn call_key(&self, number: u64, rank: usize) -> String {
        format!("{}/{number}/{rank}", self.key)
    }

    /// How many have come to call `number`.
    pub(super) fn count_key(&self, number: u64) -> String {
        format!("{}/{number}/come", self.key)
    }

    /// How many have read all of call `number`.
    fn read_key(&self, number: u64) -> String {
        format!("{}/{number}/read", self.key)
    }

    /// All have come to call `number`.
    pub(super) fn full(&self, number: u64) -> Until {
        let than = self.membership.size() as i64 - 1;
        Until::Above(self.count_key(number), than)
    }

    /// What the others have left so far. Where `all` have come, this rank has then read it; says whether it was the
    /// last to do so.
    pub(super) fn read(&self, call: &Issued, all: bool) -> Result<(Left, bool)> {
        let me = &self.membership;
        let others = (0..me.size()).filter(|&rank| rank != me.rank);
        let mut requests: Vec<Request> = others
            .map(|rank| look(self.call_key(call.number, rank)))
            .collect();
        if all {
            requests.push(self.has_read(call.number));
        }
        let mut replies = self.session.ask(&requests)?;
        let is_last = all && self.is_last(replies.pop());
        let value = |reply| match reply {
            Reply::Value(value) => Some(value),
            _ => None,
        };
        let mut left: Left = replies.into_iter().map(value).collect();
        left.insert(me.rank, None);
        Ok((left, is_last))
    }

    /// This rank needs nothing more of call `number`.
    fn has_read(&self, number: u64) -> Request {
        Request::Add {
            key: self.read_key(number),
            amount: 1,
        }
    }

    fn is_last(&self, read: Option<Reply>) -> bool {
        matches!(read, Some(Reply::Number(read)) if read >= self.membership.size() as i64)
    }

    /// The data of the others that have come; fails if the calls differ.
    pub(super) fn judge<'a>(
        &self,
        call: &Issued,
        left: &'a [Option<Vec<u8>>],
    ) -> Result<Vec<(usize, &'a [u8])>> {
        let me = &self.membership;
        let mut calls: Vec<(usize, Signature)> = Vec::new();
        let mut data = Vec::new();
        for (rank, value) in left.iter().enumerate() {
            if rank == me.rank {
                calls.push((rank, call.signature.clone()));
            } else if let Some(value) = value {
                let Some((signature, rest)) = wire::read_call(value) else {
                    let rank = me.world_ranks[rank];
                    let what = format!("what rank {rank} has left at the store is no call");
                    return Err(self.broken(&call.signature, what));
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
        Err(self.session.fail(Error::Divergence {
            group: Arc::clone(&me.name),
            sequence: call.number,
            rank: odd.rank,
            call: odd.signature.to_string(),
            other: other.rank,
            other_call: other.signature.to_string(),
            difference: found.difference,
        }))
    }

    /// The ranks of the world that have left nothing.
    pub(super) fn missing(&self, left: &[Option<Vec<u8>>]) -> Vec<usize> {
        let me = &self.membership;
        let others = (0..me.size()).filter(|&rank| rank != me.rank && left[rank].is_none());
        others.map(|rank| me.world_ranks[rank]).collect()
    }

    /// Call `number` has ended here; who is the last removes what was left of it. That it cannot be removed is no failure
    /// of the call, which is done.
    pub(super) fn ended(&self, number: u64, is_last: bool) {
        self.issue.lock().open.remove(&number);
        if !is_last {
            return;
        }
        let ranks = 0..self.membership.size();
        let mut keys: Vec<String> = ranks.map(|rank| self.call_key(number, rank)).collect();
        keys.extend([self.count_key(number), self.read_key(number)]);
        let delete = |keys: &[String]| Request::Delete {
            keys: keys.to_vec(),
        };
        let deletes: Vec<Request> = keys.chunks(KEYS).map(delete).collect();
        // Where the store is lost, the session knows it now, and the next call says so.
        let _ = self.session.ask(&deletes);
    }

    /// How many calls of the group a rank of the world has issued, as far as is known to `call`, which has not ended
    /// here: the first that it lacks is among those that have not.
    pub(super) fn issued_by(&self, world_rank: usize, call: &Issued) -> Result<u64> {
        let me = &self.membership;
        let Some(rank) = me.world_ranks.iter().position(|&rank| rank == world_rank) else {
            return Ok(0);
        };
        let open: Vec<u64> = self.issue.lock().open.iter().copied().collect();
        let has_left = |&number: &u64| is_there(self.call_key(number, rank));
        let all: Vec<Request> = open.iter().map(has_left).collect();
        let replies = self.session.ask(&all)?;
        let first = replies.iter().position(|reply| *reply != Reply::Done);
        Ok(first.map_or(call.number, |at| open[at]))
    }
}

/// A call that nobody here waits for any more. The rank ends it all the same: it compares what all have left, forgets the
/// results, and says that it has read them.
pub(super) struct Dropped {
    pub(super) me: Arc<Endpoint>,
    pub(super) call: Issued,
}

impl Session {
    /// Keeps a call for later, without asking the store. What a rank drops when it has left stays at the store.
    pub(super) fn keep(&self, dropped: Dropped) {
        if let Some(all) = self.dropped.lock().as_mut() {
            all.push(dropped);
        }
    }

    /// Ends those calls that nobody here waits for and to which all have come. One that cannot be ended now is kept for
    /// the next time; what ends the world is noted as its failure.
    pub(super) fn settle(&self) {
        let dropped = self.dropped.lock().as_mut().map(std::mem::take);
        let dropped = dropped.unwrap_or_default();
        if dropped.is_empty() {
            return;
        }
        let is_full = |dropped: &Dropped| Request::WaitAll {
            until: vec![dropped.me.full(dropped.call.number)],
            patience: Duration::ZERO,
        };
        let requests: Vec<Request> = dropped.iter().map(is_full).collect();
        let replies = self.ask(&requests).unwrap_or_default();
        let replies = replies.into_iter().map(Some).chain(std::iter::repeat(None));
        for (dropped, reply) in dropped.into_iter().zip(replies) {
            let Dropped { me, call } = &dropped;
            let read = match reply {
                Some(Reply::Done) => me.read(call, true).ok(),
                _ => None,
            };
            let Some((left, is_last)) = read else {
                self.keep(dropped);
                continue;
            };
            if me.judge(call, &left).is_ok() {
                me.ended(call.number, is_last);
            }
        }
    }

    /// This rank leaves the world: ends its calls that nobody waits for, and says that it issues nothing more. Those calls
    /// to which not all have come need nothing more of it, since what it gives is at the store; the others compare them.
    pub(super) fn depart(&self) {
        if self.failure().is_none() {
            self.settle();
        }
        let dropped = self.dropped.lock().take();
        if self.failure().is_some() {
            return;
        }
        for Dropped { me, call } in dropped.into_iter().flatten() {
            let read = self.ask(&[me.has_read(call.number)]);
            let is_last = read.is_ok_and(|mut read| me.is_last(read.pop()));
            me.ended(call.number, is_last);
        }
        self.say_goodbye();
    }
}
