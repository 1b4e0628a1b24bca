//! Collectives of a group of one rank: each gives the rank's own tensor back, in the shape that the collective
//! promises. Nobody else is waited for and no element is read, so the tensor may live on any device.

use crate::check::Call;
use crate::error::Result;
use crate::work::Pending;
use phalanx_tensor::Tensor;

/// An operation that has ended when it is issued.
pub(super) struct Done(Option<Tensor>);

impl Done {
    /// The result of a checked call. A tensor that nobody else holds comes back as it is; a view with gaps is
    /// copied, since results are contiguous on every backend.
    ///
    /// # Errors
    /// The device has no memory for such a copy.
    pub(super) fn of(call: Call) -> Result<Done> {
        let Call { input, output, .. } = call;
        let (Some(tensor), Some(shape)) = (input, output) else {
            return Ok(Done(None)); // a barrier
        };
        let tensor = match tensor.is_contiguous() {
            true => tensor, // not even a clone: it would no longer be unique
            false => tensor.contiguous()?,
        };
        Ok(Done(Some(match *tensor.shape() == shape {
            true => tensor,
            false => tensor.reshape(shape)?,
        })))
    }
}

impl Pending for Done {
    fn poll(&mut self) -> bool {
        true
    }

    fn wait(self: Box<Self>) -> Result<Option<Tensor>> {
        Ok(self.0)
    }
}
