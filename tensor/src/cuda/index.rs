//! The flags for an index out of range. A kernel that meets one cannot fail: it leaves its result out
//! and notes the first such index here. The flag stays until it is cleared, and every copy from the
//! card to the host looks at it. What is copied to another card takes it along.
#![allow(unsafe_code)]

use super::gpu::Issuing;
use super::issue::{Arg, Grid, Issue};
use super::lanes::{Lane, Stamp};
use super::memory::Uses;
use super::modules::{Source, Variant};
use crate::{Error, Result};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::CUdeviceptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The flags themselves, a variable of a module of its own.
pub(super) static SOURCE: Source = Source {
    family: "index-flag",
    path: "tensor/src/cuda/index.cu",
    before: "",
    text: include_str!("index.cu"),
    after: "",
    types: &[&[]],
};

/// What a kernel notes: `IndexFault` of the prelude.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
struct Note {
    set: u32,
    /// Place of the operation's name in [`OPS`].
    op: u32,
    index: i64,
    extent: i64,
}

/// What a copy of the flags holds: the card's own note, and that of other cards whose data it has.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Notes([Note; 2]);

/// Operations that may set a flag, on any card: notes cross from card to card.
static OPS: Mutex<Vec<&'static str>> = Mutex::new(Vec::new());

fn ops() -> MutexGuard<'static, Vec<&'static str>> {
    // A panic while the lock was held cannot leave the list half-changed.
    OPS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The flags of one card, in its memory; `None` while nobody has had them.
#[derive(Debug, Default)]
pub(super) struct IndexFlag(Mutex<Option<Flags>>);

#[derive(Debug)]
struct Flags {
    address: CUdeviceptr,
    /// The uses of the first note, which is that of this card's kernels. The others only the copy lane writes and
    /// reads, one operation after another, so that no kernel of this card waits for data of another one.
    own: Uses,
}

impl Flags {
    /// Where notes of another card arrive.
    fn arrivals(&self) -> CUdeviceptr {
        self.address + size_of::<Notes>() as u64
    }

    /// Whence notes go to another card.
    fn departures(&self) -> CUdeviceptr {
        self.arrivals() + size_of::<Notes>() as u64
    }

    /// Lets the copy lane wait until the notes are written that the host and other cards look at.
    fn read(&mut self, issuing: &mut Issuing, stamp: Stamp) -> Result<(), DriverError> {
        debug_assert_eq!(stamp.lane, Lane::Copy);
        self.own.before_read(issuing.lanes(), stamp.lane)?;
        self.own.read(stamp);
        Ok(())
    }
}

impl IndexFlag {
    fn flags(&self) -> MutexGuard<'_, Option<Flags>> {
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
        let mut flags = self.flags();
        let flags = there(op, issuing, stamp, &mut flags)?;
        flags
            .own
            .before_write(issuing.lanes(), stamp.lane)
            .map_err(|e| gpu.failed(op, "waiting for the index flag", e))?;
        flags.own.written(stamp);
        let mut ops = ops();
        let known = ops.iter().position(|known| *known == op);
        let place = known.unwrap_or_else(|| {
            ops.push(op);
            ops.len() - 1
        });
        Ok((flags.address, i32::try_from(place).unwrap_or(i32::MAX)))
    }

    /// Puts a copy of the flags to `target` behind what was issued as `stamp`; `false` where nobody
    /// has ever had them.
    ///
    /// # Safety
    /// `target` has room for [`Notes`], and stays until the operation is done.
    pub(super) unsafe fn fetch(
        &self,
        issuing: &mut Issuing,
        stamp: Stamp,
        target: &mut [u8],
    ) -> Result<bool, DriverError> {
        let mut flags = self.flags();
        let Some(flags) = &mut *flags else {
            return Ok(false);
        };
        flags.read(issuing, stamp)?;
        let stream = issuing.lanes().stream(stamp.lane);
        // SAFETY: the flags' memory lives as long as the process; the caller vouches for the target.
        unsafe { result::memcpy_dtoh_async(target, flags.address, stream) }?;
        Ok(true)
    }

    /// The error that a copy of the flags stands for.
    pub(super) fn look(&self, notes: Notes) -> Result<()> {
        let Some(note) = notes.0.iter().find(|note| note.set != 0) else {
            return Ok(());
        };
        Err(Error::IndexOutOfRange {
            op: ops()
                .get(note.op as usize)
                .copied()
                .unwrap_or("an operation"),
            index: note.index,
            extent: usize::try_from(note.extent).unwrap_or(0),
            late: true,
        })
    }

    /// Takes the flags down.
    pub(super) fn clear(&self, issuing: &mut Issuing) -> Result<(), DriverError> {
        let mut flags = self.flags();
        let lanes = issuing.lanes();
        let Some(flags) = &mut *flags else {
            return Ok(());
        };
        let stamp = lanes.next(Lane::Copy);
        flags.own.before_write(lanes, stamp.lane)?;
        flags.own.written(stamp);
        let stream = lanes.stream(stamp.lane);
        // SAFETY: the flags' memory has the size of the notes and lives as long as the process.
        let cleared =
            unsafe { result::memset_d8_async(flags.address, 0, size_of::<Notes>(), stream) };
        // Its number is that of a use now, also where it has failed.
        lanes.issued(stamp).and(cleared)
    }
}

