//! The CUDA driver library: whether it is there, what it says, and its failures as typed errors.
//!
//! The library is loaded at run time, and the binding panics where a library or a symbol is missing.
//! So [`driver`] looks for everything that this backend calls before anything is called.
#![allow(unsafe_code)]

use crate::{Device, Error};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUresult};
use std::ffi::CStr;
use std::sync::OnceLock;

/// The driver's functions that this backend calls.
const FUNCTIONS: &[&str] = &[
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDeviceGetDefaultMemPool",
    "cuDeviceCanAccessPeer",
    "cuDevicePrimaryCtxRetain",
    "cuCtxEnablePeerAccess",
    "cuCtxSetCurrent",
    "cuStreamCreateWithPriority",
    "cuCtxGetStreamPriorityRange",
    "cuStreamWaitEvent",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventQuery",
    "cuEventSynchronize",
    "cuMemAllocAsync",
    "cuMemFreeAsync",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyPeerAsync",
    "cuMemsetD8Async",
    "cuMemPoolSetAttribute",
    "cuMemPoolGetAttribute",
    "cuMemPoolTrimTo",
    "cuMemPoolSetAccess",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuModuleGetGlobal_v2",
    "cuLaunchKernel",
    "cuGetErrorName",
    "cuGetErrorString",
];

/// Functions by which kernels are loaded before they are launched first; drivers before CUDA 12.4 have
/// none of them.
const LOADING: &[&str] = &[
    "cuModuleGetFunctionCount",
    "cuModuleEnumerateFunctions",
    "cuFuncLoad",
];

/// What the driver says of itself.
#[derive(Debug)]
pub(crate) struct Driver {
    /// As CUDA writes it: 13000 for 13.0.
    pub(crate) version: i32,
    /// How many cards it sees.
    pub(crate) cards: usize,
    /// The process that started it.
    process: u32,
    /// It loads functions when it is asked to, and not only when they are launched first.
    pub(crate) loads_functions: bool,
    /// It tells the time between events (`cuEventElapsedTime_v2`, from CUDA 12.8 on).
    pub(crate) times_events: bool,
    /// It tells the parameters of a kernel (`cuFuncGetParamInfo`, from CUDA 12.4 on).
    pub(crate) tells_params: bool,
}

/// The driver, looked for once; or the sentence that says what is missing.
pub(crate) fn driver() -> Result<&'static Driver, &'static str> {
    static DRIVER: OnceLock<Result<Driver, String>> = OnceLock::new();
    DRIVER.get_or_init(find).as_ref().map_err(String::as_str)
}

fn find() -> Result<Driver, String> {
    // SAFETY: loading the driver library runs its initialisers, which have no requirements.
    if !unsafe { sys::is_culib_present() } {
        return Err("the CUDA driver is not installed (there is no libcuda.so)".into());
    }
    // SAFETY: the library is present, so this does not panic.
    let library = unsafe { sys::culib() };
    // SAFETY: the symbol is only looked for; its type does not matter.
    let has = |name: &&str| unsafe {
        library
            .get::<unsafe extern "C" fn()>(name.as_bytes())
            .is_ok()
    };
    if let Some(name) = FUNCTIONS.iter().find(|name| !has(name)) {
        return Err(format!(
            "the CUDA driver is too old: it has no function {name}"
        ));
    }
    result::init().map_err(|e| match e.0 {
        CUresult::CUDA_ERROR_NO_DEVICE => "the CUDA driver found no card".into(),
        _ => format!("the CUDA driver does not start: {}", sentence(e)),
    })?;
    let mut version = 0;
    // SAFETY: the pointer is valid for one int.
    unsafe { sys::cuDriverGetVersion(&mut version) }
        .result()
        .map_err(|e| format!("the CUDA driver tells no version: {}", sentence(e)))?;
    let cards = result::device::get_count()
        .map_err(|e| format!("the CUDA driver does not count its cards: {}", sentence(e)))?;
    Ok(Driver {
        version,
        cards: cards.try_into().unwrap_or(0),
        process: std::process::id(),
        loads_functions: LOADING.iter().all(has),
        times_events: has(&"cuEventElapsedTime_v2"),
        tells_params: has(&"cuFuncGetParamInfo"),
    })
}

/// Why this process cannot use the driver, if it was forked from one that had started it: contexts and
/// threads of the driver stay with the parent, and calls of the child's would hang or fail at random.
pub(crate) fn forked() -> Option<String> {
    let started_by = driver().ok()?.process;
    let process = std::process::id();
    (started_by != process).then(|| {
        format!(
            "process {started_by} started the CUDA driver, and process {process} was forked from it; a \
             forked process cannot use cards: fork before the first use of a card, or start a new program"
        )
    })
}

/// Name and description of a failure, as the driver words them.
pub(crate) fn sentence(e: DriverError) -> String {
    let text = |found: Result<&CStr, DriverError>| {
        found.map_or_else(
            |_| format!("error {}", e.0 as u32),
            |text| text.to_string_lossy().into_owned(),
        )
    };
    format!("{} ({})", text(e.error_string()), text(e.error_name()))
}

/// The error of the operation `op` where `what` failed on `device`.
pub(crate) fn failed(op: &'static str, device: Device, what: &str, e: DriverError) -> Error {
    Error::DeviceFailed {
        op,
        device,
        reason: format!("{what}: {}", sentence(e)),
    }
}
