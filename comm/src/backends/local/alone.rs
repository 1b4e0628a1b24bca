//! Collectives of a group of one rank: each gives the rank's own tensors back, in the shape that the collective
//! promises. Nobody else is waited for and no element is read, so the tensors may live on any device.

use crate::check::{Call, Room};
use crate::error::Result;
use crate::work::{Pending, Tensors};
use phalanx_tensor::Tensor;

/// An operation that has ended when it is issued.
pub(in crate::backends) struct Done(Tensors);

impl Done {
    /// The result of a checked call. A tensor that nobody else holds comes back as it is; a view with gaps is
    /// copied, since results are contiguous on every backend.
    ///
    /// # Errors
    /// The device has no memory for such a copy.
    pub(in crate::backends) fn of(call: Call) -> Result<Done> {
        let mut results = Tensors::new();
        for (tensor, room) in call.inputs.into_iter().zip(call.outputs) {
            results.push(back(tensor, room)?);
        }
        Ok(Done(results))
    }
}

fn back(tensor: Tensor, room: Room) -> Result<Tensor> {
    match room {
        Room::New(shape) => {
            let tensor = match tensor.is_contiguous() {
                true => tensor, // not even a clone: it would no longer be unique
                false => tensor.contiguous()?,
            };
            Ok(match *tensor.shape() == shape {
                true => tensor,
                false => tensor.reshape(shape)?,
            })
        }
        Room::Given(mut into) => {
            into.write_at(0, &tensor)?;
            Ok(into)
        }
    }
}

impl Pending for Done {
    fn poll(&mut self) -> Result<bool> {
        Ok(true)
    }

    fn wait(self: Box<Self>) -> Result<Tensors> {
        Ok(self.0)
    }
}
