//! [`Buffer`]: the memory that a call reads and writes, and which of the caller's it may use again.

use crate::check::Room;
use crate::error::Result;
use crate::op::Op;
use phalanx_tensor::{DType, Device, Tensor};
use std::ptr;

/// One tensor of a call, on one rank: what it gives and what it gets.
pub(crate) struct Buffer {
    /// The elements that the rank gives; null where it gives none.
    pub(crate) src: *const u8,
    /// Room for the elements that it gets; null where it gets none, and where a root gives what it keeps.
    pub(crate) dst: *mut u8,
    /// What it gives, unless that is what it gets.
    pub(crate) input: Option<Tensor>,
    /// What it gets.
    pub(crate) output: Option<Tensor>,
}

impl Buffer {
    /// The memory of a tensor of `dtype` that rank `me` of its group brings to `op`. Copies nothing but a view with
    /// gaps. Where the operation reduces or copies in place, a tensor that nobody else holds is used again.
    ///
    /// # Errors
    /// No memory could be had; or the tensor is not in the host's memory.
    pub(crate) fn new(
        op: &Op,
        me: usize,
        input: Option<Tensor>,
        room: Option<Room>,
        dtype: DType,
        device: Device,
    ) -> Result<Buffer> {
        let input = match input {
            Some(t) if !t.is_contiguous() => Some(t.contiguous()?),
            input => input, // not even a clone: it would no longer be unique
        };
        let device = input.as_ref().map_or(device, Tensor::device);
        let in_place = matches!(
            op,
            Op::AllReduce(_) | Op::Reduce { .. } | Op::Broadcast { .. }
        );
        let keeps = matches!(op, Op::Broadcast { root } if *root == me);
        Ok(match (input, room) {
            (Some(t), _) if keeps => Buffer {
                src: t.as_bytes()?.as_ptr(),
                dst: ptr::null_mut(),
                input: None,
                output: Some(t),
            },
            (Some(mut t), Some(Room::New(_))) if in_place && t.is_unique() => {
                let dst = t.bytes_mut()?.as_mut_ptr();
                Buffer {
                    src: dst,
                    dst,
                    input: None,
                    output: Some(t),
                }
            }
            (input, room) => {
                let src = match &input {
                    Some(t) => t.as_bytes()?.as_ptr(),
                    None => ptr::null(),
                };
                let mut output = match room {
                    Some(Room::Given(t)) if t.is_unique() && t.is_contiguous() => Some(t),
                    Some(room) => Some(Tensor::empty(room.shape().clone(), dtype, device)?),
                    None => None,
                };
                let dst = match &mut output {
                    Some(t) => t.bytes_mut()?.as_mut_ptr(),
                    None => ptr::null_mut(),
                };
                Buffer {
                    src,
                    dst,
                    input,
                    output,
                }
            }
        })
    }
}
