//! The crate's one error type.

use crate::param::ParamId;
use phalanx_tensor::{DType, Shape};
use std::fmt;
use std::path::{Path, PathBuf};

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong while recording, differentiating, training, saving or restoring.
///
/// `Debug` writes the sentence of `Display`, so that a `main` that returns the error prints it.
#[derive(thiserror::Error)]
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
    /// A saved state that is no safetensors, or holds a type or a number that cannot be.
    #[error("the saved state cannot be read: {reason}")]
    Format {
        /// What is wrong with it.
        reason: String,
    },
    /// A state that the format cannot hold, or that could not be loaded afterwards.
    #[error("the state cannot be saved: {reason}")]
    Unsavable {
        /// What is wrong with it.
        reason: String,
    },
    /// What a file holds, or should hold, is wrong.
    #[error("{}: {error}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: Box<Error>,
    },
    /// A module was called with another number of variables than it takes.
    #[error("{module} takes {wanted} input{}, but got {given}", if *wanted == 1 { "" } else { "s" })]
    InputCount {
        /// The module's type.
        module: &'static str,
        /// How many it takes.
        wanted: usize,
        /// How many came.
        given: usize,
    },
    /// A module gave no or several variables where one was wanted.
    #[error("{module} gave {given} outputs where one was wanted; call its `forward_all`")]
    OutputCount {
        /// The module's type.
        module: &'static str,
        /// How many it gave.
        given: usize,
    },
    /// A module inside another one failed.
    #[error("layer `{path}`: {error}")]
    InModule {
        /// The module's name, as in the names of its parameters: `2.conv1`.
        path: String,
        /// What has failed.
        error: Box<Error>,
    },
    /// A file could not be read or written.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        error: std::io::Error,
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

    /// The same error with the name of the module that failed, where one module calls another:
    /// `self.conv1.forward(tape, x).map_err(|error| error.in_module("conv1"))?`.
    /// [`Sequential`](crate::nn::Sequential) does so for its layers. Names join to a path: an error of
    /// the module `conv1` in the layer `2` is in `2.conv1`.
    #[must_use]
    pub fn in_module(self, name: &str) -> Error {
        match self {
            Error::InModule { path, error } => Error::InModule {
                path: format!("{name}.{path}"),
                error,
            },
            other => Error::InModule {
                path: name.into(),
                error: Box::new(other),
            },
        }
    }

    /// The same error from the operation `op`, which has called the one that failed: users know only
    /// the name that they wrote.
    pub(crate) fn of(mut self, op: &'static str) -> Error {
        match &mut self {
            Error::Tensor(error) => *error = error.clone().of(op),
            Error::TapeMismatch { op: name }
            | Error::Consumed { op: name }
            | Error::InvalidArgument { op: name, .. } => *name = op,
            _ => {}
        }
        self
    }

    /// The same error with the file that it is about.
    pub(crate) fn in_file(self, path: &Path) -> Error {
        Error::InFile {
            path: path.into(),
            error: Box::new(self),
        }
    }
}

/// A `main` that returns an error prints its `Debug`: a derived one would hide the sentence.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
