//! Copies and fillings: what they do with the bytes, and with what is known of them.

use std::ops::Range;

use super::code::Code;
use super::operation::Failure;
use super::view::View;
use crate::exec::{Memory, Region, Touched};

/// A copy.
pub struct Copy {
    /// Where the bytes come from.
    pub from: Place,
    /// Where they go to.
    pub to: Place,
    /// Bytes.
    pub len: u64,
    /// What [`fingerprint`] gave at the call, if the bytes may not change from then on until the copy has run.
    pub print: Option<u64>,
}

/// One side of a copy.
pub enum Place {
    /// Device memory or pinned memory.
    Known(u64),
    /// Memory of the host that is not pinned. The caller waits, so that it is there when the copy runs.
    Pageable(u64),
    /// A copy of the host's bytes that was made at the call.
    Staged(Box<[u8]>),
}

/// The region that holds `len` bytes from `addr` on, and where they begin in it.
fn span(view: &View<'_>, addr: u64, len: u64, doing: &str) -> Result<(Region, u64), Failure> {
    let region = view
        .find(addr)
        .filter(|region| len <= region.base + region.len - addr);
    let Some(region) = region else {
        let last = addr + len - 1;
        let wrong = if view.find(addr).is_none() {
            addr
        } else {
            last
        };
        return Err(Failure::address(format!(
            "A {doing} {len} bytes at {addr:#x} touches the address {wrong:#x}, {}.",
            view.explain(wrong)
        )));
    };
    Ok((region, addr - region.base))
}

/// Where it stands whether the bytes of a region are valid, from `offset` on; `None` if all are.
fn validity(region: &Region, offset: u64) -> Option<*mut u8> {
    let has = !region.valid.is_null();
    // SAFETY: the offset lies in the region, and `valid` has a byte for each byte of it.
    has.then(|| unsafe { region.valid.add(offset as usize) })
}

fn reads(region: u64, range: Range<u64>) -> Touched {
    Touched {
        region,
        read: Some(range),
        written: None,
    }
}

fn writes(region: u64, range: Range<u64>) -> Touched {
    Touched {
        region,
        read: None,
        written: Some(range),
    }
}

impl Copy {
    /// Copies, and says what it has touched.
    ///
    /// # Errors
    /// There is no such memory, or the bytes are not what they should be.
    pub fn run(&self, view: &View<'_>) -> Result<Vec<Touched>, Failure> {
        // Copies between GPUs need no peer access: the driver can go through the host.
        let view = &View {
            peers: u64::MAX,
            pools: u64::MAX,
            ..*view
        };
        let len = self.len;
        let mut touched = Vec::with_capacity(2);
        let (from, valid_from) = match &self.from {
            Place::Known(addr) => {
                let (region, offset) = span(view, *addr, len, "copy that reads")?;
                touched.push(reads(region.id, offset..offset + len));
                (*addr as *const u8, validity(&region, offset))
            }
            Place::Pageable(addr) => (*addr as *const u8, None),
            Place::Staged(bytes) => (bytes.as_ptr(), None),
        };
        let (to, valid_to) = match &self.to {
            Place::Known(addr) => {
                let (region, offset) = span(view, *addr, len, "copy that writes")?;
                touched.push(writes(region.id, offset..offset + len));
                (*addr as *mut u8, validity(&region, offset))
            }
            Place::Pageable(addr) => (*addr as *mut u8, None),
            Place::Staged(_) => return Ok(Vec::new()),
        };
        let len = len as usize;
        // SAFETY: `len` bytes were found in the region.
        let print = self
            .print
            .map(|before| (before, unsafe { fingerprint(from as u64, len) }));
        if print.is_some_and(|(before, now)| before != now) {
            return Err(Failure {
                code: Code::LAUNCH_FAILED,
                message: format!(
                    "The pinned memory from which a copy of {len} bytes reads was changed after the call and before \
                     the copy ran: the host writes to it without having waited. It begins {}.",
                    view.space.explain(from as u64)
                ),
            });
        }
        if let (Some(valid), None) = (valid_from, valid_to) {
            // SAFETY: `len` bytes were found in the region.
            let valid = unsafe { std::slice::from_raw_parts(valid, len) };
            if let Some(first) = valid.iter().position(|valid| *valid == 0) {
                let missing = valid.iter().filter(|valid| **valid == 0).count();
                let addr = from as u64 + first as u64;
                return Err(Failure {
                    code: Code::LAUNCH_FAILED,
                    message: format!(
                        "A copy of {len} bytes to the host reads {missing} bytes that nothing has written; the first \
                         one is {}.",
                        view.space.explain(addr)
                    ),
                });
            }
        }
        // SAFETY: both sides were found to be regions of at least `len` bytes, or are the caller's memory, for which
        // the driver's interface asks the same; `copy` allows them to overlap.
        unsafe {
            std::ptr::copy(from, to, len);
            match (valid_from, valid_to) {
                (Some(from), Some(to)) => std::ptr::copy(from, to, len),
                (None, Some(to)) => std::ptr::write_bytes(to, 1, len),
                _ => {}
            }
        }
        Ok(touched)
    }
}

