//! [`Engine`]: what a process knows of the world, and the one place that makes MPI calls.

use super::exchange::Exchange;
use super::fault;
use super::header::{Header, Key};
use super::wire::{Failure, Incoming, Outgoing, Wire};
use crate::backends::Membership;
use crate::check::{Call, Op, Signature};
use crate::error::{Error, Result};
use crate::sync::{Guard, Mutex};
use phalanx_tensor::Tensor;
use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// How long a rank that found two others to disagree waits for more of them, to tell who is the odd
/// one out.
const SUSPICION: Duration = Duration::from_millis(50);
/// How long a rank waits for rank 0's verdict, before its own counts.
const VERDICT: Duration = Duration::from_millis(300);
/// Parcels that are looked at in one go.
const PARCELS: usize = 64;

/// The world of this process, shared by its groups, the threads that wait, and the background
/// thread. Whoever holds the lock makes MPI calls; none of them blocks.
pub(super) struct Engine {
    core: Mutex<Core>,
    /// Threads that are in `wait`, and move things along there.
    pub(super) waiters: AtomicUsize,
}

impl Engine {
    pub(super) fn new(wire: Wire) -> Engine {
        Engine {
            core: Mutex::new(Core::new(wire)),
            waiters: AtomicUsize::new(0),
        }
    }

    pub(super) fn lock(&self) -> Guard<'_, Core> {
        self.core.lock()
    }

    pub(super) fn is_waited_in(&self) -> bool {
        self.waiters.load(SeqCst) > 0
    }
}

/// The first byte of a parcel.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Kind {
    /// A [`Header`], and the call's inline data.
    Call,
    /// The failure that counts, on all ranks.
    Verdict,
    /// A failure that rank 0 may make the verdict.
    Accusation,
    /// The sender has ended so many programs: it issues nothing more in the current one.
    Departed,
    /// The sender's process is about to end.
    Farewell,
    /// Are you there?
    Ping,
    /// I am.
    Pong,
}

const KINDS: [Kind; 7] = [
    Kind::Call,
    Kind::Verdict,
    Kind::Accusation,
    Kind::Departed,
    Kind::Farewell,
    Kind::Ping,
    Kind::Pong,
];

/// How far an operation has come.
pub(super) enum Stage {
    /// Somebody has not called it.
    Filling,
    /// Data is moving.
    Moving,
    /// The rank has what it gets.
    Done,
}

/// One operation, as far as this process has heard of it.
#[derive(Default)]
struct Slot {
    mine: Option<Mine>,
    arrived: Vec<Arrival>,
    /// Since when it is known that ranks disagree.
    suspect: Option<Instant>,
}

/// This rank's call.
struct Mine {
    exchange: Exchange,
    group: Arc<str>,
    number: u64,
    /// Who takes part, by numbers in the world, and which of them this rank is.
    ranks: Arc<[usize]>,
    me: usize,
}

/// Another rank's call.
struct Arrival {
    rank: usize,
    header: Header,
    parcel: Box<[u8]>,
    /// Where in the parcel the inline data starts.
    data: usize,
}

/// The engine's state.
pub(super) struct Core {
    pub(super) wire: Wire,
    slots: HashMap<Key, Slot>,
    /// Operations whose data moves.
    moving: Vec<Key>,
    suspects: Vec<Key>,
    /// Collectives that a rank has issued in a group.
    issued: HashMap<(u64, usize), u64>,
    /// Messages between two ranks of a group, and those of one tag; of this rank's calls.
    messages: HashMap<(u64, usize, usize), u64>,
    tagged: HashMap<(u64, usize, usize, u32), u64>,
    tags: Box<[u32]>,
    outbox: Vec<Outgoing>,
    inbox: VecDeque<Incoming>,
    fault: Option<(Error, Instant)>,
    /// What this rank has accused another of, until rank 0 has spoken.
    accusation: Option<(Error, Instant)>,
    /// How many programs each rank has ended.
    pub(super) departed: Box<[u64]>,
    /// Whose process is about to end.
    pub(super) farewells: Box<[bool]>,
    heard: Box<[Instant]>,
    /// When this rank's program was given the world's failure.
    pub(super) told: Option<Instant>,
}

