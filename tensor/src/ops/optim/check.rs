//! The ranges of an optimizer's numbers: checked where an optimizer is made and at every step.

use super::{AdamConfig, SgdConfig};
use crate::{Error, Result};

impl SgdConfig {
    /// The numbers make sense: `lr` and `weight_decay` are finite and not negative, `momentum` lies
    /// in `[0, 1)`, `dampening` in `[0, 1]`, and `nesterov` has a momentum and no dampening.
    ///
    /// PyTorch takes any `momentum` that is not negative. From 1 on, the momentum never forgets a
    /// gradient, so the steps grow without bound: here that is an error.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], on behalf of the operation `op`.
    pub fn check(&self, op: &'static str) -> Result<()> {
        expect_non_negative(op, "lr", self.lr)?;
        expect_share(op, "momentum", self.momentum)?;
        expect_non_negative(op, "weight_decay", self.weight_decay)?;
        if !(0.0..=1.0).contains(&self.dampening) {
            let reason = format!("dampening is {}, must lie in [0, 1]", self.dampening);
            return Err(Error::InvalidArgument { op, reason });
        }
        if self.nesterov && (self.momentum == 0.0 || self.dampening != 0.0) {
            let reason = "nesterov needs a momentum and no dampening".into();
            return Err(Error::InvalidArgument { op, reason });
        }
        Ok(())
    }
}

impl AdamConfig {
    /// The numbers make sense: `lr`, `eps` and `weight_decay` are finite and not negative, both
    /// `betas` lie in `[0, 1)`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], on behalf of the operation `op`.
    pub fn check(&self, op: &'static str) -> Result<()> {
        expect_non_negative(op, "lr", self.lr)?;
        expect_non_negative(op, "eps", self.eps)?;
        expect_non_negative(op, "weight_decay", self.weight_decay)?;
        expect_share(op, "betas[0]", self.betas[0])?;
        expect_share(op, "betas[1]", self.betas[1])
    }
}

/// A number that is finite and not negative: a learning rate, a decay.
///
/// # Errors
/// [`Error::InvalidArgument`], which says what `name` is.
pub fn expect_non_negative(op: &'static str, name: &str, value: f64) -> Result<()> {
    if value >= 0.0 && value.is_finite() {
        return Ok(());
    }
    let reason = format!("{name} is {value}, must be finite and not negative");
    Err(Error::InvalidArgument { op, reason })
}

/// What a step keeps of the steps before it.
fn expect_share(op: &'static str, name: &str, value: f64) -> Result<()> {
    if (0.0..1.0).contains(&value) {
        return Ok(());
    }
    let reason = format!("{name} is {value}, must lie in [0, 1)");
    Err(Error::InvalidArgument { op, reason })
}
