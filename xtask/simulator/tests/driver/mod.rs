//! Calls of the driver as a program makes them, and programs that run in a process of their own, because a finding stays
//! with its context.

#![allow(dead_code)] // each test file uses its part

use std::ffi::c_void;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use simulator::driver::alloc::*;
use simulator::driver::context::*;
use simulator::driver::copy::*;
use simulator::driver::counts::*;
use simulator::driver::event::*;
use simulator::driver::init::*;
use simulator::driver::launch::*;
use simulator::driver::module::*;
use simulator::driver::pointers::{Array, Out, Text};
use simulator::driver::stream::*;

pub const OUT_OF_MEMORY: u32 = 2;
pub const INVALID_VALUE: u32 = 1;
pub const INVALID_HANDLE: u32 = 400;
pub const NOT_READY: u32 = 600;
pub const ILLEGAL_ADDRESS: u32 = 700;
pub const LAUNCH_FAILED: u32 = 719;
pub const LAUNCH_TIMEOUT: u32 = 702;

/// Calls a function of the driver.
#[macro_export]
macro_rules! call {
    ($name:ident($($arg:expr),* $(,)?)) => {{
        // SAFETY: the tests pass what the interface asks for.
        unsafe { $name($($arg),*) }
    }};
}

/// Calls a function of the driver that must succeed.
#[macro_export]
macro_rules! good {
    ($name:ident($($arg:expr),* $(,)?)) => {
        assert_eq!($crate::call!($name($($arg),*)), 0, stringify!($name))
    };
}

/// A program's use of one GPU: its context, which is current in this thread.
pub struct Gpu {
    pub device: i32,
    pub context: u64,
    pub module: u64,
}

impl Gpu {
    pub fn new(device: i32) -> Gpu {
        good!(cuInit(0));
        let mut context = 0;
        good!(cuDevicePrimaryCtxRetain(Out::to(&mut context), device));
        good!(cuCtxSetCurrent(context));
        let mut module = 0;
        let image = std::ffi::CString::new(include_str!("kernels.ptx")).unwrap();
        good!(cuModuleLoadData(Out::to(&mut module), Text::of(&image)));
        Gpu {
            device,
            context,
            module,
        }
    }

    pub fn bind(&self) {
        good!(cuCtxSetCurrent(self.context));
    }

    /// Ends the context as a program does that leaves nothing behind.
    pub fn end(self) {
        self.bind();
        good!(cuModuleUnload(self.module));
        good!(cuDevicePrimaryCtxRelease_v2(self.device));
    }

    pub fn kernel(&self, name: &str) -> u64 {
        let mut function = 0;
        assert_eq!(self.find(name, &mut function), 0, "{name}");
        function
    }

    fn find(&self, name: &str, function: &mut u64) -> u32 {
        let name = std::ffi::CString::new(name).unwrap();
        call!(cuModuleGetFunction(
            Out::to(function),
            self.module,
            Text::of(&name)
        ))
    }

    pub fn launch(&self, name: &str, stream: u64, n: i32, params: &[&dyn Param]) -> u32 {
        let each: Vec<u64> = params.iter().map(|param| param.address()).collect();
        let mut function = 0;
        let code = self.find(name, &mut function);
        if code != 0 {
            return code;
        }
        let blocks = (n as u32).div_ceil(128).max(1);
        call!(cuLaunchKernel(
            function,
            blocks,
            1,
            1,
            128,
            1,
            1,
            0,
            stream,
            Array::of(&each),
            Array::null()
        ))
    }

    /// `out[i] = value`.
    pub fn fill(&self, stream: u64, out: u64, value: i32, n: i32) -> u32 {
        self.launch("fill", stream, n, &[&out, &value, &n])
    }

    /// `x[i] += 1`.
    pub fn increment(&self, stream: u64, x: u64, n: i32) -> u32 {
        self.launch("increment", stream, n, &[&x, &n])
    }

    /// `out[i] = a[i] + b[i]`.
    pub fn add(&self, stream: u64, out: u64, a: u64, b: u64, n: i32) -> u32 {
        self.launch("add", stream, n, &[&out, &a, &b, &n])
    }
}

/// A value that a kernel gets.
pub trait Param {
    fn address(&self) -> u64;
}

impl Param for u64 {
    fn address(&self) -> u64 {
        std::ptr::from_ref(self) as u64
    }
}

