//! From the source of a kernel to what a card loads: by NVRTC at run time, and kept on disk.
//!
//! For a card whose architecture NVRTC knows this makes its machine code (CUBIN), for another one PTX
//! for compute capability 8.0, which the driver translates. Sources include no headers, so that
//! nothing of CUDA is needed on the machine but the driver and NVRTC; where the compiled kernels are
//! on disk already, not even NVRTC.
#![allow(unsafe_code)]

use super::cache::{Cache, Key};
use super::driver::driver;
use super::modules::Variant;
use crate::DType;
use cudarc::nvrtc::sys::{self, nvrtcProgram, nvrtcResult};
use std::ffi::{CString, c_char, c_int};
use std::sync::OnceLock;

/// What stands before every source.
const PRELUDE: &str = include_str!("prelude.cu");

/// NVRTC's functions that are called here.
const FUNCTIONS: &[&str] = &[
    "nvrtcVersion",
    "nvrtcGetNumSupportedArchs",
    "nvrtcGetSupportedArchs",
    "nvrtcCreateProgram",
    "nvrtcCompileProgram",
    "nvrtcDestroyProgram",
    "nvrtcGetCUBINSize",
    "nvrtcGetCUBIN",
    "nvrtcGetPTXSize",
    "nvrtcGetPTX",
    "nvrtcGetProgramLogSize",
    "nvrtcGetProgramLog",
];

/// Compiled kernels.
#[derive(Debug)]
pub(crate) struct Image(Vec<u8>);

impl Image {
    /// `bytes` end with a zero where they are PTX.
    pub(crate) fn new(bytes: Vec<u8>) -> Image {
        Image(bytes)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// For which card kernels are compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// Machine code of this compute capability, as 90 for 9.0.
    Cubin(u32),
    /// PTX of compute capability [`PTX`](Target::PTX), which every later card's driver translates.
    Ptx,
}

impl Target {
    /// The compute capability of PTX: 8.0.
    pub(crate) const PTX: u32 = 80;

    /// As NVRTC names it.
    pub(crate) fn architecture(self) -> String {
        match self {
            Target::Cubin(capability) => format!("sm_{capability}"),
            Target::Ptx => format!("compute_{}", Target::PTX),
        }
    }

    pub(crate) fn extension(self) -> &'static str {
        match self {
            Target::Cubin(_) => "cubin",
            Target::Ptx => "ptx",
        }
    }
}

/// NVRTC's version and the architectures that it knows.
#[derive(Debug)]
pub(crate) struct Nvrtc {
    pub(crate) version: (i32, i32),
    architectures: Vec<c_int>,
}

/// NVRTC, looked for once; or the sentence that says what is missing.
pub(crate) fn nvrtc() -> Result<&'static Nvrtc, &'static str> {
    static NVRTC: OnceLock<Result<Nvrtc, String>> = OnceLock::new();
    NVRTC.get_or_init(find).as_ref().map_err(String::as_str)
}

