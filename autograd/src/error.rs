//! The crate's one error type.

use crate::param::ParamId;
use phalanx_tensor::{DType, Shape};
use std::path::PathBuf;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong while recording, differentiating, training, saving or restoring.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operation on tensors failed.
    #[error(transparent)]
    Tensor(#[from] phalanx_tensor::Error),
    /// Variables of two tapes met in one operation.
    #[error("{op}: its variables belong to different tapes")]
    TapeMismatch {
        /// The operation.
        op: &'static str,
    },
    /// A variable of a recording that was swept or cleared already.
    #[error(
        "{op}: the variable belongs to a recording that backward or clear has consumed; \
         run the forward pass again"
    )]
    Consumed {
        /// The operation.
        op: &'static str,
    },
    /// Backward was asked to start at something that depends on no parameter and no input.
    #[error(
        "{op}: the root of shape {shape} was not recorded: it depends on no parameter and no input \
         that wants a gradient, or its tape records nothing"
    )]
    NothingToDifferentiate {
        /// The operation.
        op: &'static str,
        /// The root's shape.
        shape: Shape,
    },
    /// Only a root with one element has a natural seed.
    #[error("{op}: the root of shape {shape} has more than one element; give it a seed gradient")]
    SeedMissing {
        /// The operation.
        op: &'static str,
        /// The root's shape.
        shape: Shape,
    },
    /// A seed gradient that is not like its root.
    #[error("{op}: the seed is {seed} {seed_dtype}, its root {root} {root_dtype}")]
    SeedMismatch {
        /// The operation.
        op: &'static str,
        /// The root's shape.
        root: Shape,
        /// The root's element type.
        root_dtype: DType,
        /// The seed's shape.
        seed: Shape,
        /// The seed's element type.
        seed_dtype: DType,
    },
    /// A sweep reached a parameter whose gradients another collects: see [`Claim`](crate::Claim). The
    /// recording is left as it was.
    #[error(
        "backward reaches parameter {id} of shape {shape}, which `{op}` used first and {holder} \
         holds: {advice}"
    )]
    Claimed {
        /// The parameter.
        id: ParamId,
        /// Its shape.
        shape: Shape,
        /// The first operation that used it.
        op: &'static str,
        /// Who collects its gradients.
        holder: &'static str,
        /// What to do instead.
        advice: &'static str,
    },
    /// A sweep on behalf of a wrapper reached a parameter that nobody claims: its gradient would be
    /// lost, or this rank's own. The recording is left as it was.
    #[error(
        "backward of {holder} reaches parameter {id} of shape {shape}, which `{op}` used first and \
         {holder} does not hold: {advice}"
    )]
    Unclaimed {
        /// The parameter.
        id: ParamId,
        /// Its shape.
        shape: Shape,
        /// The first operation that used it.
        op: &'static str,
        /// Whose sweep it was.
        holder: &'static str,
        /// What to do instead.
        advice: &'static str,
    },
    /// A parameter whose gradients one wrapper collects cannot be given to another.
    #[error(
        "parameter {id} of shape {shape}: {holder} holds it already; drop that one first, or wrap the \
         two modules as one"
    )]
    ClaimedTwice {
        /// The parameter.
        id: ParamId,
        /// Its shape.
        shape: Shape,
        /// Who collects its gradients.
        holder: &'static str,
    },
    /// A [`Vjp`](crate::Vjp) broke its contract.
    #[error("the vjp `{vjp}` broke its contract: {reason}")]
    VjpContract {
        /// Its name.
        vjp: &'static str,
        /// How.
        reason: String,
    },
    /// A parameter cannot take a value of another shape or element type.
    #[error("parameter {id}: it is {shape} {dtype}, the new value is {new_shape} {new_dtype}")]
    ValueMismatch {
        /// The parameter.
        id: ParamId,
        /// Its shape.
        shape: Shape,
        /// Its element type.
        dtype: DType,
        /// The value's shape.
        new_shape: Shape,
        /// The value's element type.
        new_dtype: DType,
    },
    /// A parameter that is to be changed occurs twice in one list.
    #[error("parameter {id}: it occurs twice among those to be changed at once")]
    DuplicateParameter {
        /// The parameter.
        id: ParamId,
    },
    /// A saved state lacks a tensor that is wanted.
    #[error("the saved state has no tensor `{name}`")]
    MissingTensor {
        /// The dotted name.
        name: String,
    },
    /// A saved state holds a tensor that nobody asked for.
    #[error("the saved state holds `{name}`, for which there is no place")]
    UnexpectedTensor {
        /// The dotted name.
        name: String,
    },
    /// A saved tensor has another shape or element type than its place.
    #[error("`{name}`: saved as {shape} {dtype}, wanted {wanted_shape} {wanted_dtype}")]
    SavedMismatch {
        /// The dotted name.
        name: String,
        /// The saved shape.
        shape: Shape,
        /// The saved element type.
        dtype: DType,
        /// The wanted shape.
        wanted_shape: Shape,
        /// The wanted element type.
        wanted_dtype: DType,
    },
    /// A saved state that is no safetensors, or holds a type that tensors do not have.
    #[error("the saved state cannot be read: {reason}")]
    Format {
        /// What is wrong with it.
        reason: String,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// An argument that makes no sense.
    #[error("{op}: {reason}")]
    InvalidArgument {
        /// The operation.
        op: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// An error of another crate, raised inside a [`Vjp`](crate::Vjp), a
    /// [`Module`](crate::nn::Module) or an [`OnReady`](crate::OnReady) hook.
    #[error(transparent)]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Carries an error of another crate through a forward pass or a sweep; the sweep stops there
    /// and returns it.
    pub fn other(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::Other(error.into())
    }
}
