//! The shared library as a program finds it: all names are there, and it starts by them.

use std::ffi::{CString, c_char, c_void};
use std::path::PathBuf;

/// The library that was built with this test.
fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let folders = test.ancestors().skip(1).take(2);
    let mut found = folders.map(|folder| folder.join("libsimulator.so"));
    let found = found.find(|file| file.exists());
    found.expect("libsimulator.so lies beside the tests")
}

struct Library(*mut c_void);

impl Library {
    fn open() -> Library {
        let path = CString::new(library().into_os_string().into_encoded_bytes()).unwrap();
        // SAFETY: the library runs no code when it is opened.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!handle.is_null(), "{path:?} cannot be opened");
        Library(handle)
    }

    fn find(&self, name: &str) -> *mut c_void {
        let name = CString::new(name).unwrap();
        // SAFETY: the handle is open, and stays so.
        unsafe { libc::dlsym(self.0, name.as_ptr()) }
    }
}

/// What a library over the driver's interface of CUDA 13.0 may look for, here those that a training program needs.
const NAMES: &str = "cuInit cuDriverGetVersion cuDeviceGetCount cuDeviceGet cuDeviceGetName cuDeviceGetUuid_v2
    cuDeviceGetAttribute cuDeviceTotalMem_v2 cuDevicePrimaryCtxRetain cuDevicePrimaryCtxRelease_v2
    cuDevicePrimaryCtxGetState cuCtxSetCurrent cuCtxGetCurrent cuCtxPushCurrent_v2 cuCtxPopCurrent_v2 cuCtxSynchronize
    cuStreamCreate cuStreamCreateWithPriority cuStreamDestroy_v2 cuStreamSynchronize cuStreamQuery cuStreamWaitEvent
    cuStreamGetCtx cuEventCreate cuEventDestroy_v2 cuEventRecord cuEventQuery cuEventSynchronize cuEventElapsedTime
    cuEventElapsedTime_v2 cuMemAllocAsync cuMemFreeAsync cuMemAllocFromPoolAsync cuMemAlloc_v2 cuMemFree_v2
    cuMemHostAlloc cuMemAllocHost_v2 cuMemFreeHost cuMemHostRegister_v2 cuMemHostUnregister cuMemcpyHtoDAsync_v2
    cuMemcpyDtoHAsync_v2 cuMemcpyDtoDAsync_v2 cuMemcpyHtoD_v2 cuMemcpyDtoH_v2 cuMemcpyDtoD_v2 cuMemcpyPeerAsync
    cuMemcpyAsync cuMemsetD8Async cuMemsetD16Async cuMemsetD32Async cuMemsetD8_v2 cuMemGetInfo_v2
    cuDeviceGetDefaultMemPool cuMemPoolSetAttribute cuMemPoolGetAttribute cuMemPoolTrimTo cuMemPoolSetAccess
    cuModuleLoadData cuModuleLoadDataEx cuModuleUnload cuModuleGetFunction cuModuleGetGlobal_v2 cuFuncGetAttribute
    cuModuleGetFunctionCount cuModuleEnumerateFunctions cuFuncLoad cuFuncIsLoaded cuFuncGetParamInfo
    cuFuncSetAttribute cuFuncSetCacheConfig cuOccupancyMaxActiveBlocksPerMultiprocessor cuLaunchKernel cuLaunchKernelEx
    cuLaunchHostFunc cuPointerGetAttribute cuDeviceCanAccessPeer cuCtxEnablePeerAccess cuGetErrorName cuGetErrorString
    cuGetProcAddress_v2 cuGraphLaunch cuStreamBeginCapture_v2 cuMemAllocManaged phalanx_simulator_count
    phalanx_simulator_findings phalanx_simulator_finding phalanx_simulator_keep phalanx_simulator_launches
    ncclGetVersion ncclGetUniqueId ncclCommInitRank ncclCommInitRankConfig ncclCommInitAll ncclCommSplit
    ncclCommFinalize ncclCommDestroy ncclCommAbort ncclCommGetAsyncError ncclGetErrorString ncclGetLastError
    ncclCommCount ncclCommCuDevice ncclCommUserRank ncclAllReduce ncclBroadcast ncclBcast ncclReduce ncclAllGather
    ncclReduceScatter ncclAlltoAll ncclGather ncclScatter ncclSend ncclRecv ncclGroupStart ncclGroupEnd ncclMemAlloc";

#[test]
fn all_names_are_there() {
    let library = Library::open();
    for name in NAMES.split_whitespace() {
        assert!(!library.find(name).is_null(), "{name} is missing");
    }
}

#[test]
fn the_newest_version_of_a_function_is_found() {
    type Lookup = unsafe extern "C" fn(*const c_char, *mut *mut c_void, i32, u64, *mut u32) -> u32;
    let library = Library::open();
    // SAFETY: this is the function's type.
    let lookup: Lookup = unsafe { std::mem::transmute(library.find("cuGetProcAddress_v2")) };
    let find = |name: &std::ffi::CStr| {
        let (mut function, mut status) = (std::ptr::null_mut(), 9);
        // SAFETY: the pointers are good for the call.
        let code = unsafe { lookup(name.as_ptr(), &mut function, 13000, 0, &mut status) };
        (code, function, status)
    };
    assert_eq!(find(c"cuMemAlloc"), (0, library.find("cuMemAlloc_v2"), 0));
    assert_eq!(find(c"cuInit"), (0, library.find("cuInit"), 0));
    assert_eq!(find(c"cuNothing"), (500, std::ptr::null_mut(), 1));
}

#[test]
fn it_starts() {
    let library = Library::open();
    // SAFETY: these are the functions' types.
    let (init, version, count) = unsafe {
        let init: unsafe extern "C" fn(u32) -> u32 = std::mem::transmute(library.find("cuInit"));
        let number = |name| {
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut i32) -> u32>(
                library.find(name),
            )
        };
        (
            init,
            number("cuDriverGetVersion"),
            number("cuDeviceGetCount"),
        )
    };
    let (mut is, mut gpus) = (0, 0);
    // SAFETY: the pointers are good for the calls.
    let codes = unsafe { [init(0), version(&mut is), count(&mut gpus)] };
    assert_eq!((codes, is, gpus), ([0; 3], 13000, 1));
}
