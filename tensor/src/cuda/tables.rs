//! Tables in a card's memory, from which one launch over many tensors learns where they are. They lie
//! in a variable of the module whose kernels read them, and are kept: a step whose tensors stay where
//! they were finds its table there, and uploads nothing.
#![allow(unsafe_code)]

use super::issue::{Arg, Issue};
use super::modules::{Kernel, Types, Variant};
use crate::{DType, Result};
use cudarc::driver::result;
use cudarc::driver::sys::CUdeviceptr;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// The variable of a module that keeps tables: `u64 tables[]`.
const VARIABLE: &str = "tables";
/// The largest table that is kept, in bytes. A larger one is uploaded for each launch.
const SLOT: usize = 64 << 10;

/// The tables that one card keeps, by the module in which they are.
///
/// All of them are written and read on the compute lane, one operation after another, so that no
/// event is needed: a table that takes another one's place comes behind the kernels that read that.
#[derive(Debug, Default)]
pub(super) struct Tables(Mutex<HashMap<(&'static str, Types), Kept>>);

/// The tables of one module.
#[derive(Debug)]
struct Kept {
    address: CUdeviceptr,
    slots: Vec<Slot>,
}

#[derive(Debug, Default)]
struct Slot {
    /// What was uploaded last.
    table: Vec<u8>,
    /// The number of the operation that used it last.
    used: u64,
}

impl Kept {
    /// The slot that holds `table`; else the one that was used longest ago, and not by the operation
    /// `number`, which may have a launch before it that reads it.
    fn find(&self, table: &[u8], number: u64) -> Option<usize> {
        let known = self.slots.iter().position(|slot| slot.table == table);
        known.or_else(|| {
            let slots = self.slots.iter().enumerate();
            let free = slots.filter(|(_, slot)| slot.used != number);
            free.min_by_key(|(_, slot)| slot.used).map(|(at, _)| at)
        })
    }
}

impl Issue {
    /// The address in the card's memory of a copy of `table`, for kernels of this operation that belong
    /// to the family `source`, whose text declares the variable `tables`. Where the card has no such
    /// copy yet, it is uploaded in stream order, and the host does not wait for that.
    ///
    /// An operation asks for it before its first launch, as it does for
    /// [`scratch`](Issue::scratch).
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory).
    pub(crate) fn table(
        &mut self,
        source: Kernel,
        types: &[DType],
        table: &[u8],
    ) -> Result<Arg<'static>> {
        let (op, gpu, number) = (self.op(), self.gpu(), self.stamp().number);
        gpu.enter(op)?;
        let mut tables = gpu.tables.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (source.family, Types::from(types));
        if !tables.contains_key(&key) {
            let variant = Variant::new(source, types);
            let (address, bytes) = gpu
                .modules
                .variable(op, self.issuing(), &variant, VARIABLE)?;
            let mut slots = Vec::new();
            slots.resize_with(bytes / SLOT, Slot::default);
            tables.insert(key.clone(), Kept { address, slots });
        }
        let place = tables.get_mut(&key).filter(|_| table.len() <= SLOT);
        let place = place.and_then(|kept| {
            let at = kept.find(table, number)?;
            let address = kept.address + (at * SLOT) as u64;
            Some((address, &mut kept.slots[at]))
        });
        let Some((address, slot)) = place else {
            let Arg::Address(address) = self.scratch(table.len())? else {
                unreachable!("scratch memory has an address");
            };
            self.put(address, table)?;
            return Ok(Arg::Address(address));
        };
        if slot.table != table {
            slot.table.clear(); // where the upload fails, nobody knows what is there
            self.put(address, table)?;
            slot.table.extend_from_slice(table);
        }
        slot.used = number;
        Ok(Arg::Address(address))
    }

    /// Copies `bytes` to an address of the card, through a pinned buffer and in stream order.
    fn put(&mut self, address: CUdeviceptr, bytes: &[u8]) -> Result<()> {
        let (op, gpu, stamp) = (self.op(), self.gpu(), self.stamp());
        let mut pinned = gpu
            .table_staging
            .take_issuing(op, self.issuing(), bytes.len())?;
        pinned.bytes()[..bytes.len()].copy_from_slice(bytes);
        let stream = self.stream();
        // SAFETY: there is room for as many bytes at the address, and only this lane uses it; the
        // pinned buffer is not handed out again before this operation is done.
        let copied =
            unsafe { result::memcpy_htod_async(address, &pinned.bytes()[..bytes.len()], stream) };
        gpu.table_staging.put(pinned, Some(stamp));
        copied.map_err(|e| self.failed("copying a table to the card", e))
    }
}
