//! Communication hooks: another way to reduce a bucket than an exact average.

use crate::Result;
use phalanx_comm::{ProcessGroup, ReduceOp, Work};
use phalanx_tensor::{DType, Tensor};

/// A reduction that a [`CommHook`] has started. A closure is one that moves nothing before it is
/// finished.
pub trait Completion {
    /// Does a small share of what is left to do, without blocking. Returns whether
    /// [`finish`](Completion::finish) would return at once. Called now and then during the sweep.
    fn poll(&mut self) -> bool {
        false
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
    /// Starts the reduction of `bucket`, a tensor of rank 1 and of the element type of its gradients
    /// ([`Param::grad_dtype`](phalanx_autograd::Param::grad_dtype)), and returns what completes it.
    ///
    /// Each rank's gradients come divided already (by the number of ranks, or weighted), so the
    /// *sum* over the ranks is the average. The completion returns it, or what stands for it, with
    /// the shape and the element type of `bucket`; anything else is
    /// [`Error::HookResult`](crate::Error::HookResult). Called for the same buckets in the same order on
    /// every rank. It is finished when the sweep has ended; between ranks that are threads, a large
    /// bucket moves before only where [`Completion::poll`] sees to it.
    ///
    /// # Errors
    /// Whatever stops the step: `start`'s and the completion's are this rank's error of
    /// [`backward`](crate::Ddp::backward), as they are.
    fn start(&self, group: &dyn ProcessGroup, bucket: Tensor) -> Result<Box<dyn Completion>>;

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
    fn start(&self, group: &dyn ProcessGroup, bucket: Tensor) -> Result<Box<dyn Completion>> {
        let wide = bucket.dtype();
        let short = match self {
            Compress::Bf16 => DType::BF16,
            Compress::F16 => DType::F16,
        };
        let work = group.all_reduce(bucket.cast(short)?, ReduceOp::Sum)?;
        Ok(Box::new(Compressed { work, wide }))
    }

    fn name(&self) -> String {
        format!("Compress::{self:?}")
    }
}

/// A compressed bucket on its way.
struct Compressed {
    work: Work<Tensor>,
    wide: DType,
}

impl Completion for Compressed {
    fn poll(&mut self) -> bool {
        self.work.poll().unwrap_or(true)
    }

    fn finish(self: Box<Self>) -> Result<Tensor> {
        Ok(self.work.wait()?.cast(self.wide)?)
    }
}
