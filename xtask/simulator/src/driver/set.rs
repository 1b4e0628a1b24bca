//! Fillings of memory with a value.

use super::api;
use super::copy::check;
use super::handles::{self, Handle};
use crate::device::code::{Code, Result};
use crate::device::machine::Machine;
use crate::device::operation::Work;
use crate::device::report::Count;

fn set(to: u64, value: u32, width: u8, count: usize, stream: Handle) -> Result<()> {
    let machine = Machine::get()?;
    let mut state = machine.lock();
    let stream = handles::stream(machine, &mut state, stream)?;
    if count == 0 {
        return Ok(());
    }
    let len = (count as u64)
        .checked_mul(width.into())
        .ok_or(Code::INVALID_VALUE)?;
    if !to.is_multiple_of(width.into()) || !check(machine, to, len, "A filling that writes")? {
        return Err(Code::INVALID_VALUE);
    }
    machine.report.count(Count::Sets);
    let value = value.to_le_bytes();
    let work = Work::Set {
        to,
        len,
        value,
        width,
    };
    machine.submit(state, stream, work).map(|_| ())
}

api! {
    cuMemsetD8Async(to: u64, value: u8, count: usize, stream: Handle) {
        set(to, value.into(), 1, count, stream)
    }

    cuMemsetD16Async(to: u64, value: u16, count: usize, stream: Handle) {
        set(to, value.into(), 2, count, stream)
    }

    cuMemsetD32Async(to: u64, value: u32, count: usize, stream: Handle) {
        set(to, value, 4, count, stream)
    }

    cuMemsetD8_v2(to: u64, value: u8, count: usize) {
        set(to, value.into(), 1, count, 0)
    }

    cuMemsetD16_v2(to: u64, value: u16, count: usize) {
        set(to, value.into(), 2, count, 0)
    }

    cuMemsetD32_v2(to: u64, value: u32, count: usize) {
        set(to, value, 4, count, 0)
    }
}
