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

/// Messages of at most so many bytes travel with the header of the call. All-reductions of no more are done by every rank
/// on its own: what is sent with a header is copied, so that a rank may reduce into the buffer that it gave.
const INLINE: usize = 4 << 10;
/// And of a call of several tensors no more than so many bytes to each rank, or from it: they are sent before anybody has
/// agreed, and whoever is late keeps them for as long.
const INLINE_OF_A_CALL: usize = 64 << 10;
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
    /// Whether it travels with the header. Both ends come to the same answer.
    pub(super) is_inline: bool,
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
}

/// How much of a call may still travel with its header, tensor by tensor. It is counted by what both ends of each lane
/// know, which is more than what is sent: the whole tensor, or the longest lane.
pub(super) struct Budget(usize);

impl Budget {
    pub(super) fn of_a_call() -> Budget {
        Budget(INLINE_OF_A_CALL)
    }

    /// The longest lane of the next tensor, of `whole` bytes, that may travel with the header between `n` ranks.
    fn next(&mut self, whole: usize, n: usize) -> usize {
        let limit = self.0.min(INLINE);
        // The parts of what is longer are all longer than any that may. (Those of `all_to_all_v` have any length; but that is
        // a call of one tensor.)
        if whole <= 2 * n * INLINE {
            self.0 -= whole.min(limit);
        }
        limit
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
    /// The longest lane that travels with the header.
    limit: usize,
}

/// A step of a reduction by `n` ranks. Both ends of a lane come to the same answer.
fn reduce_step(n: usize) -> usize {
    (REDUCE_STEP / (n - 1).max(1)).max(LEAST_STEP) & !(LEAST_STEP - 1)
}

impl Plan {
    /// The share of rank `me` of `n`, of one tensor of an operation; of a message's sender (0) or receiver (1).
    pub(super) fn new(
        op: &Op,
        (dtype, shape): &(DType, Shape),
        (me, n): (usize, usize),
        budget: &mut Budget,
    ) -> Plan {
        let size = dtype.size();
        let whole = shape.numel() * size;
        let mut plan = Plan {
            limit: budget.next(whole, n),
            ..Plan::default()
        };
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
            is_inline: bytes <= self.limit,
        });
    }

    /// The last lane belongs to the second exchange, and waits.
    fn then(&mut self, gate: Gate) {
        if let Some(lane) = self.lanes.last_mut() {
            lane.is_inline = false;
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
        if whole <= self.limit {
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
        if whole <= self.limit || n == 2 {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::ReduceOp;

    fn plans(op: &Op, tensors: &[(DType, Shape)], me: usize, n: usize) -> Vec<Plan> {
        let mut budget = Budget::of_a_call();
        let plan = |tensor| Plan::new(op, tensor, (me, n), &mut budget);
        tensors.iter().map(plan).collect()
    }

    /// What goes one way between a rank and its peer, in order: its bytes, and whether they go with the header.
    fn lanes(plans: &[Plan], peer: usize, way: Way) -> Vec<(usize, bool)> {
        let lanes = plans.iter().flat_map(|plan| &plan.lanes);
        let lanes = lanes.filter(|lane| lane.peer == peer && lane.way == way);
        lanes.map(|lane| (lane.bytes, lane.is_inline)).collect()
    }

    fn inline(lanes: &[(usize, bool)]) -> usize {
        let inline = lanes.iter().filter(|lane| lane.1);
        inline.map(|lane| lane.0).sum()
    }

    #[test]
    fn a_call_sends_little_before_all_agree_and_both_ends_know_what() {
        let tensor = |len: usize| (DType::F32, Shape::from([len]));
        let calls: [Vec<_>; 5] = [
            vec![tensor(1024); 4096],
            vec![tensor(4); 4096],
            (0..4096).map(|at| tensor(at * 60)).collect(),
            (0..200).map(|at| tensor([1 << 20, 12][at % 2])).collect(),
            (0..500).map(|at| tensor(6144 + at % 3 * 60)).collect(),
        ];
        let ops = [
            Op::AllReduce(ReduceOp::Sum),
            Op::Broadcast { root: 1 },
            Op::ReduceScatter(ReduceOp::Sum),
            Op::AllGather,
        ];
        for (n, op, call) in (2..=5)
            .flat_map(|n| ops.iter().map(move |op| (n, op)))
            .flat_map(|(n, op)| calls.iter().map(move |call| (n, op, call)))
        {
            let all: Vec<_> = (0..n).map(|me| plans(op, call, me, n)).collect();
            for (a, b) in (0..n).flat_map(|a| (0..n).map(move |b| (a, b))) {
                let sent = lanes(&all[a], b, Way::Send);
                assert_eq!(sent, lanes(&all[b], a, Way::Recv), "{op:?}, {a} to {b}");
                assert!(inline(&sent) <= INLINE_OF_A_CALL, "{op:?}, {a} to {b}");
            }
        }
        // Long tensors leave the short ones between them what they need.
        let sent = lanes(&plans(&ops[0], &calls[3], 0, 2), 1, Way::Send);
        assert_eq!(inline(&sent), 100 * 48);
        // A call of one tensor is as it was.
        let sent = |len| lanes(&plans(&ops[0], &[tensor(len)], 0, 2), 1, Way::Send);
        assert_eq!((sent(1024).len(), inline(&sent(1024))), (1, INLINE));
        assert_eq!(sent(4096).len(), 2);
    }
}
