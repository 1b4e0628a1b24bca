//! The calls of this rank: how they start, how they meet those of the others, and how they end.

use super::groups::Counted;
use super::*;
use crate::backends::watcher;

/// A call that nothing keeps back: it has its tags, and the others have heard nothing of it yet.
struct Ready {
    exchange: Exchange,
    /// Who takes part, and which of them this rank is.
    ranks: Arc<[usize]>,
    index: usize,
    counted: Counted,
}

impl Core {
    /// Tells the others of a call in a group of this epoch, and starts it if they have all come. Says whether it has data
    /// that no header carries.
    pub(in crate::backends::mpi) fn issue(
        &mut self,
        call: Call,
        (epoch, group): (u64, u64),
        me: &Membership,
    ) -> Result<(Key, bool)> {
        let ready = self.prepare(call, epoch, me)?;
        Ok(self.start(ready, (epoch, group), me))
    }

    /// As [`issue`](Core::issue), of several calls: all, or none of them where one is refused.
    pub(in crate::backends::mpi) fn issue_together(
        &mut self,
        calls: Vec<Call>,
        (epoch, group): (u64, u64),
        me: &Membership,
    ) -> Result<Vec<(Key, bool)>> {
        let mut all: Vec<Ready> = Vec::with_capacity(calls.len());
        for call in calls {
            match self.prepare(call, epoch, me) {
                Ok(ready) => all.push(ready),
                Err(error) => {
                    for Ready {
                        exchange, ranks, ..
                    } in &all
                    {
                        give_back(&mut self.tags, exchange, ranks);
                    }
                    return Err(error);
                }
            }
        }
        let start = |ready| self.start(ready, (epoch, group), me);
        Ok(all.into_iter().map(start).collect())
    }

    fn prepare(&mut self, call: Call, epoch: u64, me: &Membership) -> Result<Ready> {
        self.refuse(epoch)?;
        if epoch < self.detector.epoch() {
            return Err(Error::InvalidArgument {
                op: call.signature.op.name(),
                rank: self.me(),
                reason: "the program to which this group belongs has ended".into(),
            });
        }
        self.note_caller(epoch);
        let mut exchange = Exchange::new(call, me)?;
        let op = exchange.signature.op.clone();
        let (ranks, index, counted) = match op {
            Op::Send { destination, .. } => {
                let ends = self.ends(me, me.rank, destination);
                (ends, 0, Counted::To(destination))
            }
            Op::Recv { source, .. } => {
                let ends = self.ends(me, source, me.rank);
                (ends, 1, Counted::From(source))
            }
            _ => {
                let counted = Counted::Collective(me.rank);
                (Arc::clone(&me.world_ranks), me.rank, counted)
            }
        };
        self.take_tags(&mut exchange, &ranks)?;
        Ok(Ready {
            exchange,
            ranks,
            index,
            counted,
        })
    }

    fn start(&mut self, ready: Ready, (epoch, group): (u64, u64), me: &Membership) -> (Key, bool) {
        let Ready {
            exchange,
            ranks,
            index,
            counted,
        } = ready;
        let number = self.groups.next(group, &counted);
        let mut header = Header {
            epoch,
            group,
            from: me.rank,
            number,
            tag: 0,
            signature: exchange.signature.clone(),
        };
        // The world of a rank that has accused another has failed, as the verdict will say. Its calls would only be taken
        // for those of a rank that differs, by those who have not heard of the accusation.
        let tells = !self.detector.accuses(epoch);
        for (peer, &rank) in ranks.iter().enumerate() {
            if peer == index || !tells {
                continue;
            }
            header.tag = exchange.tags_in[peer];
            let mut bytes = vec![CALL];
            header.write(&mut bytes);
            exchange.write_inline(peer, &mut bytes);
            self.post(rank, bytes);
        }
        let (key, is_bulk) = (header.key(), exchange.is_bulk());
        self.slots.entry(key, epoch).mine = Some(Mine {
            exchange,
            group: Arc::clone(&me.name),
            number,
            ranks,
            me: index,
            is_abandoned: false,
        });
        self.meet(key);
        (key, is_bulk)
    }

    /// The failure of an epoch, of which this rank is told with it.
    pub(in crate::backends::mpi) fn refuse(&mut self, epoch: u64) -> Result<()> {
        match self.detector.fault(epoch) {
            None => return Ok(()),
            Some((fault, _)) if !watcher::is_program() => return Err(fault.clone()),
            Some(_) => {}
        }
        self.detector
            .tell(Instant::now(), epoch)
            .map_or(Ok(()), Err)
    }

    /// This thread issues, waits or polls in a group of this epoch. Who does so in an earlier program's is no caller of the
    /// current one.
    pub(in crate::backends::mpi) fn note_caller(&mut self, epoch: u64) {
        if epoch == self.detector.epoch() {
            self.slots.note_caller();
        }
    }

    fn ends(&self, me: &Membership, from: usize, to: usize) -> Arc<[usize]> {
        [me.world_ranks[from], me.world_ranks[to]].into()
    }

    /// How many collectives this rank has issued in a group, of which it is rank `me`.
    pub(in crate::backends::mpi) fn issued(&self, group: u64, me: usize) -> u64 {
        self.groups.issued(group, me)
    }

    /// Takes tags for what each other rank sends in this operation; or none, where there are too few.
    fn take_tags(&mut self, exchange: &mut Exchange, ranks: &[usize]) -> Result<()> {
        for (peer, &rank) in ranks.iter().enumerate() {
            let count = exchange.needs_tags[peer];
            if let Some(first) = self.tags[rank].take(count) {
                exchange.tags_in[peer] = first;
                continue;
            }
            give_back(&mut self.tags, exchange, &ranks[..peer]);
            let bound = self.wire.tags;
            return Err(Error::InvalidArgument {
                op: exchange.signature.op.name(),
                rank: self.me(),
                reason: format!(
                    "its data from rank {rank} needs {count} message tags in a row; of the {bound} that MPI has, too many \
                     belong to operations that are under way, or that a failure has left behind (wait for some first)"
                ),
            });
        }
        Ok(())
    }

