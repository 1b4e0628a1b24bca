//! [`Library`]: NCCL's functions, of whatever `libnccl` the machine has. It is looked for at run time, under the name
//! that installations without headers have, too.
#![allow(unsafe_code)]

use crate::env;
use cudarc::nccl::sys::{
    self, ncclComm_t, ncclConfig_t, ncclDataType_t, ncclRedOp_t, ncclResult_t, ncclUniqueId,
};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A `cudaStream_t`.
type Stream = sys::cudaStream_t;

macro_rules! functions {
    ($($name:ident($($arg:ty),*) $(-> $gives:ty)?;)*) => {
        /// NCCL's functions, by their names.
        #[allow(non_snake_case)]
        pub(super) struct Library {
            $(pub(super) $name: unsafe extern "C" fn($($arg),*) $(-> $gives)?,)*
            /// Never unloaded: the functions are used as long as the process lives.
            _library: libloading::Library,
        }

        impl Library {
            /// The functions of a loaded library; or the name of one that it lacks.
            fn of(library: libloading::Library) -> Result<Library, &'static str> {
                Ok(Library {
                    // SAFETY: the types are those of NCCL's headers, from the binding.
                    $($name: *unsafe { library.get(concat!(stringify!($name), "\0")) }
                        .map_err(|_| stringify!($name))?,)*
                    _library: library,
                })
            }
        }
    };
}

functions! {
    ncclGetVersion(*mut c_int) -> ncclResult_t;
    ncclGetUniqueId(*mut ncclUniqueId) -> ncclResult_t;
    ncclCommInitRankConfig(*mut ncclComm_t, c_int, ncclUniqueId, c_int, *mut ncclConfig_t) -> ncclResult_t;
    ncclCommSplit(ncclComm_t, c_int, c_int, *mut ncclComm_t, *mut ncclConfig_t) -> ncclResult_t;
    ncclCommCount(ncclComm_t, *mut c_int) -> ncclResult_t;
    ncclCommUserRank(ncclComm_t, *mut c_int) -> ncclResult_t;
    ncclCommFinalize(ncclComm_t) -> ncclResult_t;
    ncclCommDestroy(ncclComm_t) -> ncclResult_t;
    ncclCommAbort(ncclComm_t) -> ncclResult_t;
    ncclCommGetAsyncError(ncclComm_t, *mut ncclResult_t) -> ncclResult_t;
    ncclGetErrorString(ncclResult_t) -> *const c_char;
    ncclGetLastError(ncclComm_t) -> *const c_char;
    ncclAllReduce(*const c_void, *mut c_void, usize, ncclDataType_t, ncclRedOp_t, ncclComm_t, Stream) -> ncclResult_t;
    ncclReduce(*const c_void, *mut c_void, usize, ncclDataType_t, ncclRedOp_t, c_int, ncclComm_t, Stream)
        -> ncclResult_t;
    ncclReduceScatter(*const c_void, *mut c_void, usize, ncclDataType_t, ncclRedOp_t, ncclComm_t, Stream)
        -> ncclResult_t;
    ncclBroadcast(*const c_void, *mut c_void, usize, ncclDataType_t, c_int, ncclComm_t, Stream) -> ncclResult_t;
    ncclAllGather(*const c_void, *mut c_void, usize, ncclDataType_t, ncclComm_t, Stream) -> ncclResult_t;
    ncclSend(*const c_void, usize, ncclDataType_t, c_int, ncclComm_t, Stream) -> ncclResult_t;
    ncclRecv(*mut c_void, usize, ncclDataType_t, c_int, ncclComm_t, Stream) -> ncclResult_t;
    ncclGroupStart() -> ncclResult_t;
    ncclGroupEnd() -> ncclResult_t;
}

/// The names of the library: the second one is there where its headers are installed, too.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// The oldest version that serves: its communicators start without holding the host, and are aborted at any time.
const LEAST_VERSION: c_int = 21_800;

