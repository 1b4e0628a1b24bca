//! Pointers that come through the C interface: the places where a caller's memory is read or written.

use std::ffi::{CStr, c_char};

use crate::device::code::{Code, Result};

/// Where a result goes: a pointer of the caller that points to a `T` it may be written to, or is null.
#[derive(Debug)]
#[repr(transparent)]
pub struct Out<T>(*mut T);

impl<T> Clone for Out<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Out<T> {}

impl<T> Out<T> {
    /// Writes to `place`.
    pub fn to(place: &mut T) -> Out<T> {
        Out(place)
    }

    /// Writes nowhere.
    pub fn null() -> Out<T> {
        Out(std::ptr::null_mut())
    }

    /// Whether there is no place for the result.
    pub fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// Hands out the result.
    ///
    /// # Errors
    /// `INVALID_VALUE` if the pointer is null.
    pub fn put(&self, value: T) -> Result<()> {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: by the type's invariant the pointer may be written to. C need not align what it passes.
        unsafe { self.0.write_unaligned(value) };
        Ok(())
    }

    /// The place of the result `index` of several.
    pub fn at(&self, index: usize) -> Out<T> {
        Out(self.0.wrapping_add(index))
    }

    /// Hands out the result if it is asked for.
    pub fn put_if_asked(&self, value: T) {
        let _ = self.put(value);
    }
}

/// A text of the caller: a pointer to bytes that end with a zero, or null.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Text(*const c_char);

impl Text {
    /// A text.
    pub fn of(text: &CStr) -> Text {
        Text(text.as_ptr())
    }

    /// The bytes of the text.
    ///
    /// # Errors
    /// `INVALID_VALUE` if the pointer is null.
    pub fn bytes(&self) -> Result<&[u8]> {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: by the type's invariant.
        Ok(unsafe { CStr::from_ptr(self.0) }.to_bytes())
    }

    /// The text.
    ///
    /// # Errors
    /// `INVALID_VALUE` if the pointer is null or the text is no UTF-8.
    pub fn get(&self) -> Result<&str> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Code::INVALID_VALUE)
    }
}

/// An array of the caller: a pointer to as many `T` as a call says, or null.
#[derive(Debug)]
#[repr(transparent)]
pub struct Array<T>(*const T);

impl<T> Clone for Array<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> std::marker::Copy for Array<T> {}

impl<T: std::marker::Copy> Array<T> {
    /// The array that begins here.
    pub fn of(array: &[T]) -> Array<T> {
        Array(array.as_ptr())
    }

    /// The array that begins at an address of the caller.
    pub fn at(address: u64) -> Array<T> {
        Array(address as *const T)
    }

    /// No array.
    pub fn null() -> Array<T> {
        Array(std::ptr::null())
    }

    /// Whether there is no array.
    pub fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// A copy of one of its items.
    ///
    /// # Errors
    /// `INVALID_VALUE` if the pointer is null.
    pub fn item(&self, index: usize) -> Result<T> {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: by the type's invariant, for an index that the call says is there.
        Ok(unsafe { self.0.add(index).read_unaligned() })
    }

    /// A copy of its first `count` items.
    ///
    /// # Errors
    /// `INVALID_VALUE` if the pointer is null.
    pub fn items(&self, count: usize) -> Result<Vec<T>> {
        (0..count).map(|index| self.item(index)).collect()
    }
}

/// A copy of `len` bytes of the caller's memory at `address`.
///
/// # Safety
/// The bytes are there and may be read.
pub unsafe fn bytes(address: u64, len: usize) -> Box<[u8]> {
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(address as *const u8, len) }.into()
}

impl Out<c_char> {
    /// Hands out a text with a zero at its end, cut so that it fits into `len` bytes.
    ///
    /// # Errors
    /// `INVALID_VALUE` if the pointer is null.
    pub fn put_text(&self, text: &str, len: usize) -> Result<()> {
        if self.0.is_null() || len == 0 {
            return Err(Code::INVALID_VALUE);
        }
        let bytes = &text.as_bytes()[..text.len().min(len - 1)];
        // SAFETY: by the type's invariant and the call, `len` bytes may be written.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.cast(), bytes.len());
            self.0.add(bytes.len()).write(0);
        }
        Ok(())
    }
}
