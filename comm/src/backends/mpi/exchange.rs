//! [`Exchange`]: one rank's side of an operation while its data moves: the one interpreter of
//! [`Plan`]s.
#![allow(unsafe_code)]

use super::plan::{Budget, Gate, Place, Plan, RING, Reduction, Way};
use super::wire::{Failure, Request, Wire};
use crate::backends::fold::fold;
use crate::check::{Call, Room};
use crate::error::Result;
use crate::meeting::buffers::Buffer;
use crate::membership::Membership;
use crate::op::{Op, ReduceOp, Signature};
use crate::work::Tensors;
use phalanx_tensor::{DType, Shape, Tensor};
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::ptr;

/// Steps of one lane that MPI may have at a time.
const IN_FLIGHT: usize = 4;

/// A call with its tensors, what there is to do, and how far it has come.
pub(super) struct Exchange {
    pub(super) signature: Signature,
    /// One for each tensor of the call.
    moves: SmallVec<[Move; 1]>,
    me: usize,
    /// The first tags of bulk data to and from each peer: the receiver of the data chooses.
    pub(super) tags_out: Box<[u32]>,
    pub(super) tags_in: Box<[u32]>,
    /// How many tags the bulk data from each peer needs.
    pub(super) needs_tags: Box<[u32]>,
    /// The parcels that have come with inline data, by peer.
    parcels: Parcels,
    /// Whether all data may move.
    pub(super) has_begun: bool,
    /// How often something of it has moved: what a wait for it looks at.
    pub(super) steps: u64,
}

type Parcels = Box<[Option<Box<[u8]>>]>;

/// How one tensor of a call moves.
///
/// Why this is sound. It owns both tensors from the call to its end; an output was unique when it came, or is
/// new, so nobody else has access to its memory; an input that is shared is only read, as everywhere. MPI reads
/// and writes only the bytes of steps in flight, and
///
/// 1. *a step's bytes belong to nobody else while it is in flight:* lanes that write, write to
///    different bytes, since `Plan` gives each part of the output to one peer; where input and
///    output are one buffer, a part is received only after it was sent ([`Gate::After`]), and the
///    own part is sent only after it was reduced ([`Gate::Reduced`]), and reduced only once;
/// 2. *a slot of the ring is received into only when it has been read:* at most [`RING`] steps are
///    received ahead of the reduction;
/// 3. *buffers outlive their requests:* a move with requests that have not completed is never
///    dropped (see `Drop`).
struct Move {
    plan: Plan,
    dtype: DType,
    src: *const u8,
    dst: *mut u8,
    input: Option<Tensor>,
    output: Option<Tensor>,
    /// Whether `output` is what the rank gets, and not only room to work in.
    gives: bool,
    /// [`RING`] steps for each peer, where a reduction receives more than inline data.
    ring: Option<Tensor>,
    ring_at: *mut u8,
    lanes: Box<[Progress]>,
    /// Where its data starts in the parcel of each peer.
    inline: Box<[usize]>,
    reduced: usize,
    done: bool,
}

// SAFETY: the tensors are `Send`; the pointers point into them, and are used under the engine's lock.
unsafe impl Send for Move {}

#[derive(Default)]
struct Progress {
    /// Of bulk data, counted from the first tag of the peer and the way.
    tag: u32,
    posted: usize,
    done: usize,
    requests: VecDeque<Request>,
}

/// What all moves of an exchange look at.
struct Surroundings<'a> {
    me: usize,
    reduction: Option<ReduceOp>,
    /// The peers' ranks in the world.
    ranks: &'a [usize],
    tags_out: &'a [u32],
    tags_in: &'a [u32],
    parcels: &'a [Option<Box<[u8]>>],
}

impl Exchange {
    /// Takes a checked call of rank `me` of `n` (of a message: of its ends), and makes room for its
    /// results.
    pub(super) fn new(call: Call, me: &Membership) -> Result<Exchange> {
        let Call {
            signature,
            inputs,
            outputs,
        } = call;
        let (index, n) = match signature.op {
            Op::Send { .. } => (0, 2),
            Op::Recv { .. } => (1, 2),
            _ => (me.rank, me.size()),
        };
        let (mut inputs, mut rooms) = (inputs.into_iter(), outputs.into_iter());
        let mut moves = SmallVec::new();
        let (mut budget, mut tags) = (Budget::of_a_call(), vec![[0; 2]; n]);
        for tensor in &signature.tensors {
            let (input, room) = (inputs.next(), rooms.next());
            let plan = Plan::new(&signature.op, tensor, (index, n), &mut budget);
            let mut new = Move::new(&signature.op, me, plan, (input, room), tensor, n)?;
            new.number(&mut tags);
            moves.push(new);
        }
        Ok(Exchange {
            signature,
            moves,
            me: index,
            tags_out: vec![0; n].into(),
            tags_in: vec![0; n].into(),
            needs_tags: tags.iter().map(|[_, received]| *received).collect(),
            parcels: (0..n).map(|_| None).collect(),
            has_begun: false,
            steps: 0,
        })
    }

