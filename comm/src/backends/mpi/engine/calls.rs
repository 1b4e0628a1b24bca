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
        let number = self.count(group, me.rank, &op);
        let mut header = Header {
            group,
            from: me.rank,
            number,
            tag: 0,
            signature: exchange.signature.clone(),
        };
        for (peer, &rank) in ranks.iter().enumerate() {
            if peer == index {
                continue;
            }
            header.tag = match exchange.needs_tags(peer) {
                0 => 0,
                count => self.next_tags(rank, count),
            };
            exchange.tags_out[peer] = header.tag;
            let mut bytes = vec![Kind::Call as u8];
            header.write(&mut bytes);
            exchange.write_inline(peer, &mut bytes);
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

    /// The failure of the world, which this rank is told with it.
    pub(in crate::backends::mpi) fn refuse(&mut self) -> Result<()> {
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

    /// The call's number: among the collectives of the group, or among the messages between two of its ranks.
    fn count(&mut self, group: u64, me: usize, op: &Op) -> u64 {
        let (from, to) = match *op {
            Op::Send { destination, .. } => (me, destination),
            Op::Recv { source, .. } => (source, me),
            _ => return next(self.issued.entry((group, self.wire.rank)).or_default()),
        };
        next(self.messages.entry((group, from, to)).or_default())
    }

    /// How many collectives this rank has issued in a group.
    pub(in crate::backends::mpi) fn issued(&self, group: u64) -> u64 {
        let issued = self.issued.get(&(group, self.wire.rank));
        issued.copied().unwrap_or_default()
    }

    /// The first of `count` tags that no operation in flight between this rank and that one has.
    fn next_tags(&mut self, rank: usize, count: u32) -> u32 {
        let first = match self.tags[rank] + count <= self.wire.tags {
            true => self.tags[rank],
            false => 0,
        };
        self.tags[rank] = first + count;
        first
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
    pub(in crate::backends::mpi) fn take(&mut self, key: Key) -> Tensors {
        let mine = self.slots.remove(&key).and_then(|slot| slot.mine);
        mine.map_or_else(Tensors::new, |mut mine| mine.exchange.take())
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
