//! [`Plan`]: what one rank sends, receives and reduces in a collective. Pure: nothing moves here.
//!
//! Every collective is at most two exchanges of parts between all pairs of ranks. All parts of a
//! pair go through one *lane*, in steps; a gate holds a lane back until what its next step needs is
//! there. So the pieces of a long message are sent, reduced and handed on at the same time.
//!
//! A long `all_reduce` gives every rank a part to reduce: it receives that part of all ranks,
//! reduces them in rank order, step by step, and sends the result to all. Each byte crosses the wire
//! as often as in the best known algorithms, `2 (n - 1) / n` times; and the order of the additions
//! is that of the local backend, so the bits are the same. (MPI's own reductions choose their order
//! by size and number of processes.) A short one is sent whole to everybody, who all reduce the
//! same.

use crate::op::Op;
use phalanx_tensor::{DType, Shape};
use std::ops::Range;

/// Messages of at most so many bytes travel with the header of the call.
const INLINE: usize = 4 << 10;
/// All-reductions of at most so many bytes are done by every rank on its own. No more than what is
/// sent inline, that is copied: a rank reduces into the buffer that it gave.
const DIRECT: usize = INLINE;
/// A step of plain data movement.
const STEP: usize = 4 << 20;
/// A step of a reduction, from all other ranks together: what is received stays in the cache until it
/// is read.
const REDUCE_STEP: usize = 512 << 10;
/// … and from each of them at least so much, since every step costs a few messages.
const LEAST_STEP: usize = 128 << 10;
/// How many steps of a reduction may have been received and not yet read.
pub(super) const RING: usize = 4;

/// Which way a lane goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Send,
    Recv,
}

/// Where a lane's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In what the rank gives, from this byte on.
    Input(usize),
    /// In what it gets, from this byte on.
    Output(usize),
    /// In the ring of steps from this peer that wait to be reduced.
    Ring,
}

/// What a step waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    /// Nothing.
    Open,
    /// That the same step has been reduced.
    Reduced,
    /// That the same step of another lane has ended.
    After(usize),
}

/// All that goes from one rank to another in one exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lane {
    /// The rank in the group.
    pub(super) peer: usize,
    pub(super) way: Way,
    pub(super) place: Place,
    pub(super) bytes: usize,
    /// Bytes of a step; the last one may be shorter.
    pub(super) step: usize,
    pub(super) gate: Gate,
    /// Which exchange it belongs to: 0 or 1.
    pub(super) exchange: u32,
}

impl Lane {
    /// The number of steps.
    pub(super) fn steps(&self) -> usize {
        self.bytes.div_ceil(self.step)
    }

    /// The bytes of a step, counted from the lane's first.
    pub(super) fn range(&self, step: usize) -> Range<usize> {
        let start = step * self.step;
        start..self.bytes.min(start + self.step)
    }

    /// Whether the lane travels with the header. Both ends come to the same answer.
    pub(super) fn is_inline(&self) -> bool {
        self.exchange == 0 && self.gate == Gate::Open && self.bytes <= INLINE
    }
}

/// The bytes that a rank reduces: at the same place in its input, in its output, and in what comes
/// through the lanes to [`Place::Ring`], one from every other rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reduction {
    pub(super) input: usize,
    pub(super) output: usize,
    pub(super) bytes: usize,
    pub(super) step: usize,
}

/// One rank's share of a collective.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Plan {
    pub(super) lanes: Vec<Lane>,
    pub(super) reduction: Option<Reduction>,
    /// What a rank gives to itself: from, to, bytes.
    pub(super) copy: Option<(usize, usize, usize)>,
}

/// A step of a reduction by `n` ranks. Both ends of a lane come to the same answer.
fn reduce_step(n: usize) -> usize {
    (REDUCE_STEP / (n - 1).max(1)).max(LEAST_STEP) & !(LEAST_STEP - 1)
}

impl Plan {
    /// The share of rank `me` of `n`, of one tensor of an operation; of a message's sender (0) or receiver (1).
    pub(super) fn new(op: &Op, dtype: DType, shape: &Shape, me: usize, n: usize) -> Plan {
        let mut plan = Plan::default();
        let size = dtype.size();
        let whole = shape.numel() * size;
        let others = || (0..n).filter(|&p| p != me);
        match op {
            Op::AllReduce(_) => plan.reduce(me, n, whole, size, None),
            Op::Reduce { root, .. } => plan.reduce(me, n, whole, size, Some(*root)),
            Op::ReduceScatter(_) => {
                let (part, step) = (whole / n, reduce_step(n));
                for p in others() {
                    plan.lane(p, Way::Send, Place::Input(p * part), part, step);
                    plan.lane(p, Way::Recv, Place::Ring, part, step);
                }
                plan.fold(me * part, 0, part, step);
            }
            Op::Broadcast { root } => plan.broadcast(me, n, whole, size, *root),
            Op::AllGather | Op::Split => {
                for p in others() {
                    plan.lane(p, Way::Send, Place::Input(0), whole, STEP);
                    plan.lane(p, Way::Recv, Place::Output(p * whole), whole, STEP);
                }
                plan.copy = Some((0, me * whole, whole));
            }
            Op::Gather { root } if *root == me => {
                for p in others() {
                    plan.lane(p, Way::Recv, Place::Output(p * whole), whole, STEP);
                }
                plan.copy = Some((0, me * whole, whole));
            }
            Op::Gather { root } => plan.lane(*root, Way::Send, Place::Input(0), whole, STEP),
            Op::Scatter { root } if *root == me => {
                for p in others() {
                    plan.lane(p, Way::Send, Place::Input(p * whole), whole, STEP);
                }
                plan.copy = Some((me * whole, 0, whole));
            }
            Op::Scatter { root } => plan.lane(*root, Way::Recv, Place::Output(0), whole, STEP),
            Op::AllToAll => {
                let part = whole / n;
                for p in others() {
                    plan.lane(p, Way::Send, Place::Input(p * part), part, STEP);
                    plan.lane(p, Way::Recv, Place::Output(p * part), part, STEP);
                }
                plan.copy = Some((me * part, me * part, part));
            }
            Op::AllToAllV(splits) => {
                let row = shape[1..].iter().product::<usize>() * size;
                let (mut given, mut got) = (0, 0);
                for p in 0..n {
                    let (send, recv) = (splits.send[p] * row, splits.recv[p] * row);
                    if p == me {
                        plan.copy = Some((given, got, send));
                    } else {
                        plan.lane(p, Way::Send, Place::Input(given), send, STEP);
                        plan.lane(p, Way::Recv, Place::Output(got), recv, STEP);
                    }
                    (given, got) = (given + send, got + recv);
                }
            }
            Op::Send { .. } => plan.lane(1, Way::Send, Place::Input(0), whole, STEP),
            Op::Recv { .. } => plan.lane(0, Way::Recv, Place::Output(0), whole, STEP),
            Op::Barrier => {}
        }
        plan
    }

