//! [`Engine`]: what a process knows of the world, and the one place that makes MPI calls.

mod calls;
mod failure;
mod groups;
mod leaving;
mod outbox;
mod slots;
mod tags;

pub use self::leaving::Footprint;

use self::groups::Groups;
use self::slots::{Arrival, Mine, Slots};
use self::tags::Tags;
use super::detector::Detector;
use super::exchange::Exchange;
use super::header::{Header, Key};
use super::wait::Listener;
use super::wire::{Failure, Incoming, Outgoing, Wire};
use super::word::{CALL, Standing, Word};
use crate::check::Call;
use crate::error::{Error, Result};
use crate::launch::LaunchConfig;
use crate::launch::config::Patience;
use crate::membership::Membership;
use crate::op::{Op, Signature};
use crate::sync::{Guard, Mutex};
use crate::work::Tensors;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

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

/// How far an operation has come.
pub(super) enum Stage {
    /// Somebody has not called it.
    Filling,
    /// Data is moving.
    Moving,
    /// The rank has what it gets.
    Done,
}

/// The engine's state.
pub(super) struct Core {
    pub(super) wire: Wire,
    /// How the world fails.
    pub(super) detector: Detector,
    slots: Slots,
    groups: Groups,
    /// Operations whose data moves: of the current epoch, unless it has failed, and of earlier ones.
    moving: Vec<Key>,
    suspects: Vec<Key>,
    /// Those of bulk data from each rank.
    tags: Box<[Tags]>,
    outbox: Vec<Outgoing>,
    inbox: VecDeque<Incoming>,
    /// Whether the last look found nothing more that had come.
    has_read_all: bool,
    /// Whether the current epoch has failed, and its operations are given up.
    has_failed: bool,
    /// Whether MPI has kept data of operations that were given up.
    keeps_data: bool,
    /// How long this rank may go on when the world has failed.
    pub(super) patience: Patience,
}

impl Core {
    fn new(wire: Wire) -> Core {
        let (size, tags) = (wire.size, wire.tags);
        Core {
            detector: Detector::new(wire.rank, size, Instant::now()),
            wire,
            slots: Slots::default(),
            groups: Groups::default(),
            moving: Vec::new(),
            suspects: Vec::new(),
            tags: (0..size).map(|_| Tags::new(tags)).collect(),
            outbox: Vec::new(),
            inbox: VecDeque::new(),
            has_read_all: true,
            has_failed: false,
            keeps_data: false,
            patience: LaunchConfig::new(size).patience(),
        }
    }

    fn me(&self) -> usize {
        self.wire.rank
    }

    /// Moves along whatever can be moved without waiting. Returns whether anything happened.
    pub(super) fn progress(&mut self) -> bool {
        let (mut moved, now) = (false, Instant::now());
        self.has_read_all = false;
        for _ in 0..PARCELS {
            match self.wire.next_parcel() {
                Ok(Some(parcel)) => self.inbox.push_back(parcel),
                Ok(None) => {
                    self.has_read_all = true;
                    break;
                }
                Err(failure) => {
                    self.broken(failure);
                    break;
                }
            }
            moved |= self.empty_inbox(now);
        }
        if !self.inbox.is_empty() {
            moved |= self.empty_inbox(now);
        }
        // A verdict may stand behind what has been read.
        if self.has_read_all {
            // Who was stopped meanwhile has not listened: a verdict goes by the time that it is.
            let now = match self.detector.is_waiting() {
                true => Instant::now(),
                false => now,
            };
            self.detector.look(now);
        }
        self.send_letters();
        if !self.outbox.is_empty() {
            self.empty_outbox();
        }
        if !self.has_failed && self.fault().is_some() {
            self.give_up_operations();
        }
        let mut i = 0;
        while i < self.moving.len() {
            let key = self.moving[i];
            moved |= self.advance(key);
            match self.slots.stage(key) {
                Stage::Done => {
                    self.moving.swap_remove(i);
                    self.finish(key);
                }
                _ => i += 1,
            }
        }
        if !self.suspects.is_empty() {
            self.judge();
        }
        moved
    }

    /// Whether there is anything to move along but what may come in.
    pub(super) fn is_busy(&self) -> bool {
        !(self.moving.is_empty() && self.outbox.is_empty() && self.inbox.is_empty())
            || self.detector.is_waiting()
            || !self.suspects.is_empty()
    }

    fn advance(&mut self, key: Key) -> bool {
        let Some(mine) = self.slots.mine_mut(key) else {
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
    fn empty_inbox(&mut self, now: Instant) -> bool {
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
                        self.handle(now, parcel.source, parcel.bytes);
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

    fn handle(&mut self, now: Instant, source: usize, parcel: Box<[u8]>) {
        self.detector.hear(now, source);
        if let Some((&CALL, mut rest)) = parcel.split_first() {
            match Header::read(&mut rest) {
                Some(header) => {
                    let data = parcel.len() - rest.len();
                    self.arrive(source, header, parcel, data);
                }
                None => self.garbled(source),
            }
            return;
        }
        match Word::read(source, &parcel) {
            Some((epoch, word)) => {
                let now = Instant::now();
                let (slots, me) = (&self.slots, self.wire.rank);
                let standing = || slots.standing(me);
                self.detector.receive(now, source, epoch, word, standing);
            }
            None => self.garbled(source),
        }
    }

    fn garbled(&mut self, source: usize) {
        self.accuse(&Error::Transport {
            rank: self.me(),
            call: "MPI_Imrecv".into(),
            message: format!("rank {source} sent what is no message; does it run another version?"),
        });
    }
}
