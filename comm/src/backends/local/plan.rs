//! [`Plan`]: an operation as chunks of plain data movement, which any rank may carry out.
#![allow(unsafe_code)]

#[cfg(phalanx_loom)]
use super::model::fold;
#[cfg(not(phalanx_loom))]
use crate::backends::fold::fold;
use crate::op::{Op, ReduceOp, Signature};
use phalanx_tensor::{DType, Shape};
use smallvec::SmallVec;

/// Where one rank's data lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends {
    /// The elements that the rank gives; null where it gives none.
    pub(super) src: *const u8,
    /// Room for the elements that it gets; null where it gets none.
    pub(super) dst: *mut u8,
}

/// Reads each element of all `src`, reduces, writes it to all `dst`.
#[derive(Debug)]
struct Task {
    src: SmallVec<[*const u8; 4]>,
    dst: SmallVec<[*mut u8; 4]>,
    dtype: DType,
    elements: usize,
    /// Elements per chunk.
    step: usize,
    /// Number of the task's first chunk.
    first: usize,
}

#[derive(Debug)]
pub(super) struct Plan {
    tasks: SmallVec<[Task; 1]>,
    reduction: Option<ReduceOp>,
    /// How many ranks can run at the same time.
    workers: usize,
    chunks: usize,
    bytes: usize,
}

/// A small operation has one chunk for each rank that can run: claiming more costs more than it
/// evens out (64 KiB between two ranks in 4 chunks: 5.2 µs, in 2: 4.8, 2026-11). A chunk reads and
/// writes at least so many bytes, so that claiming it costs little beside it, …
const MIN_CHUNK: usize = 32 << 10;
/// … and at most so many, so that ranks end together, and a rank that polls returns soon.
const MAX_CHUNK: usize = 1 << 20;
/// Chunks start at multiples of so many elements: on cache lines, if the buffer does.
const ALIGN: usize = 64;