    /// Appends the bytes that travel with the header to `peer`.
    pub(super) fn write_inline(&self, peer: usize, out: &mut Vec<u8>) {
        self.moves.iter().for_each(|m| out.extend(m.inline(peer)));
    }

    /// Whether this rank sends or receives data that no header carries.
    pub(super) fn is_bulk(&self) -> bool {
        let mut lanes = self.moves.iter().flat_map(|m| &m.plan.lanes);
        lanes.any(|lane| !lane.is_inline)
    }

    /// How many bytes of inline data this rank expects from `peer`.
    pub(super) fn expects(&self, peer: usize) -> usize {
        self.moves.iter().map(|m| m.expects(peer)).sum()
    }

    /// Keeps a parcel from `peer` with inline data from `at` on.
    pub(super) fn keep(&mut self, peer: usize, parcel: Box<[u8]>, mut at: usize) {
        for m in &mut self.moves {
            m.inline[peer] = at;
            at += m.expects(peer);
        }
        self.parcels[peer] = Some(parcel);
    }

    /// All ranks have come, and agree: data may move.
    pub(super) fn begin(&mut self) {
        self.has_begun = true;
        self.steps += 1;
        for m in &mut self.moves {
            m.begin(&self.parcels);
        }
    }

    /// Whether all is done.
    pub(super) fn is_done(&self) -> bool {
        self.has_begun && self.moves.iter().all(|m| m.done)
    }

    /// Whether MPI has data of it.
    pub(super) fn is_in_flight(&self) -> bool {
        let mut lanes = self.moves.iter().flat_map(|m| &m.lanes);
        lanes.any(|lane| !lane.requests.is_empty())
    }

    /// What the rank gets.
    pub(super) fn take(&mut self) -> Tensors {
        let given = self.moves.iter_mut().filter(|m| m.gives);
        given.filter_map(|m| m.output.take()).collect()
    }

    /// The peers from or to which data still has to move.
    pub(super) fn lagging(&self) -> Vec<usize> {
        let lanes = self
            .moves
            .iter()
            .flat_map(|m| m.plan.lanes.iter().zip(&m.lanes));
        let mut peers: Vec<usize> = lanes
            .filter(|(lane, progress)| progress.done < lane.steps())
            .map(|(lane, _)| lane.peer)
            .collect();
        peers.sort_unstable();
        peers.dedup();
        peers
    }

    /// Moves what can be moved without waiting. Returns whether anything did.
    pub(super) fn advance(&mut self, wire: &mut Wire, ranks: &[usize]) -> Result<bool, Failure> {
        let mut moved = false;
        for m in &mut self.moves {
            if m.done {
                continue;
            }
            let around = Surroundings {
                me: self.me,
                reduction: self.signature.op.reduction(),
                ranks,
                tags_out: &self.tags_out,
                tags_in: &self.tags_in,
                parcels: &self.parcels,
            };
            moved |= m.advance(wire, &around)?;
        }
        self.steps += u64::from(moved);
        Ok(moved)
    }
}

impl Move {
    fn new(
        op: &Op,
        me: &Membership,
        plan: Plan,
        (input, room): (Option<Tensor>, Option<Room>),
        (dtype, shape): &(DType, Shape),
        n: usize,
    ) -> Result<Move> {
        let gives = room.is_some();
        // A rank that reduces a part for a root needs room for it, though it gets nothing.
        let room = match plan.reduction {
            Some(_) => room.or_else(|| Some(Room::New(shape.clone()))),
            None => room,
        };
        let Buffer {
            src,
            dst,
            input,
            output,
        } = Buffer::new(op, me.rank, input, room, *dtype, me.device)?;
        let mut rings = plan.lanes.iter().filter(|l| l.place == Place::Ring);
        let (mut ring, mut ring_at) = (None, ptr::null_mut());
        if let Some(lane) = rings.find(|l| !l.is_inline) {
            let bytes = n * RING * lane.step.min(lane.bytes);
            let device = input.as_ref().or(output.as_ref());
            let device = device.map_or(me.device, Tensor::device);
            let mut t = Tensor::empty([bytes], DType::U8, device)?;
            ring_at = t.bytes_mut()?.as_mut_ptr();
            ring = Some(t);
        }
        let lanes = plan.lanes.iter().map(|_| Progress::default()).collect();
        Ok(Move {
            plan,
            dtype: *dtype,
            src,
            dst,
            input,
            output,
            gives,
            ring,
            ring_at,
            lanes,
            inline: vec![0; n].into(),
            reduced: 0,
            done: false,
        })
    }

