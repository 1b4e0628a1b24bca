//! [`Param`] and [`Buffer`]: the tensors that a model keeps between steps.

use crate::claim::{ClaimRef, Holder};
use crate::error::{Error, Result};
use phalanx_tensor::{DType, Device, Shape, Tensor};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// What identifies a [`Param`] within the process. Later parameters have larger ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(pub(crate) u64);

impl fmt::Display for ParamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// A cell of a tensor whose shape and element type never change.
struct Slot {
    shape: Shape,
    dtype: DType,
    value: RwLock<Tensor>,
}

impl Slot {
    fn new(value: Tensor) -> Slot {
        Slot {
            shape: value.shape().clone(),
            dtype: value.dtype(),
            value: RwLock::new(value),
        }
    }

    // A panic while the lock was held leaves a whole tensor behind: poison is of no interest.
    fn read(&self) -> RwLockReadGuard<'_, Tensor> {
        self.value.read().unwrap_or_else(|e| e.into_inner())
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tensor> {
        self.value.write().unwrap_or_else(|e| e.into_inner())
    }

    fn check(&self, id: ParamId, value: &Tensor) -> Result<()> {
        if *value.shape() == self.shape && value.dtype() == self.dtype {
            return Ok(());
        }
        Err(Error::ValueMismatch {
            id,
            shape: self.shape.clone(),
            dtype: self.dtype,
            new_shape: value.shape().clone(),
            new_dtype: value.dtype(),
        })
    }
}

/// Parameters and buffers draw their ids from one counter.
fn next_id() -> ParamId {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    ParamId(NEXT.fetch_add(1, Relaxed))
}

/// A trainable tensor with an identity: clones are handles to the same parameter.
///
/// The value inside is replaced or updated, never changed behind a holder's back: whoever took a
/// [`value`](Param::value), a tape above all, keeps what it took. A parameter is `Send` and `Sync`.
///
/// ```
/// use phalanx_autograd::Param;
/// use phalanx_tensor::{Device, Tensor};
///
/// let w = Param::new(Tensor::from_slice(&[1.0f32, 2.0], [2], Device::cpu(0))?);
/// let before = w.value();
/// w.set(Tensor::from_slice(&[3.0f32, 4.0], [2], Device::cpu(0))?)?;
/// assert_eq!(before.to_vec::<f32>()?, [1.0, 2.0]);
/// assert_eq!(w.value().to_vec::<f32>()?, [3.0, 4.0]);
/// # Ok::<(), phalanx_autograd::Error>(())
/// ```
#[derive(Clone)]
pub struct Param(Arc<ParamInner>);

struct ParamInner {
    id: ParamId,
    requires_grad: AtomicBool,
    claim: RwLock<ClaimRef>,
    slot: Slot,
}

impl Param {
    /// A new parameter that wants gradients.
    pub fn new(value: Tensor) -> Param {
        Param(Arc::new(ParamInner {
            id: next_id(),
            requires_grad: AtomicBool::new(true),
            claim: RwLock::default(),
            slot: Slot::new(value),
        }))
    }

    /// What identifies it.
    pub fn id(&self) -> ParamId {
        self.0.id
    }

