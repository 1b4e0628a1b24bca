//! Communication hooks: another way to reduce a bucket than an exact average.

use super::bucket::Slot;
use super::flat;
use crate::Result;
use phalanx_autograd::Param;
use phalanx_comm::{ProcessGroup, ReduceOp, Work};
use phalanx_tensor::{DType, Tensor};
use std::sync::Arc;

/// A bucket of gradients that is complete on this rank (PyTorch: `GradBucket`).
#[derive(Debug)]
#[non_exhaustive]
pub struct GradBucket<'a> {
    /// Its number in the plan, from 0: an index into [`GradReducer::buckets`](crate::GradReducer::buckets).
    pub index: usize,
    /// Whether it is the last one of the step.
    pub is_last: bool,
    /// The parameters whose gradients it holds, in the order in which these lie in it.
    pub parameters: &'a [Param],
    /// The gradients, in a tensor of rank 1 and of their element type
    /// ([`Param::grad_dtype`](phalanx_autograd::Param::grad_dtype)). Nobody else holds it, so that a
    /// collective changes it in place.
    pub buffer: Tensor,
    /// Where the gradients lie.
    pub(super) slots: &'a [Slot],
}

impl GradBucket<'_> {
    /// The gradient of each of [`parameters`](GradBucket::parameters), as a view of the buffer. What is kept
    /// of them makes a collective copy the buffer first.
    ///
    /// # Errors
    /// As [`Tensor::narrow`].
    pub fn gradients(&self) -> Result<Vec<Tensor>> {
        let pairs = self.slots.iter().zip(self.parameters);
        pairs
            .map(|(slot, param)| flat::view(&self.buffer, slot.offset, param.shape()))
            .collect()
    }
}

/// A reduction that a [`CommHook`] has started. A closure is one that moves nothing before it is
/// finished.
pub trait Completion {
    /// Does a small share of what is under way, without blocking. Returns whether that is complete, so that
    /// [`proceed`](Completion::proceed), and without one [`finish`](Completion::finish), would return at once. Called
    /// now and then during the sweep.
    fn poll(&mut self) -> bool {
        false
    }

    /// Starts what can only follow once the reduction's first part has arrived, and may wait for that. Called
    /// once, when the last bucket has left, for all buckets in order and before any of them is finished: at the same
    /// place on every rank, so that collectives that it starts meet those of the other ranks.
    ///
    /// # Errors
    /// Whatever stops the step.
    fn proceed(&mut self) -> Result<()> {
        Ok(())
    }

    /// Waits for the reduction and returns what stands for the average.
    ///
    /// # Errors
    /// Whatever stops the step.
    fn finish(self: Box<Self>) -> Result<Tensor>;
}

impl<F: FnOnce() -> Result<Tensor>> Completion for F {
    fn finish(self: Box<Self>) -> Result<Tensor> {
        self()
    }
}

/// Reduces buckets of gradients (PyTorch: DDP communication hooks).
pub trait CommHook: Send + Sync {
    /// Where the hook keeps something from step to step: a hook of the same kind that has kept nothing yet. Every
    /// [`GradReducer`](crate::GradReducer) asks for one of its own, since configurations are shared by wrappers, and
    /// by ranks that are threads. `None`, the default, where nothing is kept: this one serves all.
    fn fresh(&self) -> Option<Arc<dyn CommHook>> {
        None
    }

    /// Starts the reduction of a bucket, and returns what completes it.
    ///
    /// Each rank's gradients come divided already (by the number of ranks, or weighted), so the
    /// *sum* over the ranks is the average. The completion returns it, or what stands for it, with
    /// the shape and the element type of [`buffer`](GradBucket::buffer); anything else is
    /// [`Error::HookResult`](crate::Error::HookResult). Where this rank has no gradient, the buffer is zero;
    /// between two gradients it is zero, too, as long as the completions leave zeros there. Called for the
    /// same buckets in the same order on every rank. It is finished when the step is; between ranks that are
    /// threads, a large bucket moves before only where [`Completion::poll`] sees to it.
    ///
    /// # Errors
    /// Whatever stops the step: `start`'s and the completion's are this rank's error of the step, as they
    /// are.
    fn start(
        &self,
        group: &Arc<dyn ProcessGroup>,
        bucket: GradBucket<'_>,
    ) -> Result<Box<dyn Completion>>;

    /// What ranks compare when they are wrapped, since all must use the same hook: its type, and the
    /// numbers that it depends on. By default the type's name.
    fn name(&self) -> String {
        std::any::type_name::<Self>().to_owned()
    }
}

/// Sends gradients as a shorter type: half the bytes, at the price of rounding them
/// (PyTorch: `bf16_compress_hook`, `fp16_compress_hook`). Sums accumulate in `f32`. Gradients of
/// parameters of a half type are `f32` too, and travel so without this hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compress {
    /// bfloat16: the range of `f32`, 8 bits of precision.
    Bf16,
    /// Half precision: 11 bits, values beyond 65,504 overflow.
    F16,
}

impl CommHook for Compress {
    fn start(
        &self,
        group: &Arc<dyn ProcessGroup>,
        bucket: GradBucket<'_>,
    ) -> Result<Box<dyn Completion>> {
        let short = match self {
            Compress::Bf16 => DType::BF16,
            Compress::F16 => DType::F16,
        };
        let work = group.all_reduce(bucket.buffer.cast(short)?, ReduceOp::Sum)?;
        let buffer = bucket.buffer;
        Ok(Box::new(Compressed { work, buffer }))
    }

    fn name(&self) -> String {
        format!("Compress::{self:?}")
    }
}

/// A compressed bucket on its way.
struct Compressed {
    work: Work<Tensor>,
    /// Where the average goes, so that the bucket stays where it is.
    buffer: Tensor,
}

impl Completion for Compressed {
    fn poll(&mut self) -> bool {
        self.work.poll().unwrap_or(true)
    }

    fn finish(self: Box<Self>) -> Result<Tensor> {
        let Compressed { work, mut buffer } = *self;
        buffer.write_scaled_at(0, &work.wait()?, 1.0)?;
        Ok(buffer)
    }
}
