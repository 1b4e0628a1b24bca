//! [`Flat`]: the memory of tensors that travel together, laid out one after the other.
//!
//! It is filled, zeroed and read by tensor operations alone, so the same code runs on every device. What is
//! between two tensors is zero from the start, and a sum or a mean of zeros stays so: no step writes it.

use super::bucket::{Bucket, Slot};
use crate::Result;
use phalanx_tensor::{Device, Shape, Tensor};

/// What became of the memory of the step before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// It is taken back.
    Back,
    /// Somebody still holds a view of it, so that there is other memory now.
    Held,
    /// There was none, or none that fits.
    New,
}

/// The memory of a bucket, from step to step.
pub(crate) struct Flat {
    memory: Tensor,
    marks: Marks,
}

/// What is known of the memory while it is on its way to other ranks.
pub(crate) struct Marks {
    /// One zero, to fill with.
    zero: Tensor,
    /// For each slot: whether there may be something else than zeros.
    dirty: Vec<bool>,
}

impl Flat {
    /// Zeros for `bucket` on `device`, where its members live now: they may have moved since it was planned.
    pub(crate) fn new(bucket: &Bucket, device: Device) -> Result<Flat> {
        let marks = Marks {
            zero: Tensor::zeros([1], bucket.dtype, device)?,
            dirty: vec![false; bucket.slots.len()],
        };
        let memory = Tensor::zeros([bucket.len], bucket.dtype, device)?;
        Ok(Flat { memory, marks })
    }

    /// The memory of the step before, if nobody else holds any of it, else other memory.
    pub(crate) fn take_back(
        kept: Option<Flat>,
        bucket: &Bucket,
        device: Device,
    ) -> Result<(Flat, Kept)> {
        let fits = |flat: &Flat| flat.memory.device() == device && flat.memory.is_contiguous();
        let became = match kept.filter(fits) {
            Some(flat) if flat.memory.is_unique() => return Ok((flat, Kept::Back)),
            Some(_) => Kept::Held,
            None => Kept::New,
        };
        Ok((Flat::new(bucket, device)?, became))
    }

    /// Writes `factor` times a tensor into its slot, number `s`, converted to the bucket's element type. A
    /// factor other than 1 is for floats only.
    pub(crate) fn write(
        &mut self,
        s: usize,
        slot: &Slot,
        value: &Tensor,
        factor: f64,
    ) -> Result<()> {
        self.marks.dirty[s] = true;
        if factor == 1.0 && value.dtype() == self.memory.dtype() {
            return Ok(self.memory.write_at(slot.offset, value)?);
        }
        let value = value.to_device(self.memory.device())?;
        Ok(self.memory.write_scaled_at(slot.offset, &value, factor)?)
    }

    /// Hands the memory out, to be sent. The slots of the parameters that `missing` names, into which nothing
    /// was written in this step, are zero then.
    pub(crate) fn leave(
        self,
        bucket: &Bucket,
        missing: impl Fn(usize) -> bool,
    ) -> Result<(Tensor, Marks)> {
        let Flat {
            mut memory,
            mut marks,
        } = self;
        // Neighbours are filled together, with what is between them. In most steps there are none.
        let mut hole: Option<(usize, usize)> = None;
        let mut holes = Vec::new();
        for (slot, dirty) in bucket.slots.iter().zip(&mut marks.dirty) {
            if !missing(slot.param) {
                holes.extend(hole.take());
            } else if std::mem::take(dirty) {
                let start = hole.map_or(slot.offset, |(start, _)| start);
                hole = Some((start, slot.offset + slot.numel));
            }
        }
        holes.extend(hole);
        for (start, end) in holes.into_iter().filter(|(start, end)| start < end) {
            memory.write_at(start, &marks.zero.broadcast_to([end - start])?)?;
        }
        Ok((memory, marks))
    }
}

impl Marks {
    /// The memory for the next step, from what came back. `used` says which slots may hold something.
    pub(crate) fn arrive(
        mut self,
        bucket: &Bucket,
        memory: Tensor,
        used: impl Fn(usize) -> bool,
    ) -> Flat {
        for (slot, dirty) in bucket.slots.iter().zip(&mut self.dirty) {
            *dirty = used(slot.param);
        }
        Flat {
            memory,
            marks: self,
        }
    }
}

/// The tensor of `shape` that starts at `offset`: a view.
pub(crate) fn view(flat: &Tensor, offset: usize, shape: &Shape) -> Result<Tensor> {
    Ok(flat.narrow(0, offset, shape.numel())?.reshape(shape)?)
}