/// The library, looked for once; or the sentence that says what is missing.
pub(super) fn library() -> Result<&'static Library, &'static str> {
    static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
    let found = LIBRARY.get_or_init(find);
    found.as_ref().map_err(String::as_str)
}

fn find() -> Result<Library, String> {
    let prefixes = env::python_prefixes();
    let wheels = prefixes.iter().filter_map(|prefix| of_wheel(prefix));
    let mut places = NAMES.map(PathBuf::from).into_iter().chain(wheels);
    // SAFETY: loading the library runs its initialisers, which have no requirements.
    let found = places.find_map(|place| unsafe { libloading::Library::new(place) }.ok());
    let library = found.ok_or_else(|| {
        format!(
            "NCCL is not installed (there is no {}, neither where the loader looks nor among Python's packages; its \
             folder can be named in LD_LIBRARY_PATH)",
            NAMES[0]
        )
    })?;
    let library = Library::of(library).map_err(|name| format!("NCCL has no function {name}"))?;
    let mut version = 0;
    // SAFETY: the pointer is valid for one int.
    let told = unsafe { (library.ncclGetVersion)(&mut version) };
    if told != ncclResult_t::ncclSuccess {
        return Err(format!("NCCL tells no version: {}", library.sentence(told)));
    }
    if version < LEAST_VERSION {
        return Err(format!(
            "NCCL is of version {}, and {} or later is needed",
            written(version),
            written(LEAST_VERSION)
        ));
    }
    Ok(library)
}

/// The library of the wheel `nvidia-nccl-cu13` or its like, which some Python under `prefix` has.
fn of_wheel(prefix: &Path) -> Option<PathBuf> {
    let pythons = ["lib", "lib64"].into_iter().flat_map(|lib| {
        let folders = fs::read_dir(prefix.join(lib)).into_iter().flatten();
        let is_python = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("python3")
        };
        let paths = folders.filter_map(|entry| Some(entry.ok()?.path()));
        paths.filter(is_python).collect::<Vec<_>>()
    });
    let packages = pythons.flat_map(|python| {
        ["site-packages", "dist-packages"].map(|packages| python.join(packages))
    });
    let libraries = packages.map(|packages| packages.join("nvidia/nccl/lib").join(NAMES[0]));
    libraries.into_iter().find(|library| library.is_file())
}

/// A version, as NCCL counts from 2.9 on: 22809 is 2.28.9.
fn written(version: c_int) -> String {
    let (major, rest) = (version / 10_000, version % 10_000);
    format!("{major}.{}.{}", rest / 100, rest % 100)
}

impl Library {
    /// What a result means, in NCCL's words.
    pub(super) fn sentence(&self, result: ncclResult_t) -> String {
        // SAFETY: it gives a string that lives as long as the library.
        let text = unsafe { (self.ncclGetErrorString)(result) };
        match text.is_null() {
            true => format!("error {}", result as u32),
            // SAFETY: as above.
            false => unsafe { CStr::from_ptr(text) }
                .to_string_lossy()
                .into_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wheels_library_is_found() {
        let prefix = std::env::temp_dir().join(format!("phalanx-wheel-{}", std::process::id()));
        assert_eq!(of_wheel(&prefix), None);
        let folder = prefix.join("lib/python3.13/site-packages/nvidia/nccl/lib");
        fs::create_dir_all(&folder).unwrap();
        assert_eq!(of_wheel(&prefix), None);
        let library = folder.join("libnccl.so.2");
        fs::write(&library, "").unwrap();
        assert_eq!(of_wheel(&prefix), Some(library));
        fs::remove_dir_all(prefix).unwrap();
    }

    #[test]
    fn versions_are_written_as_nccl_writes_them() {
        assert_eq!(written(22_809), "2.28.9");
        assert_eq!(written(LEAST_VERSION), "2.18.0");
    }
}
