//! What the simulator's tests share: the real NVRTC, a plain device memory, and a way to launch.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::ffi::{CString, c_char, c_int, c_void};
use std::sync::Mutex;

use simulator::exec::{Checks, Finding, FindingKind, Launch, Memory, Module, Region, Touched, run};

/// NVRTC, as far as it is needed.
struct Nvrtc {
    handle: *mut c_void,
}

type Program = *mut c_void;

impl Nvrtc {
    fn open() -> Option<Nvrtc> {
        // SAFETY: NVRTC has no conditions for being loaded.
        let handle = unsafe { libc::dlopen(c"libnvrtc.so.13".as_ptr(), libc::RTLD_NOW) };
        (!handle.is_null()).then_some(Nvrtc { handle })
    }

    fn symbol(&self, name: &str) -> *mut c_void {
        let name = CString::new(name).unwrap();
        // SAFETY: the handle is open, the name ends with a zero.
        let symbol = unsafe { libc::dlsym(self.handle, name.as_ptr()) };
        assert!(!symbol.is_null(), "NVRTC lacks {name:?}");
        symbol
    }

    fn text(&self, what: &str, program: Program) -> String {
        // SAFETY: both functions have these types in nvrtc.h.
        unsafe {
            let size: extern "C" fn(Program, *mut usize) -> c_int =
                std::mem::transmute(self.symbol(&format!("nvrtcGet{what}Size")));
            let get: extern "C" fn(Program, *mut c_char) -> c_int =
                std::mem::transmute(self.symbol(&format!("nvrtcGet{what}")));
            let mut len = 0;
            assert_eq!(size(program, &mut len), 0);
            let mut bytes = vec![0u8; len];
            assert_eq!(get(program, bytes.as_mut_ptr().cast()), 0);
            bytes.pop();
            String::from_utf8(bytes).unwrap()
        }
    }

    fn compile(&self, name: &str, source: &str) -> String {
        type Create = extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> c_int;
        // SAFETY: the functions have these types in nvrtc.h, and all strings end with a zero.
        unsafe {
            let create: Create = std::mem::transmute(self.symbol("nvrtcCreateProgram"));
            let compile: extern "C" fn(Program, c_int, *const *const c_char) -> c_int =
                std::mem::transmute(self.symbol("nvrtcCompileProgram"));
            let (source, name) = (CString::new(source).unwrap(), CString::new(name).unwrap());
            let mut program = std::ptr::null_mut();
            let null = std::ptr::null();
            assert_eq!(
                create(&mut program, source.as_ptr(), name.as_ptr(), 0, null, null),
                0
            );
            let options = [
                c"--gpu-architecture=compute_80".as_ptr(),
                c"-lineinfo".as_ptr(),
            ];
            let done = compile(program, 2, options.as_ptr());
            assert_eq!(
                done,
                0,
                "NVRTC refuses {name:?}:\n{}",
                self.text("ProgramLog", program)
            );
            self.text("PTX", program)
        }
    }
}

/// The PTX of CUDA C++ text, or none, said loudly, where NVRTC is missing.
pub fn ptx(name: &str, source: &str) -> Option<String> {
    static LOCK: Mutex<()> = Mutex::new(());
    let _lock = LOCK.lock();
    let Some(nvrtc) = Nvrtc::open() else {
        eprintln!(
            "SKIPPED: libnvrtc.so.13 is not in the library path (LD_LIBRARY_PATH), so {name} was not run"
        );
        return None;
    };
    Some(nvrtc.compile(name, source))
}

/// Where the translated kernels of tests are kept.
pub fn cache() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernels")
}

struct Allocation {
    base: u64,
    bytes: Vec<u64>,
    valid: Vec<u8>,
    len: usize,
    writable: bool,
}

/// Device memory: a list of allocations far from each other.
#[derive(Default)]
pub struct Device {
    all: Mutex<Vec<Allocation>>,
}

impl Device {
    fn push(&self, len: usize, valid: u8, writable: bool) -> u64 {
        let mut all = self.all.lock().unwrap();
        let base = 0x7000_0000_0000 + (all.len() as u64) * 0x1_0000_0000;
        all.push(Allocation {
            base,
            bytes: vec![u64::MAX; len.div_ceil(8) + 1],
            valid: vec![valid; len + 8],
            len,
            writable,
        });
        base
    }

    /// Memory that nobody has written.
    pub fn empty(&self, len: usize) -> u64 {
        self.push(len, 0, true)
    }

    /// Memory with these values.
    pub fn with<T: Copy>(&self, values: &[T]) -> u64 {
        let base = self.push(size_of_val(values), 1, true);
        self.write(base, values);
        base
    }

    pub fn write<T: Copy>(&self, base: u64, values: &[T]) {
        let mut all = self.all.lock().unwrap();
        let found = all.iter_mut().find(|known| known.base == base).unwrap();
        assert!(size_of_val(values) <= found.len);
        // SAFETY: the allocation is as long as the values, and those are plain data.
        unsafe {
            std::ptr::copy_nonoverlapping(
                values.as_ptr().cast::<u8>(),
                found.bytes.as_mut_ptr().cast(),
                size_of_val(values),
            )
        };
    }

    pub fn read<T: Copy>(&self, base: u64) -> Vec<T> {
        let all = self.all.lock().unwrap();
        let found = all.iter().find(|known| known.base == base).unwrap();
        let count = found.len / size_of::<T>();
        // SAFETY: the allocation holds that many values of plain data.
        unsafe { std::slice::from_raw_parts(found.bytes.as_ptr().cast::<T>(), count).to_vec() }
    }
}

