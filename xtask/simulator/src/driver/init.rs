//! The start of the driver, and the devices that there are.

use std::ffi::c_char;

use super::api;
use super::attributes;
use super::handles::{self, Handle};
use super::pointers::Out;
use crate::device::code::{Code, Result};
use crate::device::leaks;
use crate::device::machine::Machine;

/// The version of the driver: 13.0.
const VERSION: i32 = 13000;

/// The GPU that `device` stands for.
///
/// # Errors
/// `INVALID_DEVICE`.
pub fn gpu(machine: &Machine, device: i32) -> Result<usize> {
    let gpu = usize::try_from(device).map_err(|_| Code::INVALID_DEVICE)?;
    if gpu < machine.settings.gpus {
        Ok(gpu)
    } else {
        Err(Code::INVALID_DEVICE)
    }
}

/// What identifies a GPU, 16 bytes.
type Uuid = [u8; 16];

fn uuid(gpu: usize) -> Uuid {
    let mut uuid = *b"phalanx-sim-gpu-";
    uuid[15] = gpu as u8;
    uuid
}

api! {
    cuInit(flags: u32) {
        if flags != 0 {
            return Err(Code::INVALID_VALUE);
        }
        match Machine::start() {
            Ok(machine) if machine.settings.gpus == 0 => Err(Code::NO_DEVICE),
            Ok(_) => {
                leaks::watch_exit();
                Ok(())
            }
            Err(sentence) => {
                eprintln!("simulated device: {sentence}");
                Err(Code::INVALID_VALUE)
            }
        }
    }

    cuDriverGetVersion(version: Out<i32>) {
        version.put(VERSION)
    }

    cuDeviceGetCount(count: Out<i32>) {
        count.put(Machine::get()?.settings.gpus as i32)
    }

    cuDeviceGet(device: Out<i32>, ordinal: i32) {
        gpu(Machine::get()?, ordinal)?;
        device.put(ordinal)
    }

    cuDeviceGetName(name: Out<c_char>, len: i32, device: i32) {
        let gpu = gpu(Machine::get()?, device)?;
        let text = format!("Phalanx simulated GPU {gpu}");
        if name.is_null() || len <= 0 {
            return Err(Code::INVALID_VALUE);
        }
        name.put_text(&text, len as usize)
    }

    cuDeviceGetUuid(id: Out<Uuid>, device: i32) {
        id.put(uuid(gpu(Machine::get()?, device)?))
    }

    cuDeviceGetUuid_v2(id: Out<Uuid>, device: i32) {
        id.put(uuid(gpu(Machine::get()?, device)?))
    }

    cuDeviceGetPCIBusId(text: Out<c_char>, len: i32, device: i32) {
        let gpu = gpu(Machine::get()?, device)?;
        if text.is_null() || len <= 0 {
            return Err(Code::INVALID_VALUE);
        }
        text.put_text(&format!("0000:{:02x}:00.0", gpu + 1), len as usize)
    }

    cuDeviceTotalMem_v2(bytes: Out<usize>, device: i32) {
        let machine = Machine::get()?;
        gpu(machine, device)?;
        bytes.put(machine.settings.memory as usize)
    }

    cuDeviceGetAttribute(value: Out<i32>, attribute: u32, device: i32) {
        let machine = Machine::get()?;
        let gpu = gpu(machine, device)?;
        let value_of = attributes::of_device(attribute, gpu, machine.settings.blocks);
        value.put(value_of.ok_or(Code::INVALID_VALUE)?)
    }

    cuDeviceComputeCapability(major: Out<i32>, minor: Out<i32>, device: i32) {
        gpu(Machine::get()?, device)?;
        major.put(8)?;
        minor.put(1)
    }

    cuDeviceCanAccessPeer(can: Out<i32>, device: i32, peer: i32) {
        let machine = Machine::get()?;
        let (own, peer) = (gpu(machine, device)?, gpu(machine, peer)?);
        can.put(machine.settings.can_access(own, peer).into())
    }

    cuDeviceGetP2PAttribute(value: Out<i32>, attribute: u32, device: i32, peer: i32) {
        let machine = Machine::get()?;
        let (own, peer) = (gpu(machine, device)?, gpu(machine, peer)?);
        if own == peer {
            return Err(Code::INVALID_DEVICE);
        }
        let access = machine.settings.can_access(own, peer);
        value.put(match attribute {
            1 => 0,                  // rank of the speed: all are alike
            2 | 3 => access.into(), // access, and atomic operations
            4 => 0,                  // access to arrays
            _ => return Err(Code::INVALID_VALUE),
        })
    }

    cuDeviceGetDefaultMemPool(pool: Out<Handle>, device: i32) {
        // The first pools are the default pools, in the order of the GPUs.
        pool.put(handles::of_pool(gpu(Machine::get()?, device)?))
    }

    cuDeviceGetMemPool(pool: Out<Handle>, device: i32) {
        let machine = Machine::get()?;
        let gpu = gpu(machine, device)?;
        pool.put(handles::of_pool(machine.lock().contexts[gpu].pool))
    }

    cuDeviceSetMemPool(device: i32, pool: Handle) {
        let machine = Machine::get()?;
        let gpu = gpu(machine, device)?;
        let mut state = machine.lock();
        let pool = handles::pool(&state, pool)?;
        if state.pools[pool].gpu != gpu {
            return Err(Code::INVALID_VALUE);
        }
        state.contexts[gpu].pool = pool;
        Ok(())
    }
}
