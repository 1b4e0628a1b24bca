//! [`Slot`]: the cell behind a parameter or a buffer. Its shape and element type never change, and
//! its tensor stays where it is: values are copied in and out, and only tapes share it.

use crate::error::{Error, Result};
use crate::param::ParamId;
use phalanx_tensor::{DType, Device, Shape, Tensor};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// A cell of a tensor whose shape and element type never change.
pub(crate) struct Slot {
    pub(crate) id: ParamId,
    pub(crate) shape: Shape,
    pub(crate) dtype: DType,
    value: RwLock<Tensor>,
}

impl Slot {
    pub(crate) fn new(id: ParamId, value: Tensor) -> Slot {
        Slot {
            id,
            shape: value.shape().clone(),
            dtype: value.dtype(),
            value: RwLock::new(value),
        }
    }

    // A panic while the lock was held leaves a whole tensor behind: poison is of no interest.
    fn write(&self) -> RwLockWriteGuard<'_, Tensor> {
        self.value.write().unwrap_or_else(|e| e.into_inner())
    }

    /// The tensor itself, locked against writers.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Tensor> {
        self.value.read().unwrap_or_else(|e| e.into_inner())
    }

    /// Moves the value to `device`, and so to another address, unless it is there.
    pub(crate) fn to_device(&self, device: Device) -> Result<()> {
        let mut value = self.write();
        let moved = value.to_device(device)?;
        *value = moved;
        Ok(())
    }

    fn check(&self, value: &Tensor) -> Result<()> {
        if *value.shape() == self.shape && value.dtype() == self.dtype {
            return Ok(());
        }
        Err(Error::ValueMismatch {
            id: self.id,
            shape: self.shape.clone(),
            dtype: self.dtype,
            new_shape: value.shape().clone(),
            new_dtype: value.dtype(),
        })
    }
}

/// Changes the tensors of several slots at once. Locks are taken in the order of the ids, so that
/// two optimizers that share parameters, on two threads, wait for each other and do not block each
/// other.
///
/// # Errors
/// [`Error::DuplicateParameter`] where one occurs twice: its lock would wait for itself. Those of
/// `change`; [`Error::ValueMismatch`] where it leaves another shape or element type.
pub(crate) fn update_all<T>(
    slots: &[&Slot],
    change: impl FnOnce(&mut [&mut Tensor]) -> Result<T>,
) -> Result<T> {
    let mut order: Vec<usize> = (0..slots.len()).collect();
    order.sort_unstable_by_key(|&i| slots[i].id);
    if let Some(twice) = order.windows(2).find(|w| slots[w[0]].id == slots[w[1]].id) {
        let id = slots[twice[0]].id;
        return Err(Error::DuplicateParameter { id });
    }
    let mut guards: Vec<_> = order.iter().map(|&i| (i, slots[i].write())).collect();
    guards.sort_unstable_by_key(|&(i, _)| i);
    let mut values: Vec<&mut Tensor> = guards.iter_mut().map(|(_, g)| &mut **g).collect();
    let out = change(&mut values)?;
    for (slot, value) in slots.iter().zip(&values) {
        slot.check(value)?;
    }
    Ok(out)
}

/// Writes a value into each slot, in place: all, or where one cannot be written, none.
///
/// # Errors
/// [`Error::ValueMismatch`]; that there is no memory, where a tape shares one; as [`update_all`].
pub(crate) fn set_all(slots: &[&Slot], values: &[&Tensor]) -> Result<()> {
    for (slot, value) in slots.iter().zip(values) {
        slot.check(value)?;
    }
    update_all(slots, |tensors| {
        if let ([tensor], [value]) = (&mut *tensors, values) {
            return Ok(tensor.copy_from(value)?);
        }
        // What can fail comes before the first write.
        for tensor in &mut *tensors {
            tensor.make_unique()?;
        }
        for (tensor, value) in tensors.iter_mut().zip(values) {
            tensor.copy_from(value)?;
        }
        Ok(())
    })
}