    /// The bytes that travel with the header to `peer`.
    fn inline(&self, peer: usize) -> &[u8] {
        let mut lanes = self.plan.lanes.iter();
        let sent = lanes.find(|l| l.way == Way::Send && l.peer == peer && l.is_inline);
        match sent.map(|lane| (lane.place, lane.bytes)) {
            Some((Place::Input(at), bytes)) if bytes > 0 => {
                // SAFETY: the plan's sends lie within the input, which is there where it has one.
                unsafe { std::slice::from_raw_parts(self.src.add(at), bytes) }
            }
            _ => &[],
        }
    }

    /// Gives each lane of bulk data a tag of its own, behind those so far of its peer and way. Both ends do the same.
    fn number(&mut self, tags: &mut [[u32; 2]]) {
        let lanes = self.plan.lanes.iter().zip(&mut self.lanes);
        for (lane, progress) in lanes.filter(|(lane, _)| !lane.is_inline) {
            let next = &mut tags[lane.peer][usize::from(lane.way == Way::Recv)];
            progress.tag = *next;
            *next += 1;
        }
    }

    fn expects(&self, peer: usize) -> usize {
        let mut lanes = self.plan.lanes.iter();
        let lane = lanes.find(|l| l.way == Way::Recv && l.peer == peer && l.is_inline);
        lane.map_or(0, |lane| lane.bytes)
    }

    fn begin(&mut self, parcels: &[Option<Box<[u8]>>]) {
        if let Some((from, to, bytes)) = self.plan.copy {
            // SAFETY: the plan copies from the input to the output, both of which are there then,
            // and two buffers.
            unsafe {
                copy(
                    self.src.wrapping_add(from),
                    self.dst.wrapping_add(to),
                    bytes,
                )
            };
        }
        for (lane, progress) in self.plan.lanes.iter().zip(&mut self.lanes) {
            if !lane.is_inline {
                continue;
            }
            (progress.posted, progress.done) = (lane.steps(), lane.steps());
            if let (Way::Recv, Place::Output(at)) = (lane.way, lane.place)
                && let Some(parcel) = &parcels[lane.peer]
            {
                let data = &parcel[self.inline[lane.peer]..][..lane.bytes];
                // SAFETY: the lane's bytes lie within the output, nothing else has begun.
                unsafe { copy(data.as_ptr(), self.dst.wrapping_add(at), data.len()) };
            }
        }
    }

    /// What MPI is to receive it may copy on the spot, in any of its calls, and the peer waits for
    /// what this rank sends: so what was reduced is sent before anything else, receives come last, and
    /// reduced steps of others are received when this rank's own has been sent.
    fn advance(&mut self, wire: &mut Wire, around: &Surroundings<'_>) -> Result<bool, Failure> {
        let mut moved = false;
        for progress in &mut self.lanes {
            while let Some(request) = progress.requests.front_mut() {
                if !wire.test(request)? {
                    break;
                }
                progress.requests.pop_front();
                progress.done += 1;
                moved = true;
            }
        }
        let mut left = false;
        if let Some(reduction) = self.plan.reduction.clone() {
            let steps = reduction.bytes.div_ceil(reduction.step);
            if self.reduced < steps && self.has_received(self.reduced) {
                self.reduce(&reduction, around);
                moved = true;
            }
            left |= self.reduced < steps;
        }
        for way in [Way::Send, Way::Recv] {
            for i in 0..self.lanes.len() {
                while self.plan.lanes[i].way == way && self.may_post(i) {
                    self.post(i, wire, around)?;
                    moved = true;
                }
            }
        }
        let mut lanes = self.plan.lanes.iter().zip(&self.lanes);
        left |= lanes.any(|(lane, progress)| progress.done < lane.steps());
        self.done = !left;
        Ok(moved)
    }