fn find() -> Result<Nvrtc, String> {
    // SAFETY: loading the library runs its initialisers, which have no requirements.
    if !unsafe { sys::is_culib_present() } {
        return Err("NVRTC is not installed (there is no libnvrtc.so)".into());
    }
    // SAFETY: the library is present, so this does not panic.
    let library = unsafe { sys::culib() };
    for name in FUNCTIONS {
        // SAFETY: the symbol is only looked for; its type does not matter.
        if unsafe { library.get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_err() {
            return Err(format!("NVRTC is too old: it has no function {name}"));
        }
    }
    let (mut major, mut minor, mut count) = (0, 0, 0);
    let mut architectures = Vec::new();
    let mut ask = || {
        // SAFETY: the library is present; the pointers are valid, and the array has as many places
        // as NVRTC has said.
        unsafe {
            done(sys::nvrtcVersion(&mut major, &mut minor))?;
            done(sys::nvrtcGetNumSupportedArchs(&mut count))?;
            architectures.resize(usize::try_from(count).unwrap_or(0), 0);
            done(sys::nvrtcGetSupportedArchs(architectures.as_mut_ptr()))
        }
    };
    ask().map_err(|e| format!("NVRTC does not tell its version: {e:?}"))?;
    Ok(Nvrtc {
        version: (major, minor),
        architectures,
    })
}

fn done(result: nvrtcResult) -> Result<(), nvrtcResult> {
    match result {
        nvrtcResult::NVRTC_SUCCESS => Ok(()),
        failed => Err(failed),
    }
}

/// The kernels of `variant` for a card of this compute capability; or the sentence that says why
/// there are none.
pub(super) fn image(variant: &Variant, capability: u32) -> Result<Image, String> {
    let cache = Cache::of_user();
    let nvrtc = match nvrtc()
        .map_err(str::to_owned)
        .and_then(|nvrtc| fits(nvrtc).map(|()| nvrtc))
    {
        Ok(nvrtc) => nvrtc,
        Err(missing) => {
            // Compiled elsewhere, by any version that the driver takes.
            let major = driver()?.version / 1000;
            let targets = [Target::Cubin(capability), Target::Ptx].into_iter();
            let mut found = targets.filter_map(|target| {
                let key = key(variant, target, None);
                cache.as_ref()?.load_any(&key, major)
            });
            return found.next().ok_or_else(|| {
                let name = variant.name();
                format!("{missing}, and the kernels {name} were not compiled before")
            });
        }
    };
    let known = nvrtc.architectures.contains(&(capability as c_int));
    let target = if known {
        Target::Cubin(capability)
    } else {
        Target::Ptx
    };
    let key = key(variant, target, Some(nvrtc.version));
    if let Some(image) = cache.as_ref().and_then(|cache| cache.load(&key)) {
        return Ok(image);
    }
    let image = compile(variant, target)?;
    if let Some(cache) = cache {
        // A cache that cannot be written costs time at the next start, and nothing else.
        let _ = cache.store(&key, &image);
    }
    Ok(image)
}

/// The driver takes what this NVRTC makes.
fn fits(nvrtc: &Nvrtc) -> Result<(), String> {
    let version = driver()?.version;
    let (major, minor) = nvrtc.version;
    if version / 1000 >= major {
        return Ok(());
    }
    Err(format!(
        "the driver is for CUDA {}.{} and NVRTC is of CUDA {major}.{minor}: the driver is too old",
        version / 1000,
        version % 1000 / 10,
    ))
}

/// What decides which code comes out. `version` is NVRTC's; `None` stands for any.
pub(crate) fn key(variant: &Variant, target: Target, version: Option<(i32, i32)>) -> Key {
    Key::new(
        variant.name(),
        target,
        &[&options(variant, target).join(" "), &text(variant)],
        version,
    )
}

fn options(variant: &Variant, target: Target) -> Vec<String> {
    let mut options = vec![
        format!("--gpu-architecture={}", target.architecture()),
        "--std=c++17".into(),
        "-lineinfo".into(),
        "--device-int128".into(),
    ];
    let floats = variant.types.iter().all(|dtype| dtype.is_float());
    options.push(format!("--define-macro=FLOATS={}", u8::from(floats)));
    for (name, dtype) in ["T", "U", "V"].iter().zip(&variant.types) {
        let dtype = match dtype {
            DType::Bool => "boolean", // bool is a word of the language
            dtype => dtype.name(),
        };
        options.push(format!("--define-macro={name}={dtype}"));
    }
    options
}

fn text(variant: &Variant) -> String {
    let source = variant.source;
    format!(
        "#line 1 \"tensor/src/cuda/prelude.cu\"\n{PRELUDE}\n{}\n#line 1 \"{}\"\n{}\n{}",
        source.before, source.path, source.text, source.after
    )
}

/// Calls NVRTC.
pub(crate) fn compile(variant: &Variant, target: Target) -> Result<Image, String> {
    program(variant, target, &[])?.image(variant, target)
}

/// Machine code for `capability`, with what the assembler says of each kernel: its registers and its memory; and for that of
/// PTX also the PTX, which NVRTC has made on the way.
pub(crate) fn compile_aloud(
    variant: &Variant,
    capability: u32,
) -> Result<(Image, Option<Image>, String), String> {
    let target = Target::Cubin(capability);
    let program = program(variant, target, &["--ptxas-options=-v"])?;
    let ptx = (capability == Target::PTX).then(|| program.image(variant, Target::Ptx));
    Ok((
        program.image(variant, target)?,
        ptx.transpose()?,
        program.log(),
    ))
}

/// A program that NVRTC has compiled, with options that do not change the code, so that they are no part of its key.
fn program(variant: &Variant, target: Target, more: &[&str]) -> Result<Program, String> {
    nvrtc()?;
    let c_string = |text: String| {
        CString::new(text).map_err(|_| format!("the source of {} has a zero in it", variant.name()))
    };
    let source = c_string(text(variant))?;
    let name = c_string(variant.source.path.to_owned())?;
    let more = more.iter().map(|option| (*option).to_owned());
    let options = options(variant, target)
        .into_iter()
        .chain(more)
        .map(c_string)
        .collect::<Result<Vec<_>, _>>()?;
    let program = Program::new(&source, &name).map_err(|e| format!("NVRTC: {e:?}"))?;
    let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
    // SAFETY: the program lives; the options are C strings that outlive the call.
    let compiled = done(unsafe {
        sys::nvrtcCompileProgram(program.0, pointers.len() as c_int, pointers.as_ptr())
    });
    if let Err(e) = compiled {
        let log = program.log();
        return Err(format!(
            "NVRTC does not compile {}: {e:?}\n{log}",
            variant.name()
        ));
    }
    Ok(program)
}

/// A program of NVRTC, destroyed on drop.
struct Program(nvrtcProgram);

impl Program {
    fn new(source: &CString, name: &CString) -> Result<Program, nvrtcResult> {
        let mut program = std::ptr::null_mut();
        // SAFETY: both are C strings, and there are no headers. NVRTC copies them.
        done(unsafe {
            sys::nvrtcCreateProgram(
                &mut program,
                source.as_ptr(),
                name.as_ptr(),
                0,
                std::ptr::null(),
                std::ptr::null(),
            )
        })?;
        Ok(Program(program))
    }

    /// The code of a program that was compiled for `target`, or of its PTX for the capability of PTX.
    fn image(&self, variant: &Variant, target: Target) -> Result<Image, String> {
        let bytes = match target {
            // SAFETY: a pair; a program without machine code has one of no bytes.
            Target::Cubin(_) => unsafe { self.fetch(sys::nvrtcGetCUBINSize, sys::nvrtcGetCUBIN) },
            // SAFETY: a pair, and the program was compiled, so it has PTX.
            Target::Ptx => unsafe { self.fetch(sys::nvrtcGetPTXSize, sys::nvrtcGetPTX) },
        };
        match bytes {
            Ok(bytes) if !bytes.is_empty() => Ok(Image(bytes)),
            none => Err(format!(
                "NVRTC gives no code for {}: {none:?}",
                variant.name()
            )),
        }
    }

    /// A result of the program, by a function that tells its size and one that copies it.
    ///
    /// # Safety
    /// Both are a pair of functions of NVRTC, and the program has such a result.
    unsafe fn fetch(
        &self,
        size: unsafe fn(nvrtcProgram, *mut usize) -> nvrtcResult,
        get: unsafe fn(nvrtcProgram, *mut c_char) -> nvrtcResult,
    ) -> Result<Vec<u8>, nvrtcResult> {
        let mut len = 0;
        // SAFETY: the pointer is valid; the caller vouches for the pair.
        done(unsafe { size(self.0, &mut len) })?;
        let mut bytes = vec![0u8; len];
        // SAFETY: there is as much room as the first function has said.
        done(unsafe { get(self.0, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }

    /// What the compiler has said.
    fn log(&self) -> String {
        // SAFETY: the pair of functions of the log, which every program has after a compilation.
        let log = unsafe { self.fetch(sys::nvrtcGetProgramLogSize, sys::nvrtcGetProgramLog) };
        log.map_or_else(
            |e| format!("no log: {e:?}"),
            |log| {
                String::from_utf8_lossy(&log)
                    .trim_end_matches('\0')
                    .to_owned()
            },
        )
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the program was made by nvrtcCreateProgram and is destroyed once.
        unsafe { sys::nvrtcDestroyProgram(&mut self.0) };
    }
}
