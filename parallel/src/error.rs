//! The error type of what this crate runs. Plans have their own, in [`pipeline`](crate::pipeline).
//!
//! Ranks are named by their number in the world, as in [`phalanx_comm::Error`], also where the group
//! was split off.

use phalanx_tensor::{DType, Shape};

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in a parallel wrapper.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Ranks hold different modules. The same error on every rank.
    #[error("the ranks hold different modules: {difference}")]
    ReplicasDiffer {
        /// The first rank whose module is not that of the group's first rank.
        rank: usize,
        /// The first parameter or buffer that differs, and how.
        difference: String,
    },
    /// A weight that no average can be made with. The same error on every rank.
    #[error("backward_weighted: {}", match rank {
        Some(rank) => format!("rank {rank} gave the weight {weight}; it must be finite and not negative"),
        None => "the weights of all ranks are 0".to_string(),
    })]
    InvalidWeight {
        /// The rank that gave it; `None` where all weights are zero.
        rank: Option<usize>,
        /// The weight.
        weight: f64,
    },
    /// A [`CommHook`](crate::CommHook) returned what cannot stand for its bucket. On this rank only:
    /// the others learn of it when this rank's program returns the error.
    #[error(
        "the hook on rank {rank} returned {found_shape} {found_dtype} for bucket {bucket}, \
         which is {shape} {dtype}"
    )]
    HookResult {
        /// The rank.
        rank: usize,
        /// The bucket, as an index into [`Ddp::buckets`](crate::Ddp::buckets).
        bucket: usize,
        /// The bucket's shape.
        shape: Shape,
        /// The bucket's element type.
        dtype: DType,
        /// The shape of what the hook returned.
        found_shape: Shape,
        /// The element type of what the hook returned.
        found_dtype: DType,
    },
    /// A sweep ended without a gradient that its tape had announced, so that a bucket could not
    /// leave. On this rank only, as above.
    #[error(
        "rank {rank}: the sweep ended without the gradient of `{parameter}`, \
         which bucket {bucket} waits for"
    )]
    GradientMissing {
        /// The rank.
        rank: usize,
        /// The bucket, as an index into [`Ddp::buckets`](crate::Ddp::buckets).
        bucket: usize,
        /// The first parameter of the bucket that has no gradient.
        parameter: String,
    },
    /// A parameter that was frozen when [`Ddp::new`](crate::Ddp::new) planned its averages wants a
    /// gradient now, which nobody would average. On this rank only, before it has sent anything.
    #[error(
        "rank {rank}: `{parameter}` was frozen in Ddp::new and wants a gradient now; \
         wrap the module again on every rank"
    )]
    Thawed {
        /// The rank.
        rank: usize,
        /// The first such parameter.
        parameter: String,
    },
    /// A call that the configuration does not allow, or that comes at the wrong time.
    #[error("{op}: {reason}")]
    InvalidUse {
        /// The call.
        op: &'static str,
        /// What to do instead.
        reason: String,
    },
    /// An operation on tensors failed.
    #[error(transparent)]
    Tensor(#[from] phalanx_tensor::Error),
    /// Differentiation failed.
    #[error(transparent)]
    Autograd(#[from] phalanx_autograd::Error),
    /// Communication failed.
    #[error(transparent)]
    Comm(#[from] phalanx_comm::Error),
}
