//! The error type of what this crate runs. Plans have their own, in [`pipeline`](crate::pipeline).
//!
//! Ranks are named by their number in the world, as in [`phalanx_comm::Error`], also where the group
//! was split off.

use crate::mesh::MeshError;
use phalanx_tensor::{DType, Shape};
use std::fmt;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in a parallel wrapper.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Ranks hold different modules, configurations or values. The same error on every rank.
    #[error("the ranks hold different replicas: {difference}")]
    ReplicasDiffer {
        /// The first rank that does not have what the group's first rank has.
        rank: usize,
        /// The first parameter, buffer or line of the configuration that differs, and how.
        difference: String,
    },
    /// Ranks differ in something else that they must not differ in: see [`agree`](crate::ddp::agree). The
    /// same error on every rank.
    #[error("the ranks have different {what}: {difference}")]
    RanksDiffer {
        /// In what.
        what: &'static str,
        /// The first rank that does not have what the group's first rank has.
        rank: usize,
        /// The first line that differs, and how.
        difference: String,
    },
    /// A step ended half done, so that this rank may be behind the others, and the wrapper or the reducer
    /// refuses all further steps. On this rank only: the others learn of it when this rank's program returns the
    /// error.
    #[error(
        "rank {rank}: step {step} ended half done ({reason}), so this rank's gradients may be behind the \
         others; make the Ddp or the GradReducer anew on every rank"
    )]
    Poisoned {
        /// The rank.
        rank: usize,
        /// The step, from 0.
        step: u64,
        /// What ended it.
        reason: String,
    },
    /// A rank has ended while others still train.
    #[error(
        "{error}; where ranks may have different numbers of batches, set DdpConfig::uneven_inputs on \
         every rank, and let a rank whose data has run out call Ddp::join"
    )]
    EndedEarly {
        /// What the communication says of it: a
        /// [`RankReturned`](phalanx_comm::Error::RankReturned).
        error: phalanx_comm::Error,
    },
    /// A weight that no average can be made with. The same error on every rank.
    #[error("an average with weights: {}", match rank {
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
        /// The bucket, as an index into [`GradReducer::buckets`](crate::GradReducer::buckets).
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
    /// A step ended without a gradient that was announced, so that a bucket could not leave. On this rank
    /// only, as above.
    #[error(
        "rank {rank}: the step ended without the gradient of `{parameter}`, \
         which bucket {bucket} waits for"
    )]
    GradientMissing {
        /// The rank.
        rank: usize,
        /// The bucket, as an index into [`GradReducer::buckets`](crate::GradReducer::buckets).
        bucket: usize,
        /// The first parameter of the bucket that has no gradient.
        parameter: String,
    },
    /// A parameter without a gradient, where all must have one. On this rank only, before it has sent any.
    #[error(
        "rank {rank}: `{parameter}` has no gradient in this step; set find_unused_parameters on every rank, \
         or leave the parameter out"
    )]
    UnusedParameter {
        /// The rank.
        rank: usize,
        /// The first such parameter.
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
    /// An action of a pipeline's plan failed on this rank. The others get
    /// [`Aborted`](phalanx_comm::Error::Aborted) with the same sentence.
    #[error("step {step} of the pipeline, in {action} on rank {rank}{}: {error}", place(*stage, *microbatch))]
    Action {
        /// The rank.
        rank: usize,
        /// The step, from 0.
        step: u64,
        /// The action, as plans print it: `2F0`, `1SEND_B3`.
        action: String,
        /// Its stage.
        stage: usize,
        /// Its microbatch; `None` where it concerns the whole stage.
        microbatch: Option<usize>,
        /// What went wrong.
        error: Box<Error>,
    },
    /// A rank of a pipeline was given a batch that it refuses, so that no rank takes the step.
    #[error("step {step} of the pipeline: rank {rank} refused its batch, as its own error says")]
    BatchRefused {
        /// The rank.
        rank: usize,
        /// The step, from 0.
        step: u64,
    },
    /// A pipeline's plan that cannot be made, or is wrong.
    #[error(transparent)]
    Plan(#[from] crate::pipeline::PlanError),
    /// Axes that make no [`Mesh`](crate::Mesh) of the group, or that it does not have.
    #[error(transparent)]
    Mesh(#[from] MeshError),
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

/// ` (stage 2, microbatch 0)`.
fn place(stage: usize, microbatch: Option<usize>) -> String {
    match microbatch {
        Some(microbatch) => format!(" (stage {stage}, microbatch {microbatch})"),
        None => format!(" (stage {stage})"),
    }
}

/// A `main` that returns an error prints its `Debug`: a derived one would hide the sentence.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