/// The flags, which the driver zeroes when it loads their module.
fn there<'a>(
    op: &'static str,
    issuing: &mut Issuing,
    stamp: Stamp,
    flags: &'a mut Option<Flags>,
) -> Result<&'a mut Flags> {
    if flags.is_none() {
        let (gpu, variant) = (issuing.gpu(), Variant::new(&SOURCE, &[]));
        let (address, _) = gpu
            .modules
            .variable(op, issuing, &variant, "index_faults")?;
        *flags = Some(Flags {
            address,
            own: Uses::new(stamp),
        });
    }
    match flags {
        Some(flags) => Ok(flags),
        None => unreachable!("the flags have just been made"),
    }
}

/// A copy of the flags of one card on its way to another one.
#[derive(Debug)]
pub(super) struct Crossing {
    from: CUdeviceptr,
    to: CUdeviceptr,
    /// The flags of the card to which it goes.
    flags: CUdeviceptr,
}

impl Crossing {
    /// Orders it on both lanes; `None` where the source's card has no flags that could be set.
    pub(super) fn prepare(source: &mut Issue, target: &mut Issue) -> Result<Option<Crossing>> {
        let (op, here, there_gpu) = (source.op(), source.gpu(), target.gpu());
        let failed = |e| here.failed(op, "waiting for the index flag", e);
        let stamp = source.stamp();
        let mut flags = here.index.flags();
        let Some(flags) = &mut *flags else {
            return Ok(None);
        };
        here.enter(op)?;
        flags.read(source.issuing(), stamp).map_err(failed)?;
        let (from, stream) = (flags.departures(), source.stream());
        // SAFETY: both places have the size of the notes, and live as long as the process.
        unsafe { result::memcpy_dtod_async(from, flags.address, size_of::<Notes>(), stream) }
            .map_err(failed)?;
        // A kernel that may set the flag waits for this, and not for the tensor's elements.
        source.cut().map_err(failed)?;
        target.prepare(&SOURCE, &[], "index_faults_arrive")?; // enters the other card's context
        let stamp = target.stamp();
        let mut others = there_gpu.index.flags();
        let others = there(op, target.issuing(), stamp, &mut others)?;
        Ok(Some(Crossing {
            from,
            to: others.arrivals(),
            flags: others.address,
        }))
    }

    /// Target, source and size of the copy, in bytes.
    pub(super) fn places(&self) -> (CUdeviceptr, CUdeviceptr, usize) {
        (self.to, self.from, size_of::<Notes>())
    }

    /// Takes over what has arrived.
    pub(super) fn arrive(self, target: &mut Issue) -> Result<()> {
        let grid = Grid {
            blocks: [1; 3],
            threads: [1; 3],
            strides: false,
        };
        let args = [Arg::Address(self.flags)];
        target.launch(&SOURCE, &[], "index_faults_arrive", grid, &args)
    }
}
