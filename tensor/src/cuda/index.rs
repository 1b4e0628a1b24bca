//! The flag for an index out of range. A kernel that meets one cannot fail: it leaves its result out
//! and notes the first such index here. The flag stays until it is cleared, and every copy from the
//! card to the host looks at it.
#![allow(unsafe_code)]

use super::gpu::Issuing;
use super::lanes::{Lane, Stamp};
use super::memory::Uses;
use super::modules::{Source, Variant};
use crate::{Error, Result};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::CUdeviceptr;
use std::sync::{Mutex, PoisonError};

/// The flag itself, a variable of a module of its own.
pub(super) static SOURCE: Source = Source {
    family: "index-flag",
    path: "tensor/src/cuda/index.rs",
    before: "",
    text: "extern \"C\" { __device__ IndexFault index_fault; }",
    after: "",
    types: &[&[]],
};

/// What a kernel notes: `IndexFault` of the prelude.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Note {
    set: u32,
    /// Place of the operation's name in the list of names.
    op: u32,
    index: i64,
    extent: i64,
}

/// The flag of one card, in its memory.
#[derive(Debug, Default)]
pub(super) struct IndexFlag(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Operations that may set the flag.
    ops: Vec<&'static str>,
    /// The flag's address and what uses its memory; `None` while no kernel has had it.
    flag: Option<(CUdeviceptr, Uses)>,
}

impl IndexFlag {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A kernel of the operation `op`, issued as `stamp`, may set the flag: its address, and the
    /// number under which the operation notes itself.
    pub(super) fn lend(
        &self,
        op: &'static str,
        issuing: &mut Issuing,
        stamp: Stamp,
    ) -> Result<(CUdeviceptr, i32)> {
        let gpu = issuing.gpu();
        let mut state = self.state();
        let address = match &mut state.flag {
            Some((address, uses)) => {
                uses.before_write(issuing.lanes(), stamp.lane)
                    .map_err(|e| gpu.failed(op, "waiting for the index flag", e))?;
                uses.written(stamp);
                *address
            }
            none => {
                // The driver zeroes it when it loads the module.
                let variant = Variant::new(&SOURCE, &[]);
                let (address, _) = gpu.modules.variable(op, gpu, &variant, "index_fault")?;
                *none = Some((address, Uses::new(stamp)));
                address
            }
        };
        let known = state.ops.iter().position(|known| *known == op);
        let place = known.unwrap_or_else(|| {
            state.ops.push(op);
            state.ops.len() - 1
        });
        Ok((address, i32::try_from(place).unwrap_or(i32::MAX)))
    }

    /// Puts a copy of the flag to `target` behind what was issued as `stamp`; `false` where no kernel
    /// has ever had it.
    ///
    /// # Safety
    /// `target` has room for a [`Note`], and stays until the operation is done.
    pub(super) unsafe fn fetch(
        &self,
        issuing: &mut Issuing,
        stamp: Stamp,
        target: &mut [u8],
    ) -> Result<bool, DriverError> {
        let mut state = self.state();
        let Some((address, uses)) = &mut state.flag else {
            return Ok(false);
        };
        uses.before_read(issuing.lanes(), stamp.lane)?;
        uses.read(stamp);
        let stream = issuing.lanes().stream(stamp.lane);
        // SAFETY: the flag's memory lives as long as the process; the caller vouches for the target.
        unsafe { result::memcpy_dtoh_async(target, *address, stream) }?;
        Ok(true)
    }

    /// The error that a copy of the flag stands for.
    pub(super) fn look(&self, note: Note) -> Result<()> {
        if note.set == 0 {
            return Ok(());
        }
        let ops = &self.state().ops;
        Err(Error::IndexOutOfRange {
            op: ops.get(note.op as usize).copied().unwrap_or("an operation"),
            index: note.index,
            extent: usize::try_from(note.extent).unwrap_or(0),
            late: true,
        })
    }

    /// Takes the flag down.
    pub(super) fn clear(&self, issuing: &mut Issuing) -> Result<(), DriverError> {
        let mut state = self.state();
        let lanes = issuing.lanes();
        let Some((address, uses)) = &mut state.flag else {
            return Ok(());
        };
        let stamp = lanes.next(Lane::Compute);
        uses.before_write(lanes, stamp.lane)?;
        uses.written(stamp);
        let stream = lanes.stream(stamp.lane);
        // SAFETY: the flag's memory has the size of a note and lives as long as the process.
        unsafe { result::memset_d8_async(*address, 0, size_of::<Note>(), stream) }?;
        lanes.issued(stamp)
    }
}
