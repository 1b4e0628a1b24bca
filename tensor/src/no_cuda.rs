//! CUDA devices in a build without the feature `cuda`: values whose use is an error.

use crate::{Device, Error};

impl Device {
    /// The error of the operation `op` on a card.
    pub(crate) fn unavailable(self, op: &'static str) -> Error {
        Error::DeviceUnavailable {
            op,
            device: self,
            reason: "this build is without CUDA: turn on the feature `cuda` of phalanx-tensor (`--features cuda`, or for several ranks `nccl`, for the examples)".into(),
        }
    }
}