impl Core {
    fn new(wire: Wire) -> Core {
        let size = wire.size;
        Core {
            wire,
            slots: HashMap::new(),
            moving: Vec::new(),
            suspects: Vec::new(),
            issued: HashMap::new(),
            messages: HashMap::new(),
            tagged: HashMap::new(),
            tags: vec![0; size].into(),
            outbox: Vec::new(),
            inbox: VecDeque::new(),
            fault: None,
            accusation: None,
            departed: vec![0; size].into(),
            farewells: vec![false; size].into(),
            heard: vec![Instant::now(); size].into(),
            told: None,
        }
    }

    fn me(&self) -> usize {
        self.wire.rank
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let me = self.wire.rank;
        (0..self.wire.size).filter(move |&rank| rank != me)
    }

    // ---- Calls of this rank.

    /// Tells the others of a call, and starts it if they have all come.
    pub(super) fn issue(&mut self, call: Call, group: u64, me: &Membership) -> Result<Key> {
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
        let key = header.key();
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
        Ok(key)
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
    pub(super) fn stage(&self, key: Key) -> Stage {
        match self.slots.get(&key).and_then(|slot| slot.mine.as_ref()) {
            Some(mine) if mine.exchange.is_done() => Stage::Done,
            Some(mine) if mine.exchange.has_begun() => Stage::Moving,
            _ => Stage::Filling,
        }
    }

    /// What this rank gets from an operation that is done.
    pub(super) fn take(&mut self, key: Key) -> Option<Tensor> {
        self.slots.remove(&key)?.mine?.exchange.take()
    }

    // ---- What comes in.

    /// Moves along whatever can be moved without waiting. Returns whether anything happened.
    pub(super) fn progress(&mut self) -> bool {
        let mut moved = false;
        for _ in 0..PARCELS {
            match self.wire.next_parcel() {
                Ok(Some(parcel)) => self.inbox.push_back(parcel),
                Ok(None) => break,
                Err(failure) => {
                    self.broken(failure);
                    break;
                }
            }
            moved |= self.empty_inbox();
        }
        if !self.inbox.is_empty() {
            moved |= self.empty_inbox();
        }
        if !self.outbox.is_empty() {
            let wire = &mut self.wire;
            self.outbox
                .retain_mut(|p| !wire.has_left(p).unwrap_or(true));
        }
        if self.fault.is_some() {
            return moved;
        }
        let mut i = 0;
        while i < self.moving.len() {
            moved |= self.advance(self.moving[i]);
            let done = matches!(self.stage(self.moving[i]), Stage::Done);
            match done {
                true => drop(self.moving.swap_remove(i)),
                false => i += 1,
            }
        }
        if !self.suspects.is_empty() || self.accusation.is_some() {
            self.judge();
        }
        moved
    }

    /// Whether there is anything to move along but what may come in.
    pub(super) fn is_busy(&self) -> bool {
        !(self.moving.is_empty() && self.outbox.is_empty() && self.inbox.is_empty())
            || self.accusation.is_some()
            || !self.suspects.is_empty()
    }

    /// Whether operations of this rank are under way.
    pub(super) fn has_calls(&self) -> bool {
        !self.slots.is_empty()
    }

    fn advance(&mut self, key: Key) -> bool {
        let mine = self.slots.get_mut(&key).and_then(|s| s.mine.as_mut());
        let Some(mine) = mine else {
            return false;
        };
        match mine.exchange.advance(&mut self.wire, &mine.ranks) {
            Ok(moved) => moved,
            Err(failure) => {
                self.broken(failure);
                true
            }
        }
    }

    /// Handles the parcels that are there whole, of each sender in order.
    fn empty_inbox(&mut self) -> bool {
        let mut moved = false;
        let mut blocked: Vec<usize> = Vec::new();
        let mut i = 0;
        while i < self.inbox.len() {
            let parcel = &mut self.inbox[i];
            let source = parcel.source;
            let come = match blocked.contains(&source) {
                true => Ok(false),
                false => self.wire.has_come(parcel),
            };
            match come {
                Ok(true) => {
                    if let Some(parcel) = self.inbox.remove(i) {
                        self.handle(parcel.source, parcel.bytes);
                        moved = true;
                    }
                }
                Ok(false) => {
                    blocked.push(source);
                    i += 1;
                }
                Err(failure) => {
                    self.broken(failure);
                    return true;
                }
            }
        }
        moved
    }

    fn handle(&mut self, source: usize, parcel: Box<[u8]>) {
        self.heard[source] = Instant::now();
        let Some((&kind, mut rest)) = parcel.split_first() else {
            return;
        };
        match KINDS.get(usize::from(kind)) {
            Some(Kind::Call) => match Header::read(&mut rest) {
                Some(header) => {
                    let data = parcel.len() - rest.len();
                    self.arrive(source, header, parcel, data);
                }
                None => self.garbled(source),
            },
            Some(Kind::Verdict) => self.convict(fault::decode(source, rest)),
            Some(Kind::Accusation) => self.fail(fault::decode(source, rest)),
            Some(Kind::Departed) => self.departed[source] += 1,
            Some(Kind::Farewell) => self.farewells[source] = true,
            Some(Kind::Ping) => self.post(source, vec![Kind::Pong as u8]),
            Some(Kind::Pong) => {}
            None => self.garbled(source),
        }
    }

    fn garbled(&mut self, source: usize) {
        self.fail(Error::Transport {
            rank: self.me(),
            call: "MPI_Imrecv".into(),
            message: format!("rank {source} sent what is no message; does it run another version?"),
        });
    }

    fn arrive(&mut self, rank: usize, header: Header, parcel: Box<[u8]>, data: usize) {
        let key = header.key();
        if let Key::Collective { group, number } = key {
            self.issued.insert((group, rank), number + 1);
        }
        let slot = self.slots.entry(key).or_default();
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
        let Some(slot) = self.slots.get_mut(&key) else {
            return;
        };
        let Some(mine) = &mut slot.mine else {
            return;
        };
        let own = (
            rank_of(&mine.exchange.signature.op, mine),
            &mine.exchange.signature,
        );
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
            mine.exchange.tags_in[peer] = arrival.header.tag;
            if sent > 0 {
                mine.exchange.keep(peer, arrival.parcel, arrival.data);
            }
        }
        mine.exchange.begin();
        self.advance(key);
        if matches!(self.stage(key), Stage::Moving) {
            self.moving.push(key);
        }
    }

