//! The calls of this rank: how they start, and how far they have come.

use super::*;

impl Core {
    /// Tells the others of a call, and starts it if they have all come. Says whether it has data that no header carries.
    pub(in crate::backends::mpi) fn issue(
        &mut self,
        call: Call,
        group: u64,
        me: &Membership,
    ) -> Result<(Key, bool)> {
        self.refuse()?;
        let mut exchange = Exchange::new(call, me)?;
        let op = exchange.signature.op.clone();
        let (ranks, index) = match op {
            Op::Send { destination, .. } => (self.ends(me, me.rank, destination), 0),
            Op::Recv { source, .. } => (self.ends(me, source, me.rank), 1),
            _ => (Arc::clone(&me.world_ranks), me.rank),
        };
        let (number, of_tag) = self.count(group, me.rank, &op);
        let mut header = Header {
            group,
            from: me.rank,
            number,
            index: of_tag,
            tag: 0,
            signature: exchange.signature.clone(),
        };
        for (peer, &rank) in ranks.iter().enumerate() {
            if peer == index {
                continue;
            }
            header.tag = match exchange.needs_tag(peer) {
                true => self.next_tag(rank),
                false => 0,
            };
            exchange.tags_out[peer] = header.tag;
            let mut bytes = vec![Kind::Call as u8];
            header.write(&mut bytes);
            bytes.extend(exchange.inline(peer));
            self.post(rank, bytes);
        }
        let (key, is_bulk) = (header.key(), exchange.is_bulk());
        let slot = self.slots.entry(key).or_default();
        slot.mine = Some(Mine {
            exchange,
            group: Arc::clone(&me.name),
            number,
            ranks,
            me: index,
        });
        self.meet(key);
        self.refuse()?;
        Ok((key, is_bulk))
    }

    fn refuse(&mut self) -> Result<()> {
        match &self.fault {
            None => Ok(()),
            Some((error, _)) => {
                self.told.get_or_insert_with(Instant::now);
                Err(error.clone())
            }
        }
    }

    fn ends(&self, me: &Membership, from: usize, to: usize) -> Arc<[usize]> {
        [me.world_ranks[from], me.world_ranks[to]].into()
    }

    /// The call's number, and the message's number among those of its tag.
    fn count(&mut self, group: u64, me: usize, op: &Op) -> (u64, u64) {
        let (from, to, tag) = match *op {
            Op::Send { destination, tag } => (me, destination, tag),
            Op::Recv { source, tag } => (source, me, tag),
            _ => {
                let issued = self.issued.entry((group, self.wire.rank)).or_default();
                return (next(issued), 0);
            }
        };
        let number = next(self.messages.entry((group, from, to)).or_default());
        let of_tag = next(self.tagged.entry((group, from, to, tag)).or_default());
        (number, of_tag)
    }

    /// A tag that no operation in flight between this rank and that one has; two, since an
    /// operation has two exchanges.
    fn next_tag(&mut self, rank: usize) -> u32 {
        let tag = self.tags[rank];
        self.tags[rank] = match tag + 3 < self.wire.tags {
            true => tag + 2,
            false => 0,
        };
        tag
    }

    /// How far an operation of this rank has come.
    pub(in crate::backends::mpi) fn stage(&self, key: Key) -> Stage {
        match self.slots.get(&key).and_then(|slot| slot.mine.as_ref()) {
            Some(mine) if mine.exchange.is_done() => Stage::Done,
            Some(mine) if mine.exchange.has_begun() => Stage::Moving,
            _ => Stage::Filling,
        }
    }

    /// What this rank gets from an operation that is done.
    pub(in crate::backends::mpi) fn take(&mut self, key: Key) -> Option<Tensor> {
        self.slots.remove(&key)?.mine?.exchange.take()
    }

    /// Whether operations of this rank are under way; not those that only others have called so far, or of which
    /// nothing is left to do but to take the result.
    pub(in crate::backends::mpi) fn has_calls(&self) -> bool {
        let mut calls = self.slots.values().filter_map(|slot| slot.mine.as_ref());
        calls.any(|mine| !mine.exchange.is_done())
    }

    /// Whether some of them have data that no header carries.
    pub(in crate::backends::mpi) fn has_bulk(&self) -> bool {
        let mut calls = self.slots.values().filter_map(|slot| slot.mine.as_ref());
        calls.any(|mine| !mine.exchange.is_done() && mine.exchange.is_bulk())
    }
}

/// Counts up, and returns what was there.
fn next(count: &mut u64) -> u64 {
    let number = *count;
    *count += 1;
    number
}
