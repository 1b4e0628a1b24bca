//! Names of errors, and the addresses of the interface's functions.

use std::ffi::{CString, c_char, c_void};

use super::api;
use super::pointers::{Out, Text};
use crate::device::code::Code;

/// The suffixes of the versions of a function, the newest first.
const SUFFIXES: [&str; 4] = ["_v4", "_v3", "_v2", ""];

/// The address of a function of this library. Null if there is none, or if the library is part of a program.
fn address(name: &str) -> *mut c_void {
    let Ok(name) = CString::new(name) else {
        return std::ptr::null_mut();
    };
    // SAFETY: `dladdr` fills the structure if it returns a number that is not zero; the path that it gives is a text.
    // The library is loaded, so that opening it once more runs none of its code.
    unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        if libc::dladdr(cuGetErrorName as *const c_void, &mut info) == 0 {
            return std::ptr::null_mut();
        }
        let library = libc::dlopen(info.dli_fname, libc::RTLD_LAZY | libc::RTLD_NOLOAD);
        if library.is_null() {
            return std::ptr::null_mut();
        }
        libc::dlsym(library, name.as_ptr())
    }
}

api! {
    cuGetErrorName(code: u32, text: Out<*const c_char>) {
        let name = match code {
            0 => Some(c"CUDA_SUCCESS"),
            code => Code(code).name(),
        };
        text.put(name.map_or(std::ptr::null(), |name| name.as_ptr()))?;
        name.map(|_| ()).ok_or(Code::INVALID_VALUE)
    }

    cuGetErrorString(code: u32, text: Out<*const c_char>) {
        // The names say as much as the driver's sentences.
        let name = match code {
            0 => Some(c"no error"),
            code => Code(code).name(),
        };
        text.put(name.map_or(std::ptr::null(), |name| name.as_ptr()))?;
        name.map(|_| ()).ok_or(Code::INVALID_VALUE)
    }

    cuGetExportTable(_table: Out<*const c_void>, _id: *const c_void) {
        // The vendor's compiler asks for tables that are not public, and goes on without them.
        Err(Code::NOT_SUPPORTED)
    }

    cuGetProcAddress_v2(
        symbol: Text,
        function: Out<*mut c_void>,
        _version: i32,
        _flags: u64,
        status: Out<u32>,
    ) {
        let name = symbol.get()?;
        let found = SUFFIXES.iter().map(|suffix| address(&format!("{name}{suffix}")));
        let found = found.into_iter().find(|address| !address.is_null());
        // 1: the symbol is not there.
        status.put_if_asked(if found.is_some() { 0 } else { 1 });
        function.put(found.unwrap_or(std::ptr::null_mut()))?;
        found.map(|_| ()).ok_or(Code::NOT_FOUND)
    }
}
