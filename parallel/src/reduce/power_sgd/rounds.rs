//! [`Compressed`]: a bucket on its way in two rounds, first *P* and what is not compressed, then *Q*.
//!
//! Matrices of few columns are kept and sent as their transposes, `[r, n]` and `[r, m]`: their columns are then rows
//! in memory.

use super::orthonormal::orthonormal;
use super::{Kept, Memory, PowerSgdConfig, lock};
use crate::reduce::hook::{Completion, GradBucket};
use crate::{Error, Result};
use phalanx_comm::{ProcessGroup, ReduceOp, Work};
use phalanx_tensor::{DType, Device, Rng, Tensor};
use std::sync::{Arc, Mutex};

/// A bucket that is not compressed.
pub(super) struct Whole(pub(super) Work<Tensor>);

impl Completion for Whole {
    fn poll(&mut self) -> bool {
        self.0.poll().unwrap_or(true)
    }

    fn finish(self: Box<Self>) -> Result<Tensor> {
        Ok(self.0.wait()?)
    }
}

/// Where a compressed gradient lies in its bucket, and its extents.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix {
    offset: usize,
    n: usize,
    m: usize,
    r: usize,
}

impl Matrix {
    pub(super) fn new(offset: usize, n: usize, m: usize, r: usize) -> Matrix {
        Matrix { offset, n, m, r }
    }
}

/// A gradient that travels as it is: its place in the bucket.
#[derive(Debug, Clone, Copy)]
struct Plain {
    offset: usize,
    numel: usize,
}

/// What a step of a bucket follows.
pub(super) struct Plan {
    pub(super) config: PowerSgdConfig,
    pub(super) step: u64,
    pub(super) kept: Arc<Mutex<Vec<Kept>>>,
}

/// A matrix between the rounds.
struct Part {
    matrix: Matrix,
    /// The gradient and the error of the step before: `[n, m]`. In the second round only where its error is kept.
    input: Option<Tensor>,
    memory: Memory,
}

enum Round {
    /// *Pᵀ* of all matrices, then all that is not compressed.
    First(Work<Tensor>),
    /// *Qᵀ* of all matrices.
    Second {
        work: Work<Tensor>,
        /// The orthonormal *Pᵀ* of each.
        bases: Vec<Tensor>,
        /// What the first round gave, with all that is not compressed.
        first: Tensor,
    },
    /// An error has ended it.
    Over,
}

/// A compressed bucket on its way.
pub(super) struct Compressed {
    plan: Plan,
    group: Arc<dyn ProcessGroup>,
    index: usize,
    /// The bucket, into which the average goes.
    buffer: Tensor,
    parts: Vec<Part>,
    plains: Vec<Plain>,
    round: Round,
}

/// `[rows, columns]` from the element at `offset` on: a view.
fn view(flat: &Tensor, offset: usize, rows: usize, columns: usize) -> Result<Tensor> {
    let part = flat.narrow(0, offset, rows * columns)?;
    Ok(part.reshape([rows, columns])?)
}

impl Plan {
    /// The random *Qᵀ* of the matrix that is number `i` of the compressed ones of bucket `b`.
    fn start(
        &self,
        b: usize,
        i: usize,
        matrix: Matrix,
        dtype: DType,
        on: Device,
    ) -> Result<Tensor> {
        let rng = Rng::new(self.config.seed)
            .fold_in(b as u64)
            .fold_in(i as u64);
        let mut rng = match self.config.warm_start {
            true => rng,
            false => rng.fold_in(self.step),
        };
        Ok(Tensor::randn([matrix.r, matrix.m], dtype, on, &mut rng)?)
    }
}