impl Memory for Device {
    fn find(&self, addr: u64) -> Option<Region> {
        let mut all = self.all.lock().unwrap();
        let id = all
            .iter()
            .position(|known| addr >= known.base && addr - known.base < known.len as u64)?;
        let found = &mut all[id];
        Some(Region {
            id: id as u64,
            base: found.base,
            len: found.len as u64,
            writable: found.writable,
            valid: found.valid.as_mut_ptr(),
            host: found.bytes.as_mut_ptr().cast(),
        })
    }

    fn explain(&self, addr: u64) -> String {
        let all = self.all.lock().unwrap();
        let below = all
            .iter()
            .filter(|known| known.base <= addr)
            .max_by_key(|known| known.base);
        match below {
            Some(known) if addr - known.base < known.len as u64 => {
                format!("byte {} of {} bytes", addr - known.base, known.len)
            }
            Some(known) => format!(
                "{} bytes behind the end of {} bytes",
                addr - known.base - known.len as u64,
                known.len
            ),
            None => "no allocation".to_owned(),
        }
    }
}

/// A module with a device to run it on.
pub struct Bench {
    pub device: Device,
    pub module: Module,
    pub seed: u64,
}

/// An argument of a kernel.
#[derive(Clone, Copy)]
pub enum Arg {
    Pointer(u64),
    Int(i32),
    Long(i64),
    Float(f32),
    Double(f64),
}

impl Bench {
    /// Compiles and loads `source`; none where NVRTC is missing.
    pub fn new(name: &str, source: &str) -> Option<Bench> {
        Bench::checked(name, source, Checks::Usual)
    }

    /// The same, with these checks.
    pub fn checked(name: &str, source: &str, checks: Checks) -> Option<Bench> {
        let module = Module::load(&ptx(name, source)?, &cache(), checks)
            .unwrap_or_else(|error| panic!("{error}"));
        let device = Device::default();
        for name in module.global_names() {
            let var = module.global(&name).unwrap();
            module.bind_global(&name, device.with(&var.bytes));
        }
        Some(Bench {
            device,
            module,
            seed: 0,
        })
    }

    pub fn launch(
        &self,
        name: &str,
        grid: [u32; 3],
        block: [u32; 3],
        shared: usize,
        args: &[Arg],
    ) -> Result<Vec<Touched>, Finding> {
        let kernel = self
            .module
            .kernel(name)
            .unwrap_or_else(|| panic!("no kernel {name}"));
        let mut params = Vec::new();
        for (param, arg) in kernel.params.iter().zip(args) {
            params.resize(param.offset, 0);
            match arg {
                Arg::Pointer(value) => params.extend(value.to_le_bytes()),
                Arg::Int(value) => params.extend(value.to_le_bytes()),
                Arg::Long(value) => params.extend(value.to_le_bytes()),
                Arg::Float(value) => params.extend(value.to_le_bytes()),
                Arg::Double(value) => params.extend(value.to_le_bytes()),
            }
        }
        let launch = Launch {
            grid,
            block,
            dynamic_shared: shared,
            params: &params,
            seed: self.seed,
        };
        run(kernel, &launch, &self.device)
    }

    /// A launch of one dimension that must succeed.
    pub fn go(&self, name: &str, grid: u32, block: u32, args: &[Arg]) {
        self.launch(name, [grid, 1, 1], [block, 1, 1], 0, args)
            .unwrap_or_else(|finding| panic!("{finding}"));
    }

    /// A launch of one dimension that must be found wrong, in this way and at this line of its source.
    pub fn wrong(
        &self,
        name: &str,
        grid: u32,
        block: u32,
        args: &[Arg],
        kind: FindingKind,
        line: u32,
    ) {
        let result = self.launch(name, [grid, 1, 1], [block, 1, 1], 0, args);
        let finding = result.expect_err("the fault was not found");
        eprintln!("{finding}");
        assert_eq!(finding.kind, kind, "{finding}");
        assert!(
            finding.message.contains(&format!(":{line}:"))
                || finding.message.contains(&format!(":{line} ")),
            "{line}: {finding}"
        );
    }
}

/// The number of the line of `source` that holds `mark`.
pub fn line(source: &str, mark: &str) -> u32 {
    let found = source.lines().position(|line| line.contains(mark));
    found.unwrap_or_else(|| panic!("no line holds {mark}")) as u32 + 1
}

/// Runs `kernel` on `n` values of input and output; `FAULT` in the source is 1 for the fault, 0 for its twin.
pub fn both(name: &str, source: &str, kind: FindingKind, block: u32, n: i32) {
    for fault in [0, 1] {
        let text = source.replace("FAULT", &fault.to_string());
        let Some(mut bench) = Bench::new(name, &text) else {
            return;
        };
        for seed in 0..4 {
            bench.seed = seed;
            let x = bench.device.with(&vec![1.5f32; n as usize]);
            let y = bench.device.empty(4 * n as usize);
            let args = [Arg::Pointer(x), Arg::Pointer(y), Arg::Int(n)];
            match fault {
                0 => bench.go("k", 1, block, &args),
                _ => bench.wrong("k", 1, block, &args, kind, line(&text, "HERE")),
            }
        }
    }
}
