//! The error type of what this crate runs. Plans have their own, in [`pipeline`](crate::pipeline).

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in a parallel wrapper.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Ranks hold different modules. The same error on every rank.
    #[error("the ranks hold different modules: {difference}")]
    ReplicasDiffer {
        /// The first rank whose module is not rank 0's.
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
    /// A call that the configuration does not allow.
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