impl Compressed {
    /// Starts the first round. `compressed` says for each gradient whether it is compressed; one is.
    pub(super) fn start(
        plan: Plan,
        group: &Arc<dyn ProcessGroup>,
        bucket: GradBucket<'_>,
        compressed: Vec<Option<Matrix>>,
        mut memories: Vec<Memory>,
    ) -> Result<Compressed> {
        let GradBucket { buffer, index, .. } = bucket;
        let (dtype, device) = (buffer.dtype(), buffer.device());
        let mut plains = Vec::new();
        for (slot, compressed) in bucket.slots.iter().zip(&compressed) {
            if compressed.is_none() {
                let (offset, numel) = (slot.offset, slot.numel);
                plains.push(Plain { offset, numel });
            }
        }
        let matrices: Vec<Matrix> = compressed.into_iter().flatten().collect();
        memories.resize_with(matrices.len(), Memory::default);
        let thin: usize = matrices.iter().map(|m| m.r * m.n).sum();
        let len = thin + plains.iter().map(|p| p.numel).sum::<usize>();
        let mut message = Tensor::empty([len], dtype, device)?;
        let (mut at, mut parts) = (0, Vec::with_capacity(matrices.len()));
        for (i, (matrix, mut memory)) in matrices.into_iter().zip(memories).enumerate() {
            let Matrix { offset, n, m, r } = matrix;
            let gradient = view(&buffer, offset, n, m)?;
            let input = match memory.error.take() {
                // In the memory of the error, which nobody else holds.
                Some(error) if error.device() == device => error.add_into(&gradient)?,
                Some(error) => error.to_device(device)?.add_into(&gradient)?,
                // So that it outlives the bucket, which the average overwrites.
                None if plan.config.use_error_feedback => gradient.copy()?,
                None => gradient,
            };
            let start = match memory.start.take() {
                Some(start) => start.to_device(device)?,
                None => plan.start(index, i, matrix, dtype, device)?,
            };
            // *M Q* spans the same without this, but small directions would be lost in the rounding of large ones. Where *M*
            // had fewer directions than *Q* has rows, random ones take the place of the rest.
            let q = match memory.q.take() {
                Some(q) => orthonormal(&q.to_device(device)?, Some(&start))?,
                None => orthonormal(&start, None)?,
            };
            message.write_at(at, &q.matmul(&input.t()?)?)?;
            at += r * n;
            if plan.config.warm_start {
                memory.start = Some(start);
            }
            parts.push(Part {
                matrix,
                input: Some(input),
                memory,
            });
        }
        for plain in &plains {
            message.write_at(at, &buffer.narrow(0, plain.offset, plain.numel)?)?;
            at += plain.numel;
        }
        Ok(Compressed {
            plan,
            round: Round::First(group.all_reduce(message, ReduceOp::Sum)?),
            group: Arc::clone(group),
            index,
            buffer,
            parts,
            plains,
        })
    }

    /// The second round, from what the first gives: *P*, from which *Q* follows.
    fn second(&mut self, first: Tensor) -> Result<Round> {
        let len = self.parts.iter().map(|p| p.matrix.r * p.matrix.m).sum();
        let mut message = Tensor::empty([len], first.dtype(), first.device())?;
        let (mut from, mut to) = (0, 0);
        let mut bases = Vec::with_capacity(self.parts.len());
        for Part { matrix, input, .. } in &mut self.parts {
            let Matrix { n, m, r, .. } = *matrix;
            let basis = orthonormal(&view(&first, from, r, n)?, None)?;
            let whole = input.take().ok_or_else(over)?;
            message.write_at(to, &basis.matmul(&whole)?)?;
            *input = Some(whole).filter(|_| self.plan.config.use_error_feedback);
            bases.push(basis);
            from += r * n;
            to += r * m;
        }
        Ok(Round::Second {
            work: self.group.all_reduce(message, ReduceOp::Sum)?,
            bases,
            first,
        })
    }

    /// Puts the averages into the bucket, and keeps what they lack.
    fn end(self, bases: Vec<Tensor>, first: Tensor, second: Tensor) -> Result<Tensor> {
        let mut buffer = self.buffer;
        let share = -1.0 / self.group.size() as f64;
        let (mut from, mut plain) = (0, 0);
        let mut memories = Vec::with_capacity(self.parts.len());
        for (part, basis) in self.parts.into_iter().zip(bases) {
            let Matrix { offset, n, m, r } = part.matrix;
            let mut memory = part.memory;
            let q = view(&second, from, r, m)?;
            let product = basis.t()?.matmul(&q)?;
            buffer.write_at(offset, &product)?;
            if let Some(input) = part.input {
                // Over the ranks, what is kept adds up to what the average lacks of the sum of all inputs.
                memory.error = Some(input.add_into(&product.mul_scalar(share)?)?);
            }
            memory.q = Some(q).filter(|_| self.plan.config.warm_start);
            memories.push(memory);
            from += r * m;
            plain += r * n;
        }
        for Plain { offset, numel } in self.plains {
            buffer.write_at(offset, &first.narrow(0, plain, numel)?)?;
            plain += numel;
        }
        lock(&self.plan.kept)[self.index].memories = memories;
        Ok(buffer)
    }
}

/// The engine calls nothing after an error.
fn over() -> Error {
    Error::InvalidUse {
        op: "PowerSgd",
        reason: "the reduction of this bucket has ended with an error".into(),
    }
}

impl Completion for Compressed {
    fn poll(&mut self) -> bool {
        match &mut self.round {
            Round::First(work) | Round::Second { work, .. } => work.poll().unwrap_or(true),
            Round::Over => true,
        }
    }

    fn proceed(&mut self) -> Result<()> {
        self.round = match std::mem::replace(&mut self.round, Round::Over) {
            Round::First(work) => {
                let first = work.wait()?;
                self.second(first)?
            }
            other => other,
        };
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<Tensor> {
        self.proceed()?; // nothing, where it was called
        match std::mem::replace(&mut self.round, Round::Over) {
            Round::Second { work, bases, first } => self.end(bases, first, work.wait()?),
            _ => Err(over()),
        }
    }
}