/// A number that is another one, but for bad luck, after any of the bytes has changed.
///
/// # Safety
/// `len` bytes from `addr` on may be read.
pub unsafe fn fingerprint(addr: u64, len: usize) -> u64 {
    // SAFETY: the caller's promise.
    let bytes = unsafe { std::slice::from_raw_parts(addr as *const u8, len) };
    let mix = |print: u64, word: u64| {
        (print ^ word)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29)
    };
    let words = bytes.chunks_exact(8);
    let rest = words.remainder();
    let print = words.fold(len as u64, |print, word| {
        mix(print, word.try_into().map_or(0, u64::from_le_bytes))
    });
    rest.iter()
        .fold(print, |print, byte| mix(print, u64::from(*byte)))
}

/// Fills `bytes` with `value`, again and again.
fn repeat(bytes: &mut [u8], value: &[u8]) {
    if let [one] = value {
        return bytes.fill(*one);
    }
    let mut done = value.len().min(bytes.len());
    bytes[..done].copy_from_slice(&value[..done]);
    while done < bytes.len() {
        // What is there already is copied, in pieces that stay in the cache.
        let more = done.min(bytes.len() - done).min(16 << 10);
        bytes.copy_within(..more, done);
        done += more;
    }
}

/// Fills memory with a value, and says what it has touched.
///
/// # Errors
/// There is no such memory.
pub fn set(view: &View<'_>, to: u64, len: u64, value: &[u8]) -> Result<Vec<Touched>, Failure> {
    let (region, offset) = span(view, to, len, "filling that writes")?;
    // SAFETY: the bytes were found in the region, and `valid` has a byte for each of them.
    unsafe {
        let bytes = std::slice::from_raw_parts_mut(region.host.add(offset as usize), len as usize);
        repeat(bytes, value);
        if let Some(valid) = validity(&region, offset) {
            std::ptr::write_bytes(valid, 1, len as usize);
        }
    }
    Ok(vec![writes(region.id, offset..offset + len)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_repeat_whatever_the_length() {
        for len in [0, 1, 2, 3, 1000, 40_001] {
            for value in [&[7][..], &[1, 2], &[1, 2, 3, 4]] {
                let mut bytes = vec![0; len * value.len()];
                repeat(&mut bytes, value);
                assert_eq!(bytes, value.repeat(len));
            }
        }
    }

    #[test]
    fn a_fingerprint_sees_each_byte() {
        let mut bytes = [5_u8; 37];
        // SAFETY: the bytes are there.
        let print = |bytes: &[u8; 37]| unsafe { fingerprint(bytes.as_ptr() as u64, 37) };
        let before = print(&bytes);
        for at in 0..37 {
            bytes[at] ^= 1;
            assert_ne!(print(&bytes), before);
            bytes[at] ^= 1;
        }
        assert_eq!(print(&bytes), before);
    }
}
