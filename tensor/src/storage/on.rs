//! [`on`]: the door for computation.

use super::operand::{Operand, Use};
#[cfg(feature = "cuda")]
use crate::cuda::Issue;
use crate::{Device, Error, Result};

/// Where an operation runs, and its operands, ready for the kernels of that place.
pub(crate) enum On<T> {
    /// On a virtual CPU device.
    Cpu(T),
    /// On a card. The guard issues kernels; its drop records what they use.
    #[cfg(feature = "cuda")]
    Cuda(Issue, T),
}

/// Makes the operands of the operation `op` ready: they are on one device, none has lost its last
/// write, what is written is held by nobody else, and its memory is there. So where this gives an
/// error, nothing has been changed, and the operation can be called again.
///
/// ```text
/// match on(op, (x, out(&mut y)))? {
///     On::Cpu((x, y)) => cpu::kernel(op, x, y)?,
///     On::Cuda(lane, (x, y)) => cuda::kernel(lane, x, y)?,
/// }
/// ```
///
/// What only one kind of device needs stands below the match, in `cpu.rs` and `cuda.rs`: the
/// dispatch on element types, widened and contiguous copies, scratch, the cut into blocks.
#[inline]
pub(crate) fn on<O: Operand>(op: &'static str, mut operands: O) -> Result<On<O::Ready>> {
    let device = device(op, &operands)?;
    operands.prepare(op)?;
    match device {
        Device::Cpu(_) => {
            hand_down(&operands);
            Ok(On::Cpu(operands.ready()))
        }
        #[cfg(feature = "cuda")]
        Device::Cuda(ordinal) => {
            let issue = Issue::new(op, ordinal, &operands)?;
            hand_down(&operands);
            Ok(On::Cuda(issue, operands.ready()))
        }
        #[cfg(not(feature = "cuda"))]
        Device::Cuda(_) => Err(device.unavailable(op)),
    }
}

/// What is written anew has no lost write any more, and what is computed from a write that may still
/// get lost is lost with it.
#[inline]
fn hand_down(operands: &impl Operand) {
    let mut pending = false;
    // Neither closure fails.
    let _ = operands.each(&mut |t, how| {
        match how {
            Use::Write => t.storage().rewritten(),
            Use::Read | Use::Update => pending |= t.storage().is_pending(),
        }
        Ok(())
    });
    if pending {
        let _ = operands.each(&mut |target, how| match how {
            Use::Read => Ok(()),
            Use::Write | Use::Update => operands.each(&mut |source, how| {
                if how != Use::Write {
                    target.storage().inherits(source.storage());
                }
                Ok(())
            }),
        });
    }
}

/// The device of all operands, none of which lost its last write.
#[inline(always)]
fn device(op: &'static str, operands: &impl Operand) -> Result<Device> {
    let mut device = None;
    operands.each(&mut |t, how| {
        let other = t.device();
        match device {
            Some(device) if device != other => {
                let (lhs, rhs) = (device, other);
                return Err(Error::DeviceMismatch { op, lhs, rhs });
            }
            _ => device = Some(other),
        }
        match how {
            Use::Write => Ok(()),
            Use::Read | Use::Update => t.storage().expect_written(op),
        }
    })?;
    device.ok_or_else(|| Error::InvalidArgument {
        op,
        reason: "there is no tensor to work on".into(),
    })
}
