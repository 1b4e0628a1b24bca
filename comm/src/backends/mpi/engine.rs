//! [`Engine`]: what a process knows of the world, and the one place that makes MPI calls.

mod calls;
mod failure;
mod outbox;

use super::exchange::Exchange;
use super::header::{Header, Key};
use super::wait::Listener;
use super::wire::{Failure, Incoming, Outgoing, Wire};
use crate::check::Call;
use crate::error::{Error, Result};
use crate::launch::LaunchConfig;
use crate::launch::config::Patience;
use crate::meeting::fault;
use crate::membership::Membership;
use crate::op::{Op, Signature};
use crate::sync::{Guard, Mutex};
use crate::work::Tensors;
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
    /// Where the background thread sleeps.
    pub(super) listener: Listener,
}

impl Engine {
    pub(super) fn new(wire: Wire, listener: Listener) -> Engine {
        Engine {
            core: Mutex::new(Core::new(wire)),
            waiters: AtomicUsize::new(0),
            listener,
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
    /// The sender's process is about to be ended by force, since its rank hangs: nobody is to wait for
    /// it.
    Doomed,
    /// Are you there?
    Ping,
    /// I am.
    Pong,
}

const KINDS: [Kind; 8] = [
    Kind::Call,
    Kind::Verdict,
    Kind::Accusation,
    Kind::Departed,
    Kind::Farewell,
    Kind::Doomed,
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

/// How a rank's program ended.
#[derive(Clone, Copy)]
pub(super) enum Ended {
    /// It returned well; what the process does then is its affair.
    Well,
    /// By a failure of its own, then.
    Failed(Instant),
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
    /// Messages between two ranks of a group, of this rank's calls.
    messages: HashMap<(u64, usize, usize), u64>,
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
    /// Whose process is about to be ended by force.
    doomed: Box<[bool]>,
    heard: Box<[Instant]>,
    /// How long this rank may go on when the world has failed.
    pub(super) patience: Patience,
    /// When this rank's program was given the world's failure.
    pub(super) told: Option<Instant>,
    /// How its program ended, if it has.
    pub(super) ended: Option<Ended>,
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
            tags: vec![0; size].into(),
            outbox: Vec::new(),
            inbox: VecDeque::new(),
            fault: None,
            accusation: None,
            departed: vec![0; size].into(),
            farewells: vec![false; size].into(),
            doomed: vec![false; size].into(),
            heard: vec![Instant::now(); size].into(),
            patience: LaunchConfig::new(size).patience(),
            told: None,
            ended: None,
        }
    }

    fn me(&self) -> usize {
        self.wire.rank
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let me = self.wire.rank;
        (0..self.wire.size).filter(move |&rank| rank != me)
    }

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
            self.empty_outbox();
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
            Some(Kind::Doomed) => self.doomed[source] = true,
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
}

/// The rank within the group of whoever made this call.
fn rank_of(op: &Op, mine: &Mine) -> usize {
    match *op {
        // Ends of a message are not compared by rank.
        Op::Send { .. } | Op::Recv { .. } => 0,
        _ => mine.me,
    }
}
