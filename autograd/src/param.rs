//! [`Param`] and [`Buffer`]: the tensors that a model keeps between steps.

use crate::claim::{ClaimRef, Holder};
use crate::error::Result;
use crate::slot::{self, Slot};
use phalanx_tensor::{DType, Device, Shape, Tensor};
use std::borrow::Borrow;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, RwLock};

/// What identifies a [`Param`] within the process. Later parameters have larger ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(pub(crate) u64);

impl fmt::Display for ParamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// Parameters and buffers draw their ids from one counter.
fn next_id() -> ParamId {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    ParamId(NEXT.fetch_add(1, Relaxed))
}

/// A trainable tensor with an identity: clones are handles to the same parameter.
///
/// **Its memory stays where it is.** [`set`](Param::set), loading a state and an optimizer's step write
/// in place, and [`value`](Param::value) copies, so that what it gave keeps its values. Only tapes
/// share the memory, until backward, `clear` or drop, and as long as a [`Var`](crate::Var) of the
/// parameter lives. What is written meanwhile does not reach them: the parameter gets new memory
/// then, which [`MemoryStats::copies`](phalanx_tensor::MemoryStats::copies) counts.
///
/// A parameter is `Send` and `Sync`.
///
/// ```
/// use phalanx_autograd::Param;
/// use phalanx_tensor::{Device, Tensor};
///
/// let w = Param::new(Tensor::from_slice(&[1.0f32, 2.0], [2], Device::cpu(0))?);
/// let before = w.value()?;
/// w.set(Tensor::from_slice(&[3.0f32, 4.0], [2], Device::cpu(0))?)?;
/// assert_eq!(before.to_vec::<f32>()?, [1.0, 2.0]);
/// assert_eq!(w.read(|value| value.to_vec::<f32>())?, [3.0, 4.0]);
/// # Ok::<(), phalanx_autograd::Error>(())
/// ```
#[derive(Clone)]
pub struct Param(Arc<ParamInner>);

struct ParamInner {
    requires_grad: AtomicBool,
    claim: RwLock<ClaimRef>,
    slot: Slot,
}

impl Param {
    /// A new parameter that wants gradients. It takes the tensor as it is; where another one shares
    /// it, the first write copies.
    pub fn new(value: Tensor) -> Param {
        Param(Arc::new(ParamInner {
            requires_grad: AtomicBool::new(true),
            claim: RwLock::default(),
            slot: Slot::new(next_id(), value),
        }))
    }

    /// What identifies it.
    pub fn id(&self) -> ParamId {
        self.0.slot.id
    }

    /// A copy of its value now, for keeps: later steps do not change it. To look at the value without
    /// a copy, use [`read`](Param::read).
    ///
    /// # Errors
    /// As [`Tensor::copy`].
    pub fn value(&self) -> Result<Tensor> {
        Ok(self.0.slot.read().copy()?)
    }

    /// Calls `look` with the parameter's own tensor, without a copy, and returns what it returns.
    ///
    /// Writers wait meanwhile: a [`set`](Param::set) or [`update`](Param::update) of the same
    /// parameter inside `look` would wait for itself for ever. A clone or a view that is kept makes
    /// the next write copy.
    pub fn read<T>(&self, look: impl FnOnce(&Tensor) -> T) -> T {
        look(&self.0.slot.read())
    }

    /// Its own tensor, shared: for tapes.
    pub(crate) fn share(&self) -> Tensor {
        self.0.slot.read().clone()
    }

    pub(crate) fn slot(&self) -> &Slot {
        &self.0.slot
    }

    /// Its shape.
    pub fn shape(&self) -> &Shape {
        &self.0.slot.shape
    }

    /// Its element type.
    pub fn dtype(&self) -> DType {
        self.0.slot.dtype
    }

    /// The element type of its gradient: `f32` for a parameter of a half type, whose gradients are
    /// sums of many, else its own type.
    pub fn grad_dtype(&self) -> DType {
        self.dtype().compute()
    }

    /// Where its value is.
    pub fn device(&self) -> Device {
        self.0.slot.read().device()
    }

