//! [`Moment`]: a point on a lane, with its time on the card's clock.
#![allow(unsafe_code)]

use super::driver::driver;
use super::gpu::{Gpu, gpu};
use super::lanes::{Event, Lane};
use crate::{Device, Error, Result};
use cudarc::driver::result;
use std::sync::Arc;

const OP: &str = "moment";

/// Passed when a lane has done what was on it.
#[derive(Debug, Clone)]
pub(crate) struct Moment {
    gpu: &'static Gpu,
    event: Arc<Event>,
}

impl Moment {
    pub(crate) fn take(ordinal: usize, lane: Lane) -> Result<Moment> {
        let gpu = gpu(OP, ordinal)?;
        if !driver().is_ok_and(|driver| driver.times_events) {
            return Err(Error::DeviceUnavailable {
                op: OP,
                device: gpu.device(),
                reason: "the CUDA driver is too old to time events: it has no function cuEventElapsedTime_v2".into(),
            });
        }
        let mut issuing = gpu.lock();
        let event = issuing.lanes().timed(lane);
        let event = event.map_err(|e| gpu.failed(OP, "recording an event", e))?;
        Ok(Moment { gpu, event })
    }

    pub(crate) fn device(&self) -> Device {
        self.gpu.device()
    }

    /// In seconds, from another one of the same card. It waits for both.
    pub(crate) fn seconds_since(&self, earlier: &Moment) -> Result<f64> {
        const OP: &str = "seconds_since";
        self.gpu.enter(OP)?;
        let waited = earlier.event.wait().and_then(|()| self.event.wait());
        waited.map_err(|e| self.gpu.failed(OP, "waiting for an event", e))?;
        // SAFETY: both events live, were made with a clock, and are recorded on streams of this card: two streams of one
        // context may be compared.
        let passed = unsafe { result::event::elapsed(earlier.event.handle(), self.event.handle()) };
        let milliseconds = passed.map_err(|e| self.gpu.failed(OP, "timing an event", e))?;
        Ok(f64::from(milliseconds) / 1e3)
    }
}