    /// Its value now: shares the storage, costs no copy.
    pub fn value(&self) -> Tensor {
        self.0.slot.read().clone()
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

    /// Replaces the value. Tapes that recorded the old one are not touched.
    ///
    /// # Errors
    /// [`Error::ValueMismatch`] where shape or element type differ. The device may differ.
    pub fn set(&self, value: Tensor) -> Result<()> {
        self.0.slot.check(self.0.id, &value)?;
        *self.0.slot.write() = value;
        Ok(())
    }

    /// Changes the value in place: `change` gets the parameter's own tensor, so that where nobody
    /// else holds it, writing to it copies nothing.
    ///
    /// The parameter is locked meanwhile: `change` must work on the tensor that it gets. A
    /// [`value`](Param::value), [`set`](Param::set), [`device`](Param::device) or `update` of the
    /// same parameter inside `change` would wait for itself for ever.
    ///
    /// # Errors
    /// Those of `change`; [`Error::ValueMismatch`] where it leaves another shape or element type:
    /// the value is then what `change` left, and the caller's to repair with `set`.
    pub fn update(&self, change: impl FnOnce(&mut Tensor) -> Result<()>) -> Result<()> {
        update_all(&[self], |values| change(values[0]))
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

/// Changes several parameters at once, as [`Param::update`]: the fused optimizers' way in.
/// Locks are taken in the order of the ids, so that two optimizers that share parameters, on two
/// threads, wait for each other and do not block each other.
///
/// # Errors
/// [`Error::DuplicateParameter`] where one occurs twice: its lock would wait for itself. As
/// [`Param::update`].
pub(crate) fn update_all<T>(
    params: &[&Param],
    change: impl FnOnce(&mut [&mut Tensor]) -> Result<T>,
) -> Result<T> {
    let mut order: Vec<usize> = (0..params.len()).collect();
    order.sort_unstable_by_key(|&i| params[i].id());
    if let Some(twice) = order
        .windows(2)
        .find(|w| params[w[0]].id() == params[w[1]].id())
    {
        let id = params[twice[0]].id();
        return Err(Error::DuplicateParameter { id });
    }
    let mut guards: Vec<_> = order
        .iter()
        .map(|&i| (i, params[i].0.slot.write()))
        .collect();
    guards.sort_unstable_by_key(|&(i, _)| i);
    let mut values: Vec<&mut Tensor> = guards.iter_mut().map(|(_, g)| &mut **g).collect();
    let out = change(&mut values)?;
    for (param, value) in params.iter().zip(&values) {
        param.0.slot.check(param.id(), value)?;
    }
    Ok(out)
}

impl fmt::Debug for Param {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Param({}, {}, {})",
            self.0.id, self.0.slot.shape, self.0.slot.dtype
        )
    }
}

/// A tensor that a module keeps and that has no gradient, such as batch norm's running mean.
/// Clones are handles to the same buffer.
#[derive(Clone)]
pub struct Buffer(Arc<(ParamId, Slot)>);

impl Buffer {
    /// A new buffer.
    pub fn new(value: Tensor) -> Buffer {
        Buffer(Arc::new((next_id(), Slot::new(value))))
    }

    /// What identifies it; no parameter has the same id.
    pub fn id(&self) -> ParamId {
        self.0.0
    }

    /// Its value now: shares the storage, costs no copy.
    pub fn value(&self) -> Tensor {
        self.0.1.read().clone()
    }

    /// Its shape.
    pub fn shape(&self) -> &Shape {
        &self.0.1.shape
    }

    /// Its element type.
    pub fn dtype(&self) -> DType {
        self.0.1.dtype
    }

    /// Replaces the value.
    ///
    /// # Errors
    /// [`Error::ValueMismatch`] where shape or element type differ. The device may differ.
    pub fn set(&self, value: Tensor) -> Result<()> {
        self.0.1.check(self.0.0, &value)?;
        *self.0.1.write() = value;
        Ok(())
    }

    /// Changes the value in place, as [`Param::update`]; the buffer is locked meanwhile, too.
    ///
    /// # Errors
    /// As [`Param::update`].
    pub fn update(&self, change: impl FnOnce(&mut Tensor) -> Result<()>) -> Result<()> {
        let mut value = self.0.1.write();
        change(&mut value)?;
        self.0.1.check(self.0.0, &value)
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Buffer({}, {}, {})",
            self.0.0,
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
        let after = [&a, &b, &c].map(|p| p.value().item::<f64>().unwrap());
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
        assert_eq!(buffer.value().item::<f64>().unwrap(), 2.0);
    }

    #[test]
    fn one_that_occurs_twice_is_an_error_and_no_deadlock() {
        let (a, b) = (scalar(1.0), scalar(2.0));
        let e = update_all(&[&a, &b, &a.clone()], |_| Ok(())).unwrap_err();
        assert!(matches!(e, Error::DuplicateParameter { id } if id == a.id()));
        a.set(b.value()).unwrap(); // no lock was left behind
    }
}
