//! Global memory: which region an address belongs to, what may be done there, and what a launch touched. This is one of
//! the few files with `unsafe` code, since generated code calls it.

use super::abi::{Ctx, READ, STRONG, Site, WRITE};
use super::engine::{Runner, abandon, owner};
use super::finding::FindingKind;
use super::{Region, Touched};

/// A region that this launch has met, and what it did there.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    region: Region,
    read: (u64, u64),
    written: (u64, u64),
}

const NOTHING: (u64, u64) = (u64::MAX, 0);

fn join(into: &mut (u64, u64), site: &Site) {
    into.0 = into.0.min(site.low);
    into.1 = into.1.max(site.high);
}

impl Runner<'_> {
    /// The region that holds `addr`, by its place in the list.
    fn region(&mut self, addr: u64) -> Option<Region> {
        let regions = &mut self.worker.regions;
        let at = regions.partition_point(|known| known.region.base <= addr);
        if let Some(known) = at.checked_sub(1).map(|at| regions[at].region)
            && addr - known.base < known.len
        {
            return Some(known);
        }
        let region = self.memory.find(addr)?;
        if addr < region.base || addr - region.base >= region.len {
            return None;
        }
        let known = Known {
            region,
            read: NOTHING,
            written: NOTHING,
        };
        regions.insert(at, known);
        Some(region)
    }

    /// Takes over what a site did to its region.
    fn flush(&mut self, site: &Site) {
        if site.kind == 0 || site.high == 0 {
            return;
        }
        let regions = &mut self.worker.regions;
        let at = regions.partition_point(|known| known.region.base < site.base);
        let Some(known) = regions.get_mut(at) else {
            return;
        };
        if site.kind as u32 & READ != 0 {
            join(&mut known.read, site);
        }
        if site.kind as u32 & WRITE != 0 {
            join(&mut known.written, site);
        }
    }

    /// Fills `site` with the region of `addr`, or says what is wrong.
    fn place(
        &mut self,
        site: *mut Site,
        addr: u64,
        bytes: u32,
        kind: u32,
    ) -> Result<u64, (FindingKind, String)> {
        let verb = if kind & WRITE == 0 { "reads" } else { "writes" };
        if !addr.is_multiple_of(u64::from(bytes)) {
            let what =
                format!("{verb} {bytes} bytes at {addr:#x}, which is no multiple of {bytes}");
            return Err((FindingKind::Misaligned, what));
        }
        let outside = |runner: &Runner<'_>, at: u64| {
            let why = runner.memory.explain(at);
            (
                FindingKind::OutOfBounds,
                format!("{verb} {bytes} bytes at {addr:#x}: {why}"),
            )
        };
        let Some(region) = self.region(addr) else {
            return Err(outside(self, addr));
        };
        let offset = addr - region.base;
        if region.len - offset < u64::from(bytes) {
            return Err(outside(self, region.base + region.len));
        }
        if kind & WRITE != 0 && !region.writable {
            let what =
                format!("writes {bytes} bytes at {addr:#x}, in memory that may only be read");
            return Err((FindingKind::ReadOnly, what));
        }
        let cells = match self.kernel.looks_for_races() && region.writable {
            true => self.worker.shadows.of(&region).map_err(|error| {
                let what = format!(
                    "meets {} bytes: no memory for their records: {error}",
                    region.len
                );
                (FindingKind::Limit, what)
            })?,
            false => std::ptr::null_mut(),
        };
        // SAFETY: the pointer is that of a site of this launch, and generated code does not use it meanwhile.
        let site = unsafe { &mut *site };
        self.flush(site);
        *site = Site {
            base: region.base,
            limit: region.len - u64::from(bytes),
            host: region.host,
            valid: region.valid,
            region: region.id,
            kind: u64::from(kind & !STRONG),
            cells,
            ..Site::EMPTY
        };
        Ok(offset)
    }
}

/// What the launch of `runner` touched.
pub fn touched(runner: &mut Runner<'_>) -> Vec<Touched> {
    for range in &runner.kernel.sites {
        for at in range.clone() {
            // SAFETY: the context holds the sites of this launch, as many as the module has.
            let site = unsafe { *runner.worker.threads[0].sites.add(at) };
            runner.flush(&site);
        }
    }
    let range = |(low, high): (u64, u64)| (low < high).then_some(low..high);
    let touched = runner.worker.regions.iter().map(|known| Touched {
        region: known.region.id,
        read: range(known.read),
        written: range(known.written),
    });
    touched.collect()
}

/// An access that its site's region does not hold: answers its offset in the region that does.
///
/// # Safety
///
/// Generated code calls it, with its context.
pub unsafe extern "C" fn miss(ctx: *mut Ctx, site: u32, addr: u64, bytes: u32, kind: u32) -> u64 {
    // SAFETY: by this function's condition; the reference ends before the fiber is left.
    unsafe {
        let this = owner(ctx);
        let place = (&mut *this).place((*ctx).sites.add(site as usize), addr, bytes, kind);
        match place {
            Ok(offset) => offset,
            Err((kind, what)) => {
                (*this).find(kind, site, (*ctx).thread, &what);
                abandon(this)
            }
        }
    }
}

/// A fault that generated code has found itself.
///
/// # Safety
///
/// Generated code calls it, with its context.
pub unsafe extern "C" fn fail(ctx: *mut Ctx, site: u32, kind: u32, addr: u64, bytes: u32) {
    // SAFETY: by this function's condition; the reference ends before the fiber is left.
    unsafe {
        let this = owner(ctx);
        let runner = &mut *this;
        let instruction = runner.kernel.instruction(site).to_owned();
        let (kind, what) = match kind {
            1 => (
                FindingKind::Uninitialised,
                format!(
                    "reads {bytes} bytes at {addr:#x} ({}), of which some were never written",
                    runner.memory.explain(addr)
                ),
            ),
            2 => (
                FindingKind::SharedOutOfBounds,
                format!(
                    "accesses {bytes} bytes at offset {} of shared memory, of which the block has {} bytes ({instruction})",
                    addr as i64, runner.shared.len
                ),
            ),
            3 => (
                FindingKind::Misaligned,
                format!(
                    "accesses {bytes} bytes at offset {addr} of shared memory, which is no multiple of {bytes}"
                ),
            ),
            4 => (
                FindingKind::LocalOutOfBounds,
                format!(
                    "accesses {bytes} bytes at offset {} of its local memory, of which it has {} bytes",
                    addr as i64,
                    (*ctx).local_top
                ),
            ),
            5 => (
                FindingKind::Misaligned,
                format!(
                    "accesses {bytes} bytes at offset {addr} of local memory, which is no multiple of {bytes}"
                ),
            ),
            6 => (
                FindingKind::OutOfBounds,
                format!(
                    "reads {bytes} bytes at offset {addr} of the kernel's {} bytes of parameters",
                    (*ctx).params_len
                ),
            ),
            7 if addr == 1 => (FindingKind::Trap, "failed an assertion".to_owned()),
            7 => (FindingKind::Trap, "executed a trap".to_owned()),
            8 => (
                FindingKind::Limit,
                format!("calls itself too deep: {addr} bytes of local memory are in use"),
            ),
            9 => (
                FindingKind::OutOfBounds,
                format!("branches to entry {addr} of a shorter list"),
            ),
            11 => (
                FindingKind::Limit,
                "calls itself too deep: its stack is full".to_owned(),
            ),
            _ => (
                FindingKind::OutOfBounds,
                format!("calls {addr:#x}, where no function of this kind lies"),
            ),
        };
        runner.find(kind, site, (*ctx).thread, &what);
        abandon(this)
    }
}