    fn lane(&mut self, peer: usize, way: Way, place: Place, bytes: usize, step: usize) {
        self.lanes.push(Lane {
            peer,
            way,
            place,
            bytes,
            step,
            gate: Gate::Open,
            exchange: 0,
        });
    }

    /// The last lane belongs to the second exchange, and waits.
    fn then(&mut self, gate: Gate) {
        if let Some(lane) = self.lanes.last_mut() {
            lane.exchange = 1;
            lane.gate = gate;
        }
    }

    fn fold(&mut self, input: usize, output: usize, bytes: usize, step: usize) {
        self.reduction = Some(Reduction {
            input,
            output,
            bytes,
            step,
        });
    }

    /// To `root`, or to all.
    fn reduce(&mut self, me: usize, n: usize, whole: usize, size: usize, root: Option<usize>) {
        let gets = |p: usize| root.is_none_or(|root| root == p);
        let others = || (0..n).filter(move |&p| p != me);
        let step = reduce_step(n);
        if whole <= DIRECT {
            for p in others() {
                if gets(p) {
                    self.lane(p, Way::Send, Place::Input(0), whole, step);
                }
                if gets(me) {
                    self.lane(p, Way::Recv, Place::Ring, whole, step);
                }
            }
            if gets(me) {
                self.fold(0, 0, whole, step);
            }
            return;
        }
        let mine = part(whole, size, me, n);
        for p in others() {
            let theirs = part(whole, size, p, n);
            self.lane(p, Way::Send, Place::Input(theirs.start), theirs.len(), step);
            let sent = self.lanes.len() - 1;
            self.lane(p, Way::Recv, Place::Ring, mine.len(), step);
            if gets(p) {
                self.lane(p, Way::Send, Place::Output(mine.start), mine.len(), step);
                self.then(Gate::Reduced);
            }
            if gets(me) {
                // Input and output may be one buffer: what is to be overwritten has been sent.
                self.lane(
                    p,
                    Way::Recv,
                    Place::Output(theirs.start),
                    theirs.len(),
                    step,
                );
                self.then(Gate::After(sent));
            }
        }
        self.fold(mine.start, mine.start, mine.len(), step);
    }

    /// A short one goes from the root to all; of a long one the root gives each rank a part, which
    /// that rank hands on to the others.
    fn broadcast(&mut self, me: usize, n: usize, whole: usize, size: usize, root: usize) {
        let others = || (0..n).filter(|&p| p != me);
        if whole <= DIRECT || n == 2 {
            match me == root {
                true => {
                    others().for_each(|p| self.lane(p, Way::Send, Place::Input(0), whole, STEP))
                }
                false => self.lane(root, Way::Recv, Place::Output(0), whole, STEP),
            }
            return;
        }
        let step = reduce_step(n);
        let mine = part(whole, size, me, n);
        if me == root {
            for p in others() {
                let theirs = part(whole, size, p, n);
                self.lane(p, Way::Send, Place::Input(theirs.start), theirs.len(), step);
                self.lane(p, Way::Send, Place::Input(mine.start), mine.len(), step);
                self.then(Gate::Open);
            }
            return;
        }
        self.lane(root, Way::Recv, Place::Output(mine.start), mine.len(), step);
        for p in others() {
            if p != root {
                self.lane(p, Way::Send, Place::Output(mine.start), mine.len(), step);
                self.then(Gate::After(0));
            }
            let theirs = part(whole, size, p, n);
            self.lane(
                p,
                Way::Recv,
                Place::Output(theirs.start),
                theirs.len(),
                step,
            );
            self.then(Gate::Open);
        }
    }
}

/// The bytes of `whole` that rank `p` reduces: whole elements, and as many as any other, or one
/// more.
fn part(whole: usize, size: usize, p: usize, n: usize) -> Range<usize> {
    let elements = whole / size;
    let start = |p: usize| {
        let extra = elements % n;
        (elements / n * p + p.min(extra)) * size
    };
    start(p)..start(p + 1)
}
