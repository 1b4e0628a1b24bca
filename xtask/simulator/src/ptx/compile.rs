//! Generated C to a loaded shared object. Objects are kept in a folder by the hash of what they are made of, and appear
//! there by a rename, so that several processes may fill it at once. This is one of the few files with `unsafe` code.

use std::ffi::{CStr, CString, c_void};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest as _, Sha256};

use super::LoadError;

/// What stands before the code of each module.
const DEVICE: &[&str] = &[
    include_str!("device/base.h"),
    include_str!("device/memory.h"),
    include_str!("device/math.h"),
];

/// Little optimisation: a module takes seconds to compile and, in a test, milliseconds to run. No contraction: a
/// multiplication and an addition are one rounding only where PTX says `fma`.
const OPTIONS: &[&str] = &[
    "-x",
    "c++",
    "-std=c++17",
    "-Og",
    "-fPIC",
    "-shared",
    "-w",
    "-mavx2",
    "-mfma",
    "-mf16c",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fwrapv",
    "-fno-strict-aliasing",
];

/// A shared object in this process; it is unloaded when this goes.
#[derive(Debug)]
pub struct Object {
    handle: *mut c_void,
}

// SAFETY: the handle of dlopen may be used from any thread.
unsafe impl Send for Object {}
// SAFETY: as above; dlsym is thread-safe.
unsafe impl Sync for Object {}

impl Object {
    /// The address of the function `name`.
    pub fn symbol(&self, name: &str) -> Option<*mut c_void> {
        let name = CString::new(name).ok()?;
        // SAFETY: the handle is open as long as `self`, and the name ends with a zero.
        let address = unsafe { libc::dlsym(self.handle, name.as_ptr()) };
        (!address.is_null()).then_some(address)
    }

    fn open(path: &Path) -> Result<Object, LoadError> {
        let name = CString::new(path.as_os_str().as_bytes())
            .map_err(|error| LoadError::Dynamic(error.to_string()))?;
        // SAFETY: the name ends with a zero; generated objects have no constructors that could run.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            // SAFETY: dlerror gives null or a string that lives until the next call in this thread.
            let text = unsafe {
                let text = libc::dlerror();
                if text.is_null() {
                    c"it says no more"
                } else {
                    CStr::from_ptr(text)
                }
            };
            return Err(LoadError::Dynamic(text.to_string_lossy().into_owned()));
        }
        Ok(Object { handle })
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: the handle came from dlopen and is closed once.
        unsafe { libc::dlclose(self.handle) };
    }
}

/// Compiles `source`, or finds it in the folder `cache`, and loads it.
pub fn compile(source: &str, cache: &Path) -> Result<Object, LoadError> {
    if !(is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c"))
    {
        return Err(LoadError::Processor);
    }
    let mut hash = Sha256::new();
    for part in DEVICE.iter().chain(OPTIONS) {
        hash.update(part);
        hash.update([0]);
    }
    hash.update(source);
    let hash: String = hash
        .finalize()
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let ready = cache.join(format!("{hash}.so"));
    if !ready.exists() {
        build(source, cache, &hash, &ready)?;
    }
    Object::open(&ready)
}

fn build(source: &str, cache: &Path, hash: &str, ready: &Path) -> Result<(), LoadError> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let broken = |path: &Path, error| LoadError::Cache {
        path: path.to_owned(),
        error,
    };
    std::fs::create_dir_all(cache).map_err(|error| broken(cache, error))?;
    let unique = format!(
        "{hash}.{}.{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    );
    let text = cache.join(format!("{unique}.cc"));
    let fresh = cache.join(format!("{unique}.so"));
    let whole = DEVICE.concat() + source;
    std::fs::write(&text, whole).map_err(|error| broken(&text, error))?;
    run(&text, &fresh)?;
    let _ = std::fs::remove_file(&text);
    std::fs::rename(&fresh, ready).map_err(|error| broken(ready, error))
}

fn run(text: &PathBuf, fresh: &PathBuf) -> Result<(), LoadError> {
    let mut command = Command::new("g++");
    command
        .args(OPTIONS)
        .arg("-o")
        .arg(fresh)
        .arg(text)
        .arg("-lm");
    // A simulated driver stands first in the library path of this process; the compiler has no need of it.
    command.env_remove("LD_LIBRARY_PATH").stdin(Stdio::null());
    let output = command.output().map_err(|error| {
        let _ = std::fs::remove_file(text);
        LoadError::NoCompiler(error)
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let _ = std::fs::remove_file(fresh);
    let lines: Vec<&str> = said.lines().take(8).collect();
    if lines.is_empty() {
        let error = std::io::Error::other(output.status.to_string());
        return Err(LoadError::NoCompiler(error));
    }
    Err(LoadError::Refused {
        text: text.clone(),
        said: lines.join("\n"),
    })
}
