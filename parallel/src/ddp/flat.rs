//! Flat buffers: tensors of one bucket laid out one after the other.

use super::bucket::Bucket;
use crate::Result;
use phalanx_autograd::Buffer;
use phalanx_comm::{ProcessGroup, Work};
use phalanx_tensor::{Device, Shape, Tensor};

/// An empty flat buffer for `bucket`, and for `more` elements behind it; these, the gaps, and the
/// slots that `missing` names, are zero. Where its members live now, since the module may have moved
/// after it was planned. It is `kept`, of an earlier step, where that fits and nobody holds any of it.
pub(super) fn allocate(
    kept: Option<Tensor>,
    bucket: &Bucket,
    more: usize,
    device: Device,
    shapes: impl Fn(usize) -> usize,
    missing: impl Fn(usize) -> bool,
) -> Result<Tensor> {
    let len = bucket.len + more;
    let fits = |t: &Tensor| {
        t.is_unique() && t.dims() == [len] && t.dtype() == bucket.dtype && t.device() == device
    };
    let mut flat = match kept.filter(fits) {
        Some(kept) => kept,
        None => Tensor::empty(len, bucket.dtype, device)?,
    };
    let zero = Tensor::zeros([1], bucket.dtype, device)?;
    let ends = bucket.slots.iter().skip(1).map(|s| s.offset).chain([len]);
    for (slot, end) in bucket.slots.iter().zip(ends) {
        let from = if missing(slot.param) {
            slot.offset
        } else {
            slot.offset + shapes(slot.param)
        };
        if from < end {
            flat.write_at(from, &zero.broadcast_to([end - from])?)?;
        }
    }
    Ok(flat)
}

/// The tensor of `shape` that starts at `offset`: a view.
pub(super) fn get(flat: &Tensor, offset: usize, shape: &Shape) -> Result<Tensor> {
    Ok(flat.narrow(0, offset, shape.numel())?.reshape(shape)?)
}

/// Buffers of a module on their way from one rank to all.
pub(super) struct Broadcast {
    parts: Vec<(Bucket, Work<Tensor>)>,
}

impl Broadcast {
    pub(super) fn start(
        plan: &[Bucket],
        buffers: &[(String, Buffer)],
        group: &dyn ProcessGroup,
        root: usize,
    ) -> Result<Broadcast> {
        let send = |bucket: &Bucket| {
            let buffer = |i: usize| &buffers[i].1;
            let device = buffer(bucket.slots[0].param).device();
            let numel = |i: usize| buffer(i).shape().numel();
            let mut flat = allocate(None, bucket, 0, device, numel, |_| false)?;
            for slot in &bucket.slots {
                buffer(slot.param).read(|value| flat.write_at(slot.offset, value))?;
            }
            Ok((bucket.clone(), group.broadcast(flat, root)?))
        };
        Ok(Broadcast {
            parts: plan.iter().map(send).collect::<Result<_>>()?,
        })
    }

    pub(super) fn receive(self, buffers: &[(String, Buffer)]) -> Result<()> {
        for (bucket, work) in self.parts {
            let flat = work.wait()?;
            for slot in &bucket.slots {
                let (_, buffer) = &buffers[slot.param];
                buffer.set(get(&flat, slot.offset, buffer.shape())?)?;
            }
        }
        Ok(())
    }
}