    // ---- Failures.

    /// The failure of the world, if it has failed.
    pub(super) fn fault(&self) -> Option<&(Error, Instant)> {
        self.fault.as_ref()
    }

    /// Whether a failure of this rank waits for rank 0's verdict.
    pub(super) fn accuses(&self) -> bool {
        self.accusation.is_some()
    }

    /// The world has failed, as this rank sees it. What counts is what rank 0 has heard first, so
    /// that all ranks get the same error.
    pub(super) fn fail(&mut self, error: Error) {
        if self.fault.is_some() || self.accusation.is_some() {
            return;
        }
        if self.me() == 0 {
            self.proclaim(error);
        } else {
            let mut bytes = vec![Kind::Accusation as u8];
            bytes.extend(fault::encode(self.me(), &error));
            self.post(0, bytes);
            self.accusation = Some((error, Instant::now()));
        }
    }

    fn broken(&mut self, failure: Failure) {
        self.fail(Error::Transport {
            rank: self.me(),
            call: failure.call.into(),
            message: failure.message,
        });
    }

    fn proclaim(&mut self, error: Error) {
        let mut bytes = vec![Kind::Verdict as u8];
        bytes.extend(fault::encode(self.me(), &error));
        self.convict(fault::decode(self.me(), &bytes[1..])); // the same value as everybody's
        for rank in self.others() {
            self.post(rank, bytes.clone());
        }
    }

    fn convict(&mut self, error: Error) {
        self.accusation = None;
        self.fault.get_or_insert((error, Instant::now()));
    }