/// `Buffers` of `kernels.cu`.
#[repr(C)]
pub struct Buffers {
    pub out: u64,
    pub ins: [u64; 2],
    pub scale: i32,
}

impl Param for Buffers {
    fn address(&self) -> u64 {
        std::ptr::from_ref(self) as u64
    }
}

impl Param for i32 {
    fn address(&self) -> u64 {
        std::ptr::from_ref(self) as u64
    }
}

/// A stream that has nothing to do with the default stream.
pub fn stream() -> u64 {
    let mut stream = 0;
    good!(cuStreamCreate(Out::to(&mut stream), 1));
    stream
}

/// A stream that takes turns with the default stream.
pub fn blocking_stream() -> u64 {
    let mut stream = 0;
    good!(cuStreamCreate(Out::to(&mut stream), 0));
    stream
}

pub fn event() -> u64 {
    let mut event = 0;
    good!(cuEventCreate(Out::to(&mut event), 2));
    event
}

/// `after` waits for what `before` has been given.
pub fn join(after: u64, before: u64) {
    let event = event();
    good!(cuEventRecord(event, before));
    good!(cuStreamWaitEvent(after, event, 0));
    good!(cuEventDestroy_v2(event));
}

/// Device memory for `n` integers.
pub fn ints(stream: u64, n: usize) -> u64 {
    let mut address = 0;
    good!(cuMemAllocAsync(Out::to(&mut address), 4 * n, stream));
    address
}

pub fn free(address: u64, stream: u64) {
    good!(cuMemFreeAsync(address, stream));
}

/// Copies to pageable memory; the code comes back with the values.
pub fn read(address: u64, n: usize, stream: u64) -> (u32, Vec<i32>) {
    let mut values = vec![0_i32; n];
    let to = values.as_mut_ptr().cast::<c_void>();
    let code = call!(cuMemcpyDtoHAsync_v2(to, address, 4 * n, stream));
    (code, values)
}

pub fn write(address: u64, values: &[i32], stream: u64) {
    let from = values.as_ptr().cast::<c_void>();
    good!(cuMemcpyHtoDAsync_v2(
        address,
        from,
        4 * values.len(),
        stream
    ));
}

pub fn count(kind: simulator::device::report::Count) -> u64 {
    phalanx_simulator_count(kind as u32)
}

/// How often a kernel was launched.
pub fn launched(kernel: &std::ffi::CStr) -> u64 {
    call!(phalanx_simulator_launches(Text::of(kernel)))
}

/// What a program in a process of its own has left.
#[derive(Debug)]
pub struct Outcome {
    pub findings: Vec<String>,
    pub output: String,
}

impl Outcome {
    /// There is a finding, and the first one has all these words in it.
    pub fn finds(&self, words: &[&str]) {
        let first = self
            .findings
            .first()
            .unwrap_or_else(|| panic!("nothing was found: {self:?}"));
        for word in words {
            assert!(first.contains(word), "{word:?} is not in {first:?}");
        }
    }

    pub fn finds_nothing(&self) {
        assert!(self.findings.is_empty(), "{:?}", self.findings);
    }
}

const NAME: &str = "SIMULATOR_TEST_PROGRAM";

/// Runs the program of this name in a process of its own, with these variables.
pub fn run(name: &str, variables: &[(&str, &str)]) -> Outcome {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let file = format!("phalanx-simulator-{}-{number}.txt", std::process::id());
    let report = std::env::temp_dir().join(file);
    let _ = std::fs::remove_file(&report);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["program", "--exact", "--nocapture"]);
    command
        .env(NAME, name)
        .env("PHALANX_SIMULATOR_REPORT", &report);
    let output = command.envs(variables.iter().copied()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} with {variables:?}: {text}");
    let findings = std::fs::read_to_string(&report).unwrap_or_default();
    let _ = std::fs::remove_file(&report);
    Outcome {
        findings: findings.lines().map(str::to_owned).collect(),
        output: text,
    }
}

/// In a process of [`run`]: runs its program. Otherwise nothing.
pub fn run_program(programs: &[(&str, fn())]) {
    if let Ok(name) = std::env::var(NAME) {
        let program = programs.iter().find(|(known, _)| *known == name);
        program
            .unwrap_or_else(|| panic!("there is no program {name}"))
            .1();
    }
}
