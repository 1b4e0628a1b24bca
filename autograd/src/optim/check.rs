//! Numbers that an optimizer or a schedule is given, refused as this crate's own error.

use crate::error::{Error, Result};
use phalanx_tensor::ops::optim::expect_non_negative;

/// What the tensor crate says of a number, as [`Error::InvalidArgument`] of this crate.
pub(super) fn checked(answer: phalanx_tensor::Result<()>) -> Result<()> {
    answer.map_err(|e| match e {
        phalanx_tensor::Error::InvalidArgument { op, reason } => {
            Error::InvalidArgument { op, reason }
        }
        e => e.into(),
    })
}

/// A rate, a decay or a factor of one: finite and not negative.
pub(super) fn expect_rate(op: &'static str, name: &str, value: f64) -> Result<()> {
    checked(expect_non_negative(op, name, value))
}