    /// Writes a value, a tensor or a reference to one, over the parameter's own, in place. Tapes that
    /// recorded the old one are not touched. The parameter stays on its device, wherever `value` is.
    ///
    /// # Errors
    /// [`ValueMismatch`](crate::Error::ValueMismatch) where shape or element type differ; as
    /// [`Tensor::copy_from`]. The old value stays then.
    pub fn set(&self, value: impl Borrow<Tensor>) -> Result<()> {
        slot::set_all(&[self.slot()], &[value.borrow()])
    }

    /// Moves the value to `device`, unless it is there. Tapes that recorded the old one are not
    /// touched.
    ///
    /// # Errors
    /// As [`Tensor::to_device`].
    pub fn to_device(&self, device: Device) -> Result<()> {
        self.0.slot.to_device(device)
    }

    /// Changes the value in place: `change` gets the parameter's own tensor, so that where nobody
    /// else holds it, writing to it copies nothing.
    ///
    /// The parameter is locked meanwhile: `change` must work on the tensor that it gets. A
    /// [`value`](Param::value), [`set`](Param::set), [`device`](Param::device) or `update` of the
    /// same parameter inside `change` would wait for itself for ever.
    ///
    /// # Errors
    /// Those of `change`; [`ValueMismatch`](crate::Error::ValueMismatch) where it leaves another
    /// shape or element type: the value is then what `change` left, and the caller's to repair with
    /// another `update`.
    pub fn update(&self, change: impl FnOnce(&mut Tensor) -> Result<()>) -> Result<()> {
        slot::update_all(&[self.slot()], |values| change(values[0]))
    }

    /// Whether tapes record it. A frozen parameter is a constant.
    pub fn requires_grad(&self) -> bool {
        self.0.requires_grad.load(Relaxed)
    }

    /// Freezes or thaws it.
    pub fn set_requires_grad(&self, on: bool) {
        self.0.requires_grad.store(on, Relaxed);
    }

    /// Who holds the [`Claim`](crate::Claim) on it.
    pub(crate) fn holder(&self) -> Option<Arc<Holder>> {
        let claim = self.0.claim.read().unwrap_or_else(|e| e.into_inner());
        claim.upgrade()
    }

    /// Notes that `holder` claims it. `Err`: somebody does already.
    pub(crate) fn claim(&self, holder: &Arc<Holder>) -> Result<(), Arc<Holder>> {
        let mut claim = self.0.claim.write().unwrap_or_else(|e| e.into_inner());
        match claim.upgrade() {
            Some(other) if !Arc::ptr_eq(&other, holder) => Err(other),
            _ => {
                *claim = Arc::downgrade(holder);
                Ok(())
            }
        }
    }
}

/// Changes several parameters at once, as [`Param::update`]: the fused optimizers' way in. Two of
/// them that share parameters, on two threads, wait for each other and do not block each other.
///
/// # Errors
/// [`Error::DuplicateParameter`](crate::Error::DuplicateParameter) where one occurs twice: its lock
/// would wait for itself. As [`Param::update`].
pub(crate) fn update_all<T>(
    params: &[&Param],
    change: impl FnOnce(&mut [&mut Tensor]) -> Result<T>,
) -> Result<T> {
    let slots: Vec<&Slot> = params.iter().map(|p| p.slot()).collect();
    slot::update_all(&slots, change)
}

impl fmt::Debug for Param {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Param({}, {}, {})",
            self.id(),
            self.shape(),
            self.dtype()
        )
    }
}

/// A tensor that a module keeps and that has no gradient, such as batch norm's running mean.
/// Clones are handles to the same buffer. Its memory stays where it is, as a [`Param`]'s does.
#[derive(Clone)]
pub struct Buffer(Arc<Slot>);

impl Buffer {
    /// A new buffer. It takes the tensor as it is, as [`Param::new`] does.
    pub fn new(value: Tensor) -> Buffer {
        Buffer(Arc::new(Slot::new(next_id(), value)))
    }

    /// What identifies it; no parameter has the same id.
    pub fn id(&self) -> ParamId {
        self.0.id
    }

    /// A copy of its value now, as [`Param::value`].
    ///
    /// # Errors
    /// As [`Tensor::copy`].
    pub fn value(&self) -> Result<Tensor> {
        Ok(self.0.read().copy()?)
    }