    fn may_post(&self, i: usize) -> bool {
        let (lane, progress) = (&self.plan.lanes[i], &self.lanes[i]);
        let step = progress.posted;
        step < lane.steps()
            && progress.requests.len() < IN_FLIGHT
            && (lane.place != Place::Ring || step < self.reduced + RING)
            && match lane.gate {
                Gate::Open => true,
                Gate::Reduced => step < self.reduced,
                Gate::After(other) => step < self.lanes[other].done && self.has_reduced(step),
            }
    }

    fn post(
        &mut self,
        i: usize,
        wire: &mut Wire,
        around: &Surroundings<'_>,
    ) -> Result<(), Failure> {
        let (lane, progress) = (&self.plan.lanes[i], &mut self.lanes[i]);
        let range = lane.range(progress.posted);
        let peer = around.ranks[lane.peer];
        // SAFETY: the plan keeps within the buffers; the rest are the type's guarantees 1 to 3.
        let request = unsafe {
            match (lane.way, lane.place) {
                (Way::Send, place) => {
                    let from = match place {
                        Place::Output(at) => self.dst.cast_const().wrapping_add(at),
                        Place::Input(at) => self.src.wrapping_add(at),
                        Place::Ring => unreachable!("nothing is sent out of the ring"),
                    };
                    let tag = around.tags_out[lane.peer] + progress.tag;
                    wire.send_bulk(from.add(range.start), range.len(), peer, tag)?
                }
                (Way::Recv, place) => {
                    let to = match place {
                        Place::Output(at) => self.dst.wrapping_add(at + range.start),
                        Place::Ring => {
                            let slot = lane.step.min(lane.bytes);
                            self.ring_at
                                .wrapping_add(ring_at(lane.peer, progress.posted, slot))
                        }
                        Place::Input(_) => unreachable!("nothing is received into the input"),
                    };
                    let tag = around.tags_in[lane.peer] + progress.tag;
                    wire.recv_bulk(to, range.len(), peer, tag)?
                }
            }
        };
        progress.requests.push_back(request);
        progress.posted += 1;
        Ok(())
    }

    /// Whether this rank has reduced so far, or all that it has to.
    fn has_reduced(&self, step: usize) -> bool {
        self.plan.reduction.as_ref().is_none_or(|r| {
            let steps = r.bytes.div_ceil(r.step);
            step < self.reduced || self.reduced == steps
        })
    }

    /// Whether this step has come from everybody.
    fn has_received(&self, step: usize) -> bool {
        let lanes = self.plan.lanes.iter().zip(&self.lanes);
        let mut rings = lanes.filter(|(lane, _)| lane.place == Place::Ring);
        rings.all(|(_, progress)| step < progress.done)
    }

    /// Reduces the next step, in rank order.
    fn reduce(&mut self, reduction: &Reduction, around: &Surroundings<'_>) {
        let start = self.reduced * reduction.step;
        let bytes = reduction.step.min(reduction.bytes - start);
        let slot = reduction.step.min(reduction.bytes);
        let sources: Vec<*const u8> = (0..self.inline.len())
            .map(|r| match &around.parcels[r] {
                _ if r == around.me => self.src.wrapping_add(reduction.input + start),
                Some(parcel) if self.ring.is_none() => parcel.as_ptr().wrapping_add(self.inline[r]),
                _ => self
                    .ring_at
                    .cast_const()
                    .wrapping_add(ring_at(r, self.reduced, slot)),
            })
            .collect();
        let to = self.dst.wrapping_add(reduction.output + start);
        let elements = bytes / self.dtype.size();
        // SAFETY: the step has come from everybody: a whole slot of the ring each, or a whole inline
        // lane, whose length `Engine` has checked. The destination is the own part of the output,
        // equal to the own source or not overlapping with it (guarantee 1).
        unsafe {
            fold(self.dtype, around.reduction, &sources, &[to], 0..elements);
        }
        self.reduced += 1;
    }
}

impl Drop for Move {
    /// MPI may still read and write the buffers of an operation that was given up: they stay.
    fn drop(&mut self) {
        if self.lanes.iter().any(|lane| !lane.requests.is_empty()) {
            std::mem::forget((self.input.take(), self.output.take(), self.ring.take()));
        }
    }
}

fn ring_at(peer: usize, step: usize, slot: usize) -> usize {
    (peer * RING + step % RING) * slot
}

/// # Safety
/// Both are valid for so many bytes, and do not overlap; or there are none.
unsafe fn copy(from: *const u8, to: *mut u8, bytes: usize) {
    if bytes > 0 {
        // SAFETY: by the caller.
        unsafe { to.copy_from_nonoverlapping(from, bytes) };
    }
}
