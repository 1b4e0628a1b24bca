//! The bytes of a rank's buffers: read and written as a part of an operation, with the checks that copies have.

use crate::device::code::Code;
use crate::device::operation::Failure;
use crate::exec::{Memory, Region, Touched};

fn find(
    memory: &dyn Memory,
    who: &str,
    verb: &str,
    at: u64,
    len: u64,
) -> Result<(Region, u64), Failure> {
    let region = memory
        .find(at)
        .filter(|region| len <= region.base + region.len - at);
    let Some(region) = region else {
        let wrong = match memory.find(at) {
            None => at,
            Some(_) => at + len - 1,
        };
        return Err(Failure::address(format!(
            "{who} {verb} {len} bytes at {at:#x} and touches the address {wrong:#x}, {}.",
            memory.explain(wrong)
        )));
    };
    Ok((region, at - region.base))
}

/// A copy of `len` bytes, all of which must have been written.
///
/// # Errors
/// There is no such memory, or nothing has written some of the bytes.
pub fn read(
    memory: &dyn Memory,
    who: &str,
    at: u64,
    len: u64,
    touched: &mut Vec<Touched>,
) -> Result<Vec<u8>, Failure> {
    if len == 0 {
        return Ok(Vec::new());
    }
    let (region, offset) = find(memory, who, "reads", at, len)?;
    // SAFETY: `len` bytes from the offset on were found in the region, for which `host` has its bytes, and `valid` as
    // many if it is not null. While the operation runs, nothing that is ordered with it touches them.
    let (bytes, valid) = unsafe {
        let valid = match region.valid.is_null() {
            true => &[][..],
            false => std::slice::from_raw_parts(region.valid.add(offset as usize), len as usize),
        };
        let bytes = std::slice::from_raw_parts(region.host.add(offset as usize), len as usize);
        (bytes.to_vec(), valid)
    };
    if let Some(first) = valid.iter().position(|valid| *valid == 0) {
        let missing = valid.iter().filter(|valid| **valid == 0).count();
        return Err(Failure {
            code: Code::LAUNCH_FAILED,
            message: format!(
                "{who} reads {missing} bytes that nothing has written; the first one is {}.",
                memory.explain(at + first as u64)
            ),
        });
    }
    touched.push(Touched {
        region: region.id,
        read: Some(offset..offset + len),
        written: None,
    });
    Ok(bytes)
}

/// Writes bytes.
///
/// # Errors
/// There is no such memory.
pub fn write(
    memory: &dyn Memory,
    who: &str,
    at: u64,
    bytes: &[u8],
    touched: &mut Vec<Touched>,
) -> Result<(), Failure> {
    let len = bytes.len() as u64;
    if len == 0 {
        return Ok(());
    }
    let (region, offset) = find(memory, who, "writes", at, len)?;
    // SAFETY: as in `read`.
    unsafe {
        let to = region.host.add(offset as usize);
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        if !region.valid.is_null() {
            std::ptr::write_bytes(region.valid.add(offset as usize), 1, bytes.len());
        }
    }
    touched.push(Touched {
        region: region.id,
        read: None,
        written: Some(offset..offset + len),
    });
    Ok(())
}