    /// Calls `look` with the buffer's own tensor, without a copy, as [`Param::read`].
    pub fn read<T>(&self, look: impl FnOnce(&Tensor) -> T) -> T {
        look(&self.0.read())
    }

    pub(crate) fn slot(&self) -> &Slot {
        &self.0
    }

    /// Its shape.
    pub fn shape(&self) -> &Shape {
        &self.0.shape
    }

    /// Its element type.
    pub fn dtype(&self) -> DType {
        self.0.dtype
    }

    /// Where its value is.
    pub fn device(&self) -> Device {
        self.0.read().device()
    }

    /// Writes a value over the buffer's own, in place, as [`Param::set`].
    ///
    /// # Errors
    /// As [`Param::set`].
    pub fn set(&self, value: impl Borrow<Tensor>) -> Result<()> {
        slot::set_all(&[&self.0], &[value.borrow()])
    }

    /// Moves the value to `device`, unless it is there.
    ///
    /// # Errors
    /// As [`Tensor::to_device`].
    pub fn to_device(&self, device: Device) -> Result<()> {
        self.0.to_device(device)
    }

    /// Changes the value in place, as [`Param::update`]; the buffer is locked meanwhile, too.
    ///
    /// # Errors
    /// As [`Param::update`].
    pub fn update(&self, change: impl FnOnce(&mut Tensor) -> Result<()>) -> Result<()> {
        slot::update_all(&[&self.0], |values| change(values[0]))
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Buffer({}, {}, {})",
            self.id(),
            self.shape(),
            self.dtype()
        )
    }
}

/// Hashes an id by itself: ids are consecutive, and a lookup stands in every use of a parameter.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct IdHasher(u64);

impl std::hash::Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("only a ParamId is hashed here")
    }
    fn write_u64(&mut self, id: u64) {
        // The table takes its control bits from the top: an odd multiplier spreads the id there.
        self.0 = id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// A map from parameters.
pub(crate) type IdMap<V> =
    std::collections::HashMap<ParamId, V, std::hash::BuildHasherDefault<IdHasher>>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn scalar(value: f64) -> Param {
        Param::new(Tensor::scalar(value, Device::cpu(0)).unwrap())
    }

    #[test]
    fn several_are_updated_in_the_order_of_the_list() {
        let (a, b, c) = (scalar(1.0), scalar(2.0), scalar(3.0));
        let seen = update_all(&[&c, &a, &b], |values| {
            let seen: Vec<f64> = values
                .iter()
                .map(|t| t.item::<f64>())
                .collect::<Result<_, _>>()?;
            *values[0] = values[0].add_scalar(10.0)?;
            Ok(seen)
        });
        assert_eq!(seen.unwrap(), [3.0, 1.0, 2.0]);
        let after = [&a, &b, &c].map(|p| p.value().unwrap().item::<f64>().unwrap());
        assert_eq!(after, [1.0, 2.0, 13.0]);
    }

    #[test]
    fn a_buffer_keeps_its_shape_and_type() {
        let buffer = Buffer::new(Tensor::scalar(1.0f64, Device::cpu(0)).unwrap());
        let leave = |value: Tensor| {
            buffer.update(|t| {
                *t = value;
                Ok(())
            })
        };
        let longer = Tensor::zeros([2], DType::F64, Device::cpu(0)).unwrap();
        let shorter = Tensor::scalar(1.0f32, Device::cpu(0)).unwrap();
        for wrong in [longer, shorter] {
            let e = leave(wrong).unwrap_err();
            assert!(matches!(e, Error::ValueMismatch { id, .. } if id == buffer.id()));
        }
        leave(Tensor::scalar(2.0f64, Device::cpu(0)).unwrap()).unwrap();
        assert_eq!(buffer.value().unwrap().item::<f64>().unwrap(), 2.0);
    }

    #[test]
    fn one_that_occurs_twice_is_an_error_and_no_deadlock() {
        let (a, b) = (scalar(1.0), scalar(2.0));
        let e = update_all(&[&a, &b, &a.clone()], |_| Ok(())).unwrap_err();
        assert!(matches!(e, Error::DuplicateParameter { id } if id == a.id()));
        a.set(b.value().unwrap()).unwrap(); // no lock was left behind
    }
}