    /// An operation is done: others may have its tags, and it goes where nobody will ask for its result.
    pub(super) fn finish(&mut self, key: Key) {
        if let Some(mine) = self.slots.mine(key) {
            give_back(&mut self.tags, &mine.exchange, &mine.ranks);
        }
        self.slots.drop_if_abandoned(key);
    }

    /// Another rank has made a call. What belongs to an epoch that this rank has behind it concerns nobody; what belongs
    /// to a later one waits for it.
    pub(super) fn arrive(&mut self, rank: usize, header: Header, parcel: Box<[u8]>, data: usize) {
        let (key, epoch) = (header.key(), header.epoch);
        let current = self.detector.epoch();
        if epoch < current || epoch == current && self.has_failed {
            return;
        }
        if let Key::Collective { group, number } = key {
            self.groups.note(group, header.from, number);
        }
        let slot = self.slots.entry(key, epoch);
        slot.arrived.push(Arrival {
            rank,
            header,
            parcel,
            data,
        });
        self.meet(key);
    }

    /// Compares what has come, and starts the operation when all have.
    fn meet(&mut self, key: Key) {
        let Some(slot) = self.slots.get_mut(key) else {
            return;
        };
        let Some(mine) = &mut slot.mine else {
            return;
        };
        let own = (mine.index(), &mine.exchange.signature);
        let differs = |a: &Arrival| {
            let theirs = (a.header.from, &a.header.signature);
            Signature::difference(own, theirs).is_some()
        };
        if slot.arrived.iter().any(differs) {
            if slot.suspect.is_none() {
                slot.suspect = Some(Instant::now());
                self.suspects.push(key);
            }
            self.judge();
            return;
        }
        if slot.arrived.len() + 1 < mine.ranks.len() {
            return;
        }
        for arrival in std::mem::take(&mut slot.arrived) {
            let Some(peer) = mine.ranks.iter().position(|&r| r == arrival.rank) else {
                continue;
            };
            let sent = arrival.parcel.len() - arrival.data;
            if sent != mine.exchange.expects(peer) {
                let rank = arrival.rank;
                return self.garbled(rank);
            }
            mine.exchange.tags_out[peer] = arrival.header.tag;
            if sent > 0 {
                mine.exchange.keep(peer, arrival.parcel, arrival.data);
            }
        }
        mine.exchange.begin();
        self.advance(key);
        match self.slots.stage(key) {
            Stage::Done => self.finish(key),
            _ => self.moving.push(key),
        }
    }

    /// How far an operation of this rank has come.
    pub(in crate::backends::mpi) fn stage(&self, key: Key) -> Stage {
        self.slots.stage(key)
    }

    /// What this rank gets from an operation that is done.
    pub(in crate::backends::mpi) fn take(&mut self, key: Key) -> Tensors {
        let mine = self.slots.remove(key).and_then(|slot| slot.mine);
        mine.map_or_else(Tensors::new, |mut mine| mine.exchange.take())
    }

    /// Nobody will wait for this operation any more. What is under way is finished for the sake of the others.
    pub(in crate::backends::mpi) fn abandon(&mut self, key: Key) {
        let current = self.detector.epoch();
        let Some(slot) = self.slots.get_mut(key) else {
            return;
        };
        let is_over = slot.epoch < current || slot.epoch == current && self.has_failed;
        match &mut slot.mine {
            Some(mine) if !is_over && !mine.exchange.is_done() => mine.is_abandoned = true,
            Some(_) => self.give_up_operation(key),
            None => {}
        }
    }

    fn give_up_operation(&mut self, key: Key) {
        let slot = self.slots.remove(key).and_then(|slot| slot.mine);
        self.keeps_data |= slot.is_some_and(|mine| mine.exchange.is_in_flight());
        self.moving.retain(|moving| *moving != key);
    }

    /// The current epoch has failed: what is not done never will be.
    pub(super) fn give_up_operations(&mut self) {
        self.has_failed = true;
        let is_in_flight = |mine: &Mine| mine.exchange.is_in_flight();
        self.keeps_data |= self.slots.under_way().any(is_in_flight);
        // Here or at the other end, MPI has kept data of them: their tags stay taken.
        // Who still waits for an operation of an earlier program hears of that one's end.
        let current = self.detector.epoch();
        self.slots.retain(|slot| {
            let is_done = |mine: &Mine| mine.exchange.is_done() && !mine.is_abandoned;
            slot.epoch != current || slot.mine.as_ref().is_some_and(is_done)
        });
        self.moving.retain(|key| self.slots.is_under_way(*key));
        self.suspects.retain(|key| self.slots.is_under_way(*key));
    }

    /// Whether operations of this rank are under way.
    pub(in crate::backends::mpi) fn has_calls(&self) -> bool {
        self.slots.under_way().next().is_some()
    }

    /// Whether some of them have data that no header carries.
    pub(in crate::backends::mpi) fn has_bulk(&self) -> bool {
        self.slots.under_way().any(|mine| mine.exchange.is_bulk())
    }
}

/// Nothing more comes to an operation from these ranks, the first ones of it.
fn give_back(tags: &mut [Tags], exchange: &Exchange, ranks: &[usize]) {
    for (peer, &rank) in ranks.iter().enumerate() {
        tags[rank].give_back(exchange.tags_in[peer], exchange.needs_tags[peer]);
    }
}