    /// Judges what is suspect, where all have come or enough time has passed.
    fn judge(&mut self) {
        if let Some((error, since)) = &self.accusation {
            if since.elapsed() > VERDICT {
                let error = error.clone();
                self.proclaim(error);
            }
            return;
        }
        let ripe = |key: &&Key| {
            let slot = self.slots.get(key);
            slot.is_some_and(|slot| {
                let there = slot.arrived.len() + 1;
                let all = slot.mine.as_ref().is_some_and(|m| there == m.ranks.len());
                all || slot.suspect.is_some_and(|s| s.elapsed() > SUSPICION)
            })
        };
        if let Some(&key) = self.suspects.iter().find(ripe)
            && let Some(error) = self.divergence(key)
        {
            self.suspects.clear();
            self.fail(error);
        }
    }

    /// Who is the odd one out, among those that have come.
    fn divergence(&self, key: Key) -> Option<Error> {
        let slot = self.slots.get(&key)?;
        let mine = slot.mine.as_ref()?;
        let own = &mine.exchange.signature;
        let mut calls: Vec<(usize, usize, &Signature)> =
            vec![(self.me(), rank_of(&own.op, mine), own)];
        let theirs = |a: &'_ Arrival| (a.rank, a.header.from);
        calls.extend(slot.arrived.iter().map(|a| {
            let (rank, from) = theirs(a);
            (rank, from, &a.header.signature)
        }));
        calls.sort_by_key(|call| call.0);
        let differ = |a: usize, b: usize| {
            Signature::difference((calls[a].1, calls[a].2), (calls[b].1, calls[b].2))
        };
        let agreeing = |a: usize| {
            let others = 0..calls.len();
            others.filter(|&b| differ(a, b).is_none()).count()
        };
        let pairs = (0..calls.len()).flat_map(|a| (0..a).map(move |b| (a, b)));
        let (a, b, difference) = pairs
            .filter_map(|(a, b)| differ(a, b).map(|d| (a, b, d)))
            .next()?;
        let (odd, other) = match agreeing(a).cmp(&agreeing(b)) {
            Ordering::Greater => (b, a),
            Ordering::Less | Ordering::Equal => (a, b),
        };
        // The sender's count, if it is there: the two may have counted differently.
        let sender = slot.arrived.iter().find(|a| {
            let op = &a.header.signature.op;
            matches!(op, Op::Send { .. })
        });
        Some(Error::Divergence {
            group: Arc::clone(&mine.group),
            sequence: sender.map_or(mine.number, |a| a.header.number),
            rank: calls[odd].0,
            call: calls[odd].2.to_string(),
            other: calls[other].0,
            other_call: calls[other].2.to_string(),
            difference,
        })
    }

    /// Fails if somebody has left whom the operation still waits for.
    pub(super) fn check_departures(&mut self, key: Key, run: u64) {
        let gone: Vec<usize> = self.missing(key);
        let has_left = |&r: &usize| self.departed[r] > run || self.farewells[r];
        let gone = gone.into_iter().find(has_left);
        let slot = self.slots.get(&key).and_then(|slot| slot.mine.as_ref());
        let (Some(rank), Some(mine)) = (gone, slot) else {
            return;
        };
        let error = Error::RankReturned {
            group: Arc::clone(&mine.group),
            sequence: mine.number,
            rank,
            waiting: self.me(),
            call: mine.exchange.signature.to_string(),
        };
        self.fail(error);
    }

    /// The ranks that an operation of this rank waits for: that have not called, or whose data does
    /// not come.
    pub(super) fn missing(&self, key: Key) -> Vec<usize> {
        let Some(slot) = self.slots.get(&key) else {
            return Vec::new();
        };
        let Some(mine) = &slot.mine else {
            return Vec::new();
        };
        if mine.exchange.has_begun() {
            let lagging = mine.exchange.lagging();
            return lagging.into_iter().map(|peer| mine.ranks[peer]).collect();
        }
        let here = |rank: &usize| slot.arrived.iter().any(|a| a.rank == *rank);
        let others = mine.ranks.iter().enumerate().filter(|(i, _)| *i != mine.me);
        let others = others.map(|(_, &rank)| rank);
        others.filter(|rank| !here(rank)).collect()
    }

