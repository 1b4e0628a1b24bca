//! Why layers cannot be cut into stages.

use std::fmt;

use crate::pipeline::PlanError;

/// Why layers cannot be cut.
#[derive(Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PartitionError {
    /// Not enough layers for a stage on every device, or none at all.
    #[error("{layers} layers cannot be cut into a stage for each of {devices} devices")]
    TooFewLayers {
        /// How many layers.
        layers: usize,
        /// How many devices.
        devices: usize,
    },
    /// A time, a speed or a bandwidth that is none.
    #[error("the {what} of {which} {index} is {value}, which is not {wanted}")]
    NotANumber {
        /// What.
        what: &'static str,
        /// A layer or a device.
        which: &'static str,
        /// Which of them.
        index: usize,
        /// The value.
        value: f64,
        /// What it should be.
        wanted: &'static str,
    },
    /// The plan does not have one stage on each device, in their order.
    #[error(
        "the plan has {stages} stages on {ranks} ranks; for {devices} devices it must have one \
         stage on each, in their order"
    )]
    Plan {
        /// Stages of the plan.
        stages: usize,
        /// Ranks of the plan.
        ranks: usize,
        /// Devices given.
        devices: usize,
    },
    /// No cut fits the devices' memory.
    #[error(
        "no cut fits into memory: at the best one, device {device} must hold {needed} bytes, and \
         its limit is {limit}; with {missing} bytes more on each device it would fit"
    )]
    Memory {
        /// The device that is shortest of memory at the best cut.
        device: usize,
        /// What it would need there.
        needed: u64,
        /// What it has.
        limit: u64,
        /// The least that must be added to every device's memory.
        missing: u64,
    },
    /// The plan itself is wrong.
    #[error(transparent)]
    Invalid(#[from] PlanError),
}

/// A `main` that returns an error prints its `Debug`: a derived one would hide the sentence.
impl fmt::Debug for PartitionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
