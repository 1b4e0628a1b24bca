//! The crate's one error type.

use crate::{DType, Device, Shape};
use std::fmt;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in an operation on tensors. Each variant names the operation that was called.
///
/// `Debug` writes the sentence of `Display`, so that a `main` that returns the error prints it.
#[derive(Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Two shapes do not fit together.
    #[error("{op}: shapes {lhs} and {rhs} do not fit: {reason}")]
    ShapeMismatch {
        /// The operation.
        op: &'static str,
        /// Shape of the first operand.
        lhs: Shape,
        /// Shape of the second operand.
        rhs: Shape,
        /// What was expected.
        reason: &'static str,
    },
    /// One shape is not what the operation needs.
    #[error("{op}: shape {shape} is not usable: {reason}")]
    InvalidShape {
        /// The operation.
        op: &'static str,
        /// The offending shape.
        shape: Shape,
        /// What was expected.
        reason: String,
    },
    /// Operands of different element types.
    #[error("{op}: element types {lhs} and {rhs} differ")]
    DTypeMismatch {
        /// The operation.
        op: &'static str,
        /// Element type of the first operand.
        lhs: DType,
        /// Element type of the second operand.
        rhs: DType,
    },
    /// An operand has another element type than it must have.
    #[error("{op}: {operand} must be {wanted}, not {found}")]
    WrongDType {
        /// The operation.
        op: &'static str,
        /// Which operand.
        operand: &'static str,
        /// The type that it must have.
        wanted: DType,
        /// The type that it has.
        found: DType,
    },
    /// The operation is not defined for the element type.
    #[error("{op}: not defined for elements of type {dtype}")]
    UnsupportedDType {
        /// The operation.
        op: &'static str,
        /// The offending element type.
        dtype: DType,
    },
    /// Operands on different devices; move one with `to_device`.
    #[error("{op}: operands are on {lhs} and on {rhs}; move one with to_device")]
    DeviceMismatch {
        /// The operation.
        op: &'static str,
        /// Device of the first operand.
        lhs: Device,
        /// Device of the second operand.
        rhs: Device,
    },
    /// The device cannot be used in this build or on this machine.
    #[error("{op}: device {device} is not available: {reason}")]
    DeviceUnavailable {
        /// The operation.
        op: &'static str,
        /// The device.
        device: Device,
        /// Why not.
        reason: String,
    },
    /// The device failed. A card that has failed once fails from then on.
    #[error("{op}: {device} failed: {reason}")]
    DeviceFailed {
        /// The operation.
        op: &'static str,
        /// The device.
        device: Device,
        /// What failed, in the words of the driver.
        reason: String,
    },
    /// An axis outside the tensor's rank.
    #[error("{op}: axis {axis} is out of range for a tensor of rank {rank}")]
    AxisOutOfRange {
        /// The operation.
        op: &'static str,
        /// The axis as given; negative axes count from the end.
        axis: isize,
        /// The tensor's number of axes.
        rank: usize,
    },
    /// An index (a label, a token id, a position) outside its extent.
    ///
    /// On a card the operation itself does not see it: what is copied to the host next, whatever it
    /// is, gives this error, until [`Device::clear_index_error`] is called.
    #[error("{op}: index {index} is out of range for an extent of {extent}{}", since(*.late))]
    IndexOutOfRange {
        /// The operation.
        op: &'static str,
        /// The offending index.
        index: i64,
        /// The extent that it points into.
        extent: usize,
        /// Whether the operation was over when this was seen, so that values that were computed since
        /// are undefined.
        late: bool,
    },
    /// A view of the elements as a slice needs a contiguous tensor.
    #[error("{op}: needs a contiguous tensor, got shape {shape} with strides {strides}")]
    NotContiguous {
        /// The operation.
        op: &'static str,
        /// The tensor's shape.
        shape: Shape,
        /// Its strides, in elements.
        strides: crate::Strides,
    },
    /// The tensor's last write was declared lost by whoever issued it, so its contents are undefined
    /// ([`WriteFault`](crate::WriteFault)).
    #[error(
        "{op}: an operand on {device} has no defined contents, its last write was lost: {reason}"
    )]
    LostWrite {
        /// The operation that wanted to read it.
        op: &'static str,
        /// Where the operand is.
        device: Device,
        /// Why the write was lost.
        reason: String,
    },
    /// Any other argument that makes no sense.
    #[error("{op}: {reason}")]
    InvalidArgument {
        /// The operation.
        op: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The system gave no memory, or the device's limit
    /// ([`set_memory_limit`](Device::set_memory_limit)) was in the way.
    #[error("{op}: out of memory on {device}: {bytes} bytes asked for, {live} live{}", reason(*limit))]
    OutOfMemory {
        /// The operation.
        op: &'static str,
        /// The device.
        device: Device,
        /// Bytes asked for.
        bytes: usize,
        /// Bytes live on the device at that time.
        live: usize,
        /// The device's limit for live bytes, where it was the reason.
        limit: Option<usize>,
    },
}

/// Why memory was refused, where it was not the system.
fn reason(limit: Option<usize>) -> String {
    limit.map_or_else(String::new, |limit| {
        format!("; the limit set for this device is {limit} bytes")
    })
}

/// What a late error adds.
fn since(late: bool) -> &'static str {
    match late {
        true => " (seen after the operation; what was computed on the device since is undefined)",
        false => "",
    }
}

/// A `main` that returns an error prints its `Debug`: a derived one would hide the sentence.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Error {
    /// The same error from the operation `op`, which has called the one that failed: users know only
    /// the name that they wrote.
    #[must_use]
    pub fn of(mut self, op: &'static str) -> Error {
        match &mut self {
            Error::ShapeMismatch { op: name, .. }
            | Error::InvalidShape { op: name, .. }
            | Error::DTypeMismatch { op: name, .. }
            | Error::WrongDType { op: name, .. }
            | Error::UnsupportedDType { op: name, .. }
            | Error::DeviceMismatch { op: name, .. }
            | Error::DeviceUnavailable { op: name, .. }
            | Error::AxisOutOfRange { op: name, .. }
            | Error::IndexOutOfRange { op: name, .. }
            | Error::NotContiguous { op: name, .. }
            | Error::LostWrite { op: name, .. }
            | Error::DeviceFailed { op: name, .. }
            | Error::InvalidArgument { op: name, .. }
            | Error::OutOfMemory { op: name, .. } => *name = op,
        }
        self
    }
}