    /// Asks those that an operation waits for whether they are there.
    pub(super) fn ping(&mut self, key: Key) {
        for rank in self.missing(key) {
            self.post(rank, vec![Kind::Ping as u8]);
        }
    }

    /// This rank has waited too long. `asked` is when it has last asked the others for a sign.
    pub(super) fn late(&mut self, key: Key, deadline: Duration, asked: Option<Instant>) {
        let missing = self.missing(key);
        let Some(mine) = self.slots.get(&key).and_then(|s| s.mine.as_ref()) else {
            return;
        };
        let note = missing.first().map_or_else(String::new, |&rank| {
            let known = match mine.exchange.has_begun() {
                true => format!("data to or from rank {rank} has stopped on its way"),
                false => self.note(key, rank),
            };
            let sign = match asked {
                Some(asked) if self.heard[rank] >= asked => ", and its process is alive",
                Some(_) => ", and its process gives no sign",
                None => "",
            };
            known + sign
        });
        let error = Error::DeadlineExceeded {
            group: Arc::clone(&mine.group),
            sequence: mine.number,
            rank: self.me(),
            call: mine.exchange.signature.to_string(),
            missing,
            deadline,
            note,
        };
        self.fail(error);
    }

    /// What is known about a rank that has not come.
    fn note(&self, key: Key, rank: usize) -> String {
        let (group, from, to) = match key {
            Key::Collective { group, .. } => {
                let issued = self.issued.get(&(group, rank)).copied().unwrap_or(0);
                return format!("rank {rank} has issued {issued} collectives of this group");
            }
            Key::Message {
                group, from, to, ..
            } => (group, from, to),
        };
        let unmatched = self.slots.iter().filter(|(_, slot)| {
            let theirs = |a: &Arrival| a.rank == rank;
            slot.mine.is_none() && slot.arrived.iter().any(theirs)
        });
        let mut tags: Vec<u32> = unmatched
            .filter_map(|(key, _)| match *key {
                Key::Message {
                    group: g,
                    from: f,
                    to: t,
                    tag,
                    ..
                } => ((g, f, t) == (group, from, to)).then_some(tag),
                Key::Collective { .. } => None,
            })
            .collect();
        tags.sort_unstable();
        let mine = self.slots.get(&key).and_then(|slot| slot.mine.as_ref());
        let sends = mine.is_some_and(|m| matches!(m.exchange.signature.op, Op::Send { .. }));
        let what = if sends { "recv" } else { "send" };
        match tags.is_empty() {
            true => format!("rank {rank} has issued no {what} that waits for its other end"),
            false => format!("rank {rank} has issued a {what} with other tags: {tags:?}"),
        }
    }

    // ---- What goes out.

    /// This rank's program has ended.
    pub(super) fn depart(&mut self) {
        let me = self.me();
        self.departed[me] += 1;
        self.tell_all(Kind::Departed);
    }

    /// This process is about to end.
    pub(super) fn bid_farewell(&mut self) {
        let me = self.me();
        self.farewells[me] = true;
        self.tell_all(Kind::Farewell);
    }

    fn tell_all(&mut self, kind: Kind) {
        for rank in self.others() {
            self.post(rank, vec![kind as u8]);
        }
    }

    /// Whether all parcels have left.
    pub(super) fn has_sent_all(&self) -> bool {
        self.outbox.is_empty()
    }

    fn post(&mut self, rank: usize, bytes: Vec<u8>) {
        let sent = self.wire.send_parcel(bytes.into(), rank);
        let sent = sent.and_then(|mut parcel| {
            let left = self.wire.has_left(&mut parcel)?;
            if !left {
                self.outbox.push(parcel);
            }
            Ok(())
        });
        if let Err(failure) = sent
            && self.fault.is_none()
            && self.accusation.is_none()
        {
            self.broken(failure);
        }
    }
}

/// The rank within the group of whoever made this call.
fn rank_of(op: &Op, mine: &Mine) -> usize {
    match *op {
        // Ends of a message are not compared by rank.
        Op::Send { .. } | Op::Recv { .. } => 0,
        _ => mine.me,
    }
}

/// Counts up, and returns what was there.
fn next(count: &mut u64) -> u64 {
    let number = *count;
    *count += 1;
    number
}
