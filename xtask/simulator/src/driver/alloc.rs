//! Device memory: allocating it, freeing it, and asking about it.

use super::api;
use super::context;
use super::handles::{self, Handle};
use super::pointers::Out;
use crate::device::code::{Code, Result};
use crate::device::machine::{Guard, Machine};
use crate::device::memory::{Block, Life, Owner};
use crate::device::operation::{Failure, Work};
use crate::device::pool::rounded;
use crate::device::report::Count;

/// Bytes of memory whose free has not run, from which on operations run before more memory is made.
const PENDING: u64 = 64 << 20;

/// Makes an allocation and counts its bytes.
///
/// # Errors
/// `OUT_OF_MEMORY` if the GPU has not enough memory that is not reserved.
pub fn allocate<'a>(
    machine: &'a Machine,
    mut state: Guard<'a>,
    gpu: usize,
    len: u64,
    owner: Owner,
) -> Result<(Guard<'a>, Block)> {
    if len == 0 {
        return Err(Code::INVALID_VALUE);
    }
    machine.report.count(Count::Allocations);
    let capacity = machine.settings.memory;
    // Memory whose free is enqueued is free for the counts, and not for the machine that simulates.
    while state.contexts[gpu].pending > PENDING {
        let (back, ran) = machine.step(state);
        state = back;
        if !ran {
            break;
        }
    }
    for trim in [false, true] {
        if trim {
            let own = state.pools.iter_mut().filter(|pool| pool.gpu == gpu);
            own.for_each(|pool| pool.trim(0));
        }
        let own = state
            .pools
            .iter()
            .enumerate()
            .filter(|(_, pool)| pool.gpu == gpu);
        let pools = own.map(|(number, pool)| match owner {
            Owner::Pool(asked) if asked == number => pool.reserved_with(len),
            _ => pool.reserved,
        });
        let mut total = state.contexts[gpu].plain + pools.sum::<u64>();
        if !matches!(owner, Owner::Pool(_)) {
            total += rounded(len);
        }
        if total <= capacity {
            let block = machine.space.allocate(gpu, len, owner)?;
            match owner {
                Owner::Pool(pool) => state.pools[pool].take(len),
                _ => state.contexts[gpu].plain += rounded(len),
            }
            return Ok((state, block));
        }
    }
    Err(Code::OUT_OF_MEMORY)
}

fn allocate_async(
    address: Out<u64>,
    len: usize,
    pool: Option<Handle>,
    stream: Handle,
) -> Result<()> {
    let machine = Machine::get()?;
    let mut state = machine.lock();
    let stream = handles::stream(machine, &mut state, stream)?;
    let gpu = state.streams[stream].gpu;
    let pool = match pool {
        Some(handle) => handles::pool(&state, handle)?,
        None => state.contexts[gpu].pool,
    };
    if address.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    let of_pool = state.pools[pool].gpu;
    let (state, block) = allocate(machine, state, of_pool, len as u64, Owner::Pool(pool))?;
    drop(machine.submit(state, stream, Work::Allocate(block))?);
    address.put(block.base)
}

/// The block that starts at `address` and may be freed.
fn freeable(machine: &Machine, address: u64) -> Result<Block> {
    let block = machine.space.locate(address);
    let wrong = match block {
        Some(block) if block.gpu.is_some() && block.base == address => match block.life {
            Life::Live if !matches!(block.owner, Owner::Module(_)) => return Ok(block),
            Life::Live => "which is a module's",
            _ => "a double free",
        },
        _ => "which is not the start of an allocation",
    };
    let sentence = format!(
        "A call frees {address:#x}, {wrong}: the address lies {}.",
        machine.space.explain(address)
    );
    machine.report.finding(&sentence);
    Err(Code::INVALID_VALUE)
}

