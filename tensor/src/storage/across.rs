//! [`across`]: the door for transfers, between the host's memory, devices and places of one device.

use super::Memory;
use crate::cpu::elementwise::{on_bits, raw_bits};
use crate::cpu::strided;
use crate::{Error, Result, Tensor};

/// Where elements come from, in row-major order.
pub(crate) enum Source<'a> {
    /// The elements of a tensor under any layout.
    Tensor(&'a Tensor),
    /// Bytes in the host's memory.
    Host(&'a [u8]),
}

/// Where elements go to.
pub(crate) enum Target<'a> {
    /// A tensor, contiguous and held by nobody else, of the source's element type; from this element
    /// on.
    Tensor(&'a mut Tensor, usize),
    /// Bytes in the host's memory, as many as the source has.
    Host(&'a mut [u8]),
}

/// Copies elements on behalf of the operation `op`. The caller has checked element types and
/// numbers, and has made the target ready.
///
/// A copy to the host waits for whoever writes the source; it is the one operation that does.
///
/// # Errors
/// [`Error::LostWrite`]; those of the devices.
pub(crate) fn across(op: &'static str, from: Source<'_>, to: Target<'_>) -> Result<()> {
    let source = match &from {
        Source::Tensor(from) => Some(*from),
        Source::Host(_) => None,
    };
    if let Some(source) = source {
        source.storage().expect_written(op)?;
    }
    if let (Some(source), Target::Tensor(to, _)) = (source, &to) {
        to.storage().inherits(source.storage());
    }
    match (from, to) {
        (Source::Host(from), Target::Host(to)) => to.copy_from_slice(from),
        (Source::Host(from), Target::Tensor(to, start)) => match to.storage().memory() {
            Memory::Cpu(_) => host_bytes(op, to, start, from.len())?.copy_from_slice(from),
            #[cfg(feature = "cuda")]
            Memory::Cuda(_) => crate::cuda::upload(op, from, to, start)?,
        },
        (Source::Tensor(from), Target::Host(to)) => match from.storage().memory() {
            Memory::Cpu(_) => {
                from.storage().expect_told(op)?;
                gather(from, to);
            }
            #[cfg(feature = "cuda")]
            Memory::Cuda(_) => {
                crate::cuda::download(op, from, to)?;
                from.storage().expect_told(op)?;
            }
        },
        (Source::Tensor(from), Target::Tensor(to, start)) => {
            let bytes = from.numel() * from.dtype().size();
            match (from.storage().memory(), to.storage().memory()) {
                (Memory::Cpu(_), Memory::Cpu(_)) => gather(from, host_bytes(op, to, start, bytes)?),
                #[cfg(feature = "cuda")]
                (Memory::Cpu(_), Memory::Cuda(_)) => {
                    let from = from.contiguous_for(op)?;
                    crate::cuda::upload(op, from.as_bytes()?, to, start)?;
                }
                #[cfg(feature = "cuda")]
                (Memory::Cuda(_), Memory::Cpu(_)) => {
                    crate::cuda::download(op, from, host_bytes(op, to, start, bytes)?)?;
                    from.storage().expect_told(op)?;
                }
                #[cfg(feature = "cuda")]
                (Memory::Cuda(_), Memory::Cuda(_)) => crate::cuda::copy(op, from, to, start)?,
            }
        }
    }
    Ok(())
}

/// The bytes of a tensor in the host's memory, from the element `start` on.
fn host_bytes<'a>(
    op: &'static str,
    to: &'a mut Tensor,
    start: usize,
    bytes: usize,
) -> Result<&'a mut [u8]> {
    let size = to.dtype().size();
    let place = to.host_bytes_mut(op)?;
    let place = start
        .checked_mul(size)
        .and_then(|at| place.get_mut(at..)?.get_mut(..bytes));
    place.ok_or_else(|| Error::InvalidArgument {
        op,
        reason: format!("{bytes} bytes from element {start} on reach beyond the tensor"),
    })
}

/// The elements of a tensor in the host's memory.
fn gather(from: &Tensor, to: &mut [u8]) {
    on_bits!(from.dtype(), U => {
        strided::gather::<U>(raw_bits(from), from.layout(), bytemuck::cast_slice_mut(to));
    });
}
