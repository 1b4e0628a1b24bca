//! Pools of memory.

use std::ffi::c_void;

use super::api;
use super::handles::{self, Handle};
use super::init;
use super::pointers::{Array, Out};
use crate::device::code::Code;
use crate::device::machine::Machine;
use crate::device::pool::Pool;
use crate::device::report::Count;

/// The highest number of pools: a bit for each says who may use its memory.
const MOST: usize = 64;

/// `CUmemAccessDesc`: what kind of place, which one, and what it may do.
type Access = [i32; 3];

/// The beginning of `CUmemPoolProps`: kind of allocation, kind of handle, kind of place, which place.
type Properties = [i32; 4];

fn is_word(attribute: u32) -> bool {
    (1..=3).contains(&attribute)
}

api! {
    cuMemPoolCreate(pool: Out<Handle>, properties: Array<Properties>) {
        let machine = Machine::get()?;
        let [kind, handles_kind, place, device] = properties.item(0)?;
        if kind != 1 || place != 1 || pool.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        if handles_kind != 0 {
            machine.report.finding("Pools that other processes share are not simulated.");
            return Err(Code::NOT_SUPPORTED);
        }
        let gpu = init::gpu(machine, device)?;
        let mut state = machine.lock();
        if state.pools.len() >= MOST {
            machine.report.finding("The simulator has no more than 64 pools.");
            return Err(Code::OUT_OF_MEMORY);
        }
        state.pools.push(Pool::new(gpu));
        pool.put(handles::of_pool(state.pools.len() - 1))
    }

    cuMemPoolDestroy(pool: Handle) {
        let machine = Machine::get()?;
        let mut state = machine.lock();
        let pool = handles::pool(&state, pool)?;
        if pool < machine.settings.gpus {
            return Err(Code::INVALID_VALUE);
        }
        let gpu = state.pools[pool].gpu;
        if state.contexts[gpu].pool == pool {
            state.contexts[gpu].pool = gpu;
        }
        state.pools[pool].destroyed = true;
        state.pools[pool].threshold = 0;
        state.pools[pool].trim(0);
        Ok(())
    }

    cuMemPoolTrimTo(pool: Handle, keep: usize) {
        let machine = Machine::get()?;
        let mut state = machine.lock();
        let pool = handles::pool(&state, pool)?;
        state.pools[pool].trim(keep as u64);
        machine.report.count(Count::Trims);
        Ok(())
    }

    cuMemPoolGetAttribute(pool: Handle, attribute: u32, value: *mut c_void) {
        let machine = Machine::get()?;
        let state = machine.lock();
        let pool = &state.pools[handles::pool(&state, pool)?];
        if value.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let number = match attribute {
            1..=3 => pool.reuse[attribute as usize - 1].into(),
            4 => pool.threshold,
            5 => pool.reserved,
            6 => pool.reserved_high,
            7 => pool.used,
            8 => pool.used_high,
            _ => return Err(Code::INVALID_VALUE),
        };
        // SAFETY: by the interface, `value` points to a `cuuint64_t`, or to an `int` for the first three attributes.
        unsafe {
            match is_word(attribute) {
                true => value.cast::<u32>().write_unaligned(number as u32),
                false => value.cast::<u64>().write_unaligned(number),
            }
        }
        Ok(())
    }

    cuMemPoolSetAttribute(pool: Handle, attribute: u32, value: *mut c_void) {
        let machine = Machine::get()?;
        let mut state = machine.lock();
        let pool = handles::pool(&state, pool)?;
        let pool = &mut state.pools[pool];
        if value.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: as in `cuMemPoolGetAttribute`.
        let number = unsafe {
            match is_word(attribute) {
                true => value.cast::<u32>().read_unaligned().into(),
                false => value.cast::<u64>().read_unaligned(),
            }
        };
        match (attribute, number) {
            (1..=3, _) => pool.reuse[attribute as usize - 1] = number as u32,
            (4, _) => pool.threshold = number,
            (6, 0) => pool.reserved_high = pool.reserved,
            (8, 0) => pool.used_high = pool.used,
            _ => return Err(Code::INVALID_VALUE),
        }
        Ok(())
    }

    cuMemPoolSetAccess(pool: Handle, map: Array<Access>, count: usize) {
        let machine = Machine::get()?;
        let mut state = machine.lock();
        let pool = handles::pool(&state, pool)?;
        let pool = &mut state.pools[pool];
        for [place, device, flags] in map.items(count)? {
            let gpu = init::gpu(machine, device)?;
            let can = gpu == pool.gpu || machine.settings.can_access(gpu, pool.gpu);
            match (place, flags) {
                (1, 3) if !can => return Err(Code::INVALID_DEVICE),
                (1, 3) => pool.access |= 1 << gpu,
                (1, 0) if gpu != pool.gpu => pool.access &= !(1 << gpu),
                _ => return Err(Code::INVALID_VALUE),
            }
        }
        Ok(())
    }

    cuMemPoolGetAccess(flags: Out<i32>, pool: Handle, place: Array<[i32; 2]>) {
        let machine = Machine::get()?;
        let state = machine.lock();
        let pool = &state.pools[handles::pool(&state, pool)?];
        let [kind, device] = place.item(0)?;
        let gpu = init::gpu(machine, device)?;
        if kind != 1 {
            return Err(Code::INVALID_VALUE);
        }
        flags.put(if gpu == pool.gpu || pool.access >> gpu & 1 == 1 { 3 } else { 0 })
    }
}