api! {
    cuMemAlloc_v2(address: Out<u64>, len: usize) {
        let machine = Machine::get()?;
        let gpu = context::current(machine)?;
        let mut state = machine.lock();
        state.context(gpu)?;
        if address.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let (_state, block) = allocate(machine, state, gpu, len as u64, Owner::Plain)?;
        address.put(block.base)
    }

    cuMemFree_v2(address: u64) {
        let machine = Machine::get()?;
        if address == 0 {
            return Ok(());
        }
        let block = freeable(machine, address)?;
        let gpu = block.gpu.ok_or(Code::INVALID_VALUE)?;
        // As a card does it: the call waits for all that was enqueued in the context.
        let mut state = machine.wait_context(machine.lock(), gpu)?;
        // Another thread may have freed it meanwhile.
        let block = freeable(machine, address)?;
        let history = state.histories.get(&block.id);
        if let Some(access) = history.and_then(|history| history.unfinished(&state.host)) {
            let failure = Failure::address(format!(
                "The host frees {block} without having waited: {}.",
                state.describe(access)
            ));
            machine.fail(&mut state, gpu, &failure);
            return Err(failure.code);
        }
        machine.space.set_life(block.id, Life::Freed(None));
        match block.owner {
            Owner::Pool(pool) => state.pools[pool].put(block.len),
            _ => {
                let plain = &mut state.contexts[gpu].plain;
                *plain = plain.saturating_sub(rounded(block.len));
            }
        }
        machine.close(&mut state, block);
        Ok(())
    }

    cuMemAllocAsync(address: Out<u64>, len: usize, stream: Handle) {
        allocate_async(address, len, None, stream)
    }

    cuMemAllocFromPoolAsync(address: Out<u64>, len: usize, pool: Handle, stream: Handle) {
        allocate_async(address, len, Some(pool), stream)
    }

    cuMemFreeAsync(address: u64, stream: Handle) {
        let machine = Machine::get()?;
        let mut state = machine.lock();
        let stream = handles::stream(machine, &mut state, stream)?;
        if address == 0 {
            return Err(Code::INVALID_VALUE);
        }
        let mut state = machine.room(state, stream);
        let block = freeable(machine, address)?;
        let Owner::Pool(pool) = block.owner else {
            let sentence = format!("cuMemFreeAsync frees {block}, which cuMemAlloc has made.");
            machine.report.finding(&sentence);
            return Err(Code::INVALID_VALUE);
        };
        machine.space.set_life(block.id, Life::FreeQueued(stream));
        state.pools[pool].put(block.len);
        if let Some(gpu) = block.gpu {
            state.contexts[gpu].pending += block.len;
        }
        machine.submit(state, stream, Work::Free(block)).map(|_| ())
    }

    cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) {
        let machine = Machine::get()?;
        let gpu = context::current(machine)?;
        let mut state = machine.lock();
        let plain = state.context(gpu)?.plain;
        let own = state.pools.iter().filter(|pool| pool.gpu == gpu);
        let reserved = own.map(|pool| pool.reserved).sum::<u64>();
        let capacity = machine.settings.memory;
        free.put(capacity.saturating_sub(plain + reserved) as usize)?;
        total.put(capacity as usize)
    }

    cuMemGetAddressRange_v2(base: Out<u64>, len: Out<usize>, address: u64) {
        let block = Machine::get()?.space.locate(address).ok_or(Code::NOT_FOUND)?;
        base.put_if_asked(block.base);
        len.put_if_asked(block.len as usize);
        Ok(())
    }

    cuPointerGetAttribute(data: *mut std::ffi::c_void, attribute: u32, address: u64) {
        let machine = Machine::get()?;
        let block = machine.space.locate(address).ok_or(Code::INVALID_VALUE)?;
        if data.is_null() || matches!(block.life, Life::Freed(_)) {
            return Err(Code::INVALID_VALUE);
        }
        let host = block.gpu.is_none();
        let (value, bytes) = match attribute {
            1 => (handles::of_context(block.gpu.unwrap_or(0)), 8),
            2 => (if host { 1 } else { 2 }, 4),
            3 => (address, 8),
            4 if host => (address, 8),
            7 => (block.id + 1, 8),
            8 => (0, 1),
            9 => (block.gpu.unwrap_or(0) as u64, 4),
            11 => (block.base, 8),
            12 => (block.len, 8),
            13 => (1, 1),
            17 => match block.owner {
                Owner::Pool(pool) => (handles::of_pool(pool), 8),
                _ => (0, 8),
            },
            _ => return Err(Code::INVALID_VALUE),
        };
        // SAFETY: by the interface, `data` points to as many bytes as the attribute has.
        unsafe { std::ptr::copy_nonoverlapping(value.to_le_bytes().as_ptr(), data.cast(), bytes) };
        Ok(())
    }
}