impl Plan {
    /// The data movement of a collective of `n` ranks that agree on `signature`, or of a message from the first end to the
    /// second, cut up for so many `workers`. `ends(r, i)` are rank `r`'s of tensor `i`, and `sends(r)` its rows by rank.
    pub(super) fn new<'a>(
        signature: &Signature,
        n: usize,
        ends: impl Fn(usize, usize) -> Ends,
        workers: usize,
        sends: impl Fn(usize) -> &'a [usize],
    ) -> Plan {
        let mut plan = Plan {
            tasks: SmallVec::new(),
            reduction: signature.op.reduction(),
            workers: workers.min(n),
            chunks: 0,
            bytes: 0,
        };
        for (i, (dtype, shape)) in signature.tensors.iter().enumerate() {
            plan.of_tensor(&signature.op, *dtype, shape, n, |r| ends(r, i), &sends);
        }
        plan
    }

    fn of_tensor<'a>(
        &mut self,
        op: &Op,
        dtype: DType,
        shape: &Shape,
        n: usize,
        ends: impl Fn(usize) -> Ends,
        sends: impl Fn(usize) -> &'a [usize],
    ) {
        let size = dtype.size();
        let numel = shape.numel();
        let part = numel / n; // where the first axis counts the ranks
        let src = |r: usize, at: usize| ends(r).src.wrapping_add(at * size);
        let dst = |r: usize, at: usize| ends(r).dst.wrapping_add(at * size);
        let ranks = 0..n;
        match op {
            Op::AllReduce(_) => self.add(
                dtype,
                ranks.clone().map(|r| src(r, 0)),
                ranks.map(|r| dst(r, 0)),
                numel,
            ),
            Op::Reduce { root, .. } => {
                self.add(dtype, ranks.map(|r| src(r, 0)), [dst(*root, 0)], numel);
            }
            Op::Broadcast { root } => {
                let others = ranks.filter(|r| r != root);
                self.add(dtype, [src(*root, 0)], others.map(|r| dst(r, 0)), numel);
            }
            Op::AllGather | Op::Split => {
                for r in ranks.clone() {
                    let to = ranks.clone().map(|s| dst(s, r * numel));
                    self.add(dtype, [src(r, 0)], to, numel);
                }
            }
            Op::Gather { root } => {
                ranks.for_each(|r| self.add(dtype, [src(r, 0)], [dst(*root, r * numel)], numel));
            }
            Op::Scatter { root } => {
                ranks.for_each(|r| self.add(dtype, [src(*root, r * numel)], [dst(r, 0)], numel));
            }
            Op::ReduceScatter(_) => {
                for r in ranks.clone() {
                    let from = ranks.clone().map(|s| src(s, r * part));
                    self.add(dtype, from, [dst(r, 0)], part);
                }
            }
            Op::AllToAll => {
                for r in ranks.clone() {
                    for s in ranks.clone() {
                        self.add(dtype, [src(r, s * part)], [dst(s, r * part)], part);
                    }
                }
            }
            Op::AllToAllV(_) => {
                let row: usize = shape[1..].iter().product();
                let mut filled = vec![0; n];
                for r in ranks {
                    let mut given = 0;
                    for (s, rows) in sends(r).iter().enumerate() {
                        let (from, to) = (src(r, given * row), dst(s, filled[s] * row));
                        self.add(dtype, [from], [to], rows * row);
                        given += rows;
                        filled[s] += rows;
                    }
                }
            }
            Op::Send { .. } | Op::Recv { .. } => self.add(dtype, [src(0, 0)], [dst(1, 0)], numel),
            Op::Barrier => {}
        }
    }

    fn add(
        &mut self,
        dtype: DType,
        src: impl IntoIterator<Item = *const u8>,
        dst: impl IntoIterator<Item = *mut u8>,
        elements: usize,
    ) {
        let src: SmallVec<[*const u8; 4]> = src.into_iter().collect();
        let dst: SmallVec<[*mut u8; 4]> = dst.into_iter().collect();
        if elements == 0 || dst.is_empty() {
            return;
        }
        let size = dtype.size();
        let touched = (src.len() + dst.len()) * size; // for each element
        let step = elements.div_ceil(self.workers);
        let step = step.clamp(MIN_CHUNK / touched, MAX_CHUNK / touched);
        let step = step.max(1).next_multiple_of(ALIGN);
        self.tasks.push(Task {
            src,
            dst,
            dtype,
            elements,
            step,
            first: self.chunks,
        });
        self.chunks += elements.div_ceil(step);
        self.bytes += elements * size;
    }

    /// The number of chunks.
    pub(super) fn chunks(&self) -> usize {
        self.chunks
    }

    /// The number of bytes that are written once or more.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Carries out one chunk.
    ///
    /// # Safety
    /// `chunk < self.chunks()`, each chunk is run once, and from the first run to the last
    /// - the `src` and `dst` of every rank are valid for as many elements as the rank's call says;
    /// - nobody else writes to what they point to, or reads what a `dst` points to;
    /// - a `dst` overlaps no buffer of another rank, and of one rank `src` and `dst` are equal, or do
    ///   not overlap. (Two `src` may overlap: ranks may give views of one tensor.)
    pub(super) unsafe fn run(&self, chunk: usize) {
        let task = &self.tasks[self.tasks.partition_point(|t| t.first <= chunk) - 1];
        let start = (chunk - task.first) * task.step;
        let range = start..task.elements.min(start + task.step);
        // SAFETY: the chunks of a plan write to disjoint elements and read none that another one
        // writes: `add` is called with disjoint destinations, and where a source is a destination
        // (in `all_reduce` and `reduce`) there is a single task for each tensor, which reads and writes
        // the same elements. Sources may overlap each other, since they are only read then. The rest is the caller's promise.
        unsafe { fold(task.dtype, self.reduction, &task.src, &task.dst, range) };
    }
}
