//! [`Moment`]: a point in what a device does, to measure from one to another.

#[cfg(feature = "cuda")]
use crate::cuda;
use crate::{Device, Error, Result};
use std::time::Instant;

/// A queue of a device: what is asked of one is done in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// That of operations on tensors.
    Compute,
    /// That of collectives between cards.
    Collectives,
}

/// When a device has done what was asked of it before (PyTorch: `torch.cuda.Event(enable_timing=True)`). A CPU device has
/// always done everything, so there it is the time at which it was taken.
///
/// ```
/// use phalanx_tensor::{DType, Device, Queue, Tensor};
///
/// let device = Device::cpu(0);
/// let start = device.moment(Queue::Compute)?;
/// let x = Tensor::ones([64, 64], DType::F32, device)?;
/// let y = x.matmul(&x)?;
/// let end = device.moment(Queue::Compute)?;
/// assert!(end.seconds_since(&start)? >= 0.0);
/// # drop(y);
/// # Ok::<(), phalanx_tensor::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Moment(At);

#[derive(Debug, Clone)]
enum At {
    Host(Device, Instant),
    #[cfg(feature = "cuda")]
    Card(cuda::Moment),
}

impl Device {
    /// When the device has done everything that was asked of this queue so far. It waits for nothing.
    ///
    /// # Errors
    /// [`Error::DeviceUnavailable`], also where the driver is older than CUDA 12.8's; [`Error::DeviceFailed`].
    pub fn moment(self, queue: Queue) -> Result<Moment> {
        match self {
            Device::Cpu(_) => Ok(Moment(At::Host(self, Instant::now()))),
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) => {
                let lane = match queue {
                    Queue::Compute => cuda::Lane::Compute,
                    Queue::Collectives => cuda::Lane::Comm,
                };
                Ok(Moment(At::Card(cuda::Moment::take(ordinal, lane)?)))
            }
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => {
                let _ = queue;
                Err(self.unavailable("moment"))
            }
        }
    }
}

impl Moment {
    /// The device.
    pub fn device(&self) -> Device {
        match &self.0 {
            At::Host(device, _) => *device,
            #[cfg(feature = "cuda")]
            At::Card(moment) => moment.device(),
        }
    }

    /// The seconds from another moment of the same device to this one; negative where the other one was later. It waits
    /// until the device has come to both. A card tells it in single precision: to a microsecond over some seconds, and less
    /// exactly over more.
    ///
    /// # Errors
    /// [`Error::DeviceMismatch`] where they are of two devices; [`Error::DeviceFailed`] where the card has failed;
    /// [`Error::DeviceUnavailable`] in a process that was forked from one that has used it.
    pub fn seconds_since(&self, earlier: &Moment) -> Result<f64> {
        match (&self.0, &earlier.0) {
            (At::Host(device, end), At::Host(other, start)) if device == other => {
                let passed = |from: &Instant, to: &Instant| {
                    to.saturating_duration_since(*from).as_secs_f64()
                };
                Ok(passed(start, end) - passed(end, start))
            }
            #[cfg(feature = "cuda")]
            (At::Card(end), At::Card(start)) if end.device() == start.device() => {
                end.seconds_since(start)
            }
            _ => Err(Error::DeviceMismatch {
                op: "seconds_since",
                lhs: self.device(),
                rhs: earlier.device(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_of_one_device() {
        let at = |index| Device::cpu(index).moment(Queue::Compute).unwrap();
        let (first, other) = (at(0), at(1));
        let second = at(0);
        let passed = second.seconds_since(&first).unwrap();
        assert!(passed >= 0.0);
        assert_eq!(first.seconds_since(&second).unwrap(), -passed);
        let error = other.seconds_since(&first).unwrap_err();
        assert!(matches!(error, Error::DeviceMismatch { .. }), "{error}");
    }
}
