//! The cards of this machine, as the CUDA driver tells of them, and whether the system's loader finds a library.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A library that is loaded. It stays so, because what it has started may still run.
pub struct Library(*mut c_void);

impl Library {
    /// Loads the library of this path, or of this name where the loader looks.
    pub fn open(path: impl AsRef<Path>) -> Option<Library> {
        let name = CString::new(path.as_ref().as_os_str().as_bytes()).ok()?;
        // SAFETY: the name is a C string. Only libraries of CUDA are opened, whose initialisers have no requirements.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        (!handle.is_null()).then_some(Library(handle))
    }

    fn symbol(&self, name: &CStr) -> Option<*mut c_void> {
        // SAFETY: the handle is that of a library which is never closed, and the name is a C string.
        let symbol = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        (!symbol.is_null()).then_some(symbol)
    }
}

/// The version of NVRTC in this library, as CUDA counts: (13, 0).
pub fn nvrtc_version(library: &Library) -> Option<(i32, i32)> {
    type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;
    let symbol = library.symbol(c"nvrtcVersion")?;
    // SAFETY: NVRTC's documentation gives this function this type.
    let version = unsafe { std::mem::transmute::<*mut c_void, Version>(symbol) };
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both pointers are valid for one int.
    (unsafe { version(&mut major, &mut minor) } == 0).then_some((major, minor))
}

/// The driver and its cards.
#[derive(Clone)]
pub struct Driver {
    /// The newest CUDA that it serves, as it writes it: 13000 for 13.0.
    cuda: i32,
    /// The names of its cards.
    pub cards: Vec<String>,
}

impl Driver {
    /// Asks the driver; `None` if there is none, or none that sees a card. A simulated driver is none.
    pub fn find() -> Option<Driver> {
        let library = ["libcuda.so.1", "libcuda.so"].into_iter();
        let library = library.filter_map(Library::open).next()?;
        if library.symbol(c"phalanx_simulator_count").is_some() {
            return None;
        }
        type Init = unsafe extern "C" fn(u32) -> c_int;
        type Number = unsafe extern "C" fn(*mut c_int) -> c_int;
        type Name = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
        let init = library.symbol(c"cuInit")?;
        let version = library.symbol(c"cuDriverGetVersion")?;
        let count = library.symbol(c"cuDeviceGetCount")?;
        let name = library.symbol(c"cuDeviceGetName")?;
        // SAFETY: the documentation of the driver gives these functions these types. An ordinal serves as the handle
        // of a device, which is an int.
        let (init, version, count, name) = unsafe {
            (
                std::mem::transmute::<*mut c_void, Init>(init),
                std::mem::transmute::<*mut c_void, Number>(version),
                std::mem::transmute::<*mut c_void, Number>(count),
                std::mem::transmute::<*mut c_void, Name>(name),
            )
        };
        let (mut cuda, mut cards) = (0, 0);
        // SAFETY: the driver is initialised first, and each pointer is valid for one int.
        let failed = unsafe { init(0) != 0 || version(&mut cuda) != 0 || count(&mut cards) != 0 };
        if failed || cards == 0 {
            return None;
        }
        let name = |card| {
            let mut text = [0; 256];
            // SAFETY: there is room for as many bytes as the call says, and the last one stays a zero.
            let failed = unsafe { name(text.as_mut_ptr(), text.len() as c_int - 1, card) } != 0;
            // SAFETY: the text ends with a zero, within the array.
            let text = unsafe { CStr::from_ptr(text.as_ptr()) };
            match failed {
                true => "a card without a name".to_owned(),
                false => text.to_string_lossy().into_owned(),
            }
        };
        Some(Driver {
            cuda,
            cards: (0..cards).map(name).collect(),
        })
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = (self.cuda / 1000, self.cuda % 1000 / 10);
        // NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.82.07  Wed Aug 27 …
        let kernel = fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
        let kernel = kernel.lines().next().and_then(|line| {
            line.split_whitespace()
                .find(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'))
        });
        write!(
            f,
            "real cards: {}; driver {}, for CUDA {major}.{minor}",
            self.cards.join(", "),
            kernel.unwrap_or("of unknown version")
        )
    }
}
