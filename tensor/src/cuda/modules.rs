//! The kernels of a card: which sources there are, and the compiled functions that are loaded.
//!
//! Loading code may wait for all that runs on a card, and hold other threads up meanwhile: one of them may be about to
//! issue the part of a collective for which this card waits. So before anything is loaded, the host waits for the comm
//! lane, in a way that holds up nobody.
#![allow(unsafe_code)]

use super::compile::{self, Image};
use super::driver::sentence;
use super::gpu::{Gpu, Handle, Issuing};
use super::lanes::Lane;
use crate::ops::KERNELS;
use crate::{DType, Error, Result};
use cudarc::driver::result::DriverError;
use cudarc::driver::sys::{self, CUresult};
use smallvec::SmallVec;
use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Mutex, PoisonError};

/// The kernels of one family, in CUDA C: a `.cu` file that is compiled for each combination of
/// element types. In it `T` is the first type, `U` the second.
#[derive(Debug)]
pub(crate) struct Source {
    /// The family's name.
    pub(crate) family: &'static str,
    /// Where the text is, for the messages of the compiler.
    pub(crate) path: &'static str,
    /// Text that stands before it, which other families have too.
    pub(crate) before: &'static str,
    /// The text.
    pub(crate) text: &'static str,
    /// Text that stands behind it, which is made from a table.
    pub(crate) after: &'static str,
    /// All combinations of types that are asked for.
    pub(crate) types: &'static [&'static [DType]],
}

/// A family of kernels.
pub(crate) type Kernel = &'static Source;

/// The four float types, one at a time.
pub(crate) const FLOATS: &[&[DType]] =
    &[&[DType::F32], &[DType::F64], &[DType::BF16], &[DType::F16]];

/// The types with arithmetic, one at a time.
pub(crate) const NUMBERS: &[&[DType]] = &[
    &[DType::F32],
    &[DType::F64],
    &[DType::BF16],
    &[DType::F16],
    &[DType::I64],
    &[DType::I32],
    &[DType::U8],
];

/// All types, one at a time.
pub(crate) const TYPES: &[&[DType]] = &[
    &[DType::F32],
    &[DType::F64],
    &[DType::BF16],
    &[DType::F16],
    &[DType::I64],
    &[DType::I32],
    &[DType::U8],
    &[DType::Bool],
];

/// One element type for each size, for what only copies bits.
pub(crate) const SIZES: &[&[DType]] = &[&[DType::U8], &[DType::BF16], &[DType::F32], &[DType::I64]];

/// Copies of strided views, by the size of an element.
pub(crate) static COPY: Source = Source {
    family: "copy",
    path: "tensor/src/cuda/copy.cu",
    before: "",
    text: include_str!("copy.cu"),
    after: "",
    types: SIZES,
};

/// A family, compiled for some types.
#[derive(Debug, Clone)]
pub(crate) struct Variant {
    pub(crate) source: Kernel,
    pub(crate) types: SmallVec<[DType; 2]>,
}

impl Variant {
    pub(crate) fn new(source: Kernel, types: &[DType]) -> Variant {
        Variant {
            source,
            types: types.into(),
        }
    }

    /// All variants of all families.
    pub(crate) fn all() -> impl Iterator<Item = Variant> {
        let sources = [&COPY, &super::index::SOURCE]
            .into_iter()
            .chain(KERNELS.iter().copied());
        sources.flat_map(|source| source.types.iter().map(|types| Variant::new(source, types)))
    }

    /// `unary-f32`.
    pub(crate) fn name(&self) -> String {
        let mut name = self.source.family.to_owned();
        for dtype in &self.types {
            name.push('-');
            name.push_str(dtype.name());
        }
        name
    }
}

/// A function of a loaded module.
#[derive(Debug)]
pub(super) struct Function {
    pub(super) handle: Handle<sys::CUfunction>,
    /// The sizes of its parameters, in bytes, where the driver tells them.
    pub(super) params: Option<SmallVec<[usize; 12]>>,
}

/// Element types of a variant.
pub(super) type Types = SmallVec<[DType; 2]>;

/// What of the kernels is loaded on a card. Nothing is unloaded before the process ends.
#[derive(Debug, Default)]
pub(crate) struct Modules(Mutex<Loaded>);

#[derive(Debug, Default)]
struct Loaded {
    modules: HashMap<(&'static str, Types), Handle<sys::CUmodule>>,
    functions: HashMap<(&'static str, Types, &'static str), &'static Function>,
}

impl Modules {
    /// The kernel `name` of a variant, which is compiled and loaded at its first use.
    pub(super) fn function(
        &self,
        op: &'static str,
        issuing: &mut Issuing,
        variant: Variant,
        name: &'static str,
    ) -> Result<&'static Function> {
        let mut loaded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let family = variant.source.family;
        let key = (family, variant.types, name);
        if let Some(function) = loaded.functions.get(&key) {
            return Ok(function);
        }
        let variant = Variant {
            source: variant.source,
            types: key.1.clone(),
        };
        let gpu = issuing.gpu();
        let module = loaded.module(op, gpu, &variant, || issuing.ready_to_load(op))?;
        let function = find(module, name).map_err(|e| gpu.failed(op, name, e))?;
        let function: &'static Function = Box::leak(Box::new(function));
        loaded.functions.insert(key, function);
        Ok(function)
    }

    /// The address of a variable of a variant, and its size in bytes.
    pub(super) fn variable(
        &self,
        op: &'static str,
        issuing: &mut Issuing,
        variant: &Variant,
        name: &str,
    ) -> Result<(sys::CUdeviceptr, usize)> {
        let gpu = issuing.gpu();
        let mut loaded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let module = loaded.module(op, gpu, variant, || issuing.ready_to_load(op))?;
        let missing = |e| gpu.failed(op, name, e);
        let invalid = |_| missing(DriverError(CUresult::CUDA_ERROR_INVALID_VALUE));
        let text = CString::new(name).map_err(invalid)?;
        let (mut address, mut bytes) = (0, 0);
        // SAFETY: the module is loaded, the name is a C string, both pointers are valid.
        unsafe { sys::cuModuleGetGlobal_v2(&mut address, &mut bytes, module, text.as_ptr()) }
            .result()
            .map_err(missing)?;
        Ok((address, bytes))
    }

    /// Loads every kernel that there is.
    pub(crate) fn load_all(&self, op: &'static str, gpu: &Gpu) -> Result<()> {
        let mut loaded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Variant::all().try_for_each(|variant| {
            let is_ready = || Ok(());
            loaded.module(op, gpu, &variant, is_ready).map(drop)
        })
    }
}

impl Issuing {
    /// Waits until the comm lane has nothing under way. With the issue lock held: what is on the lane needs nobody who
    /// would have to take it.
    pub(super) fn ready_to_load(&mut self, op: &'static str) -> Result<()> {
        let gpu = self.gpu();
        let failed = |e| gpu.failed(op, "waiting for collectives before code is loaded", e);
        match self.lanes().last(Lane::Comm).map_err(failed)? {
            Some(last) if !last.is_passed().map_err(failed)? => last.wait().map_err(failed),
            _ => Ok(()),
        }
    }
}

impl Gpu {
    /// Compiles and loads every kernel that there is.
    pub(crate) fn load_kernels(&'static self, op: &'static str) -> Result<()> {
        self.enter(op)?;
        self.lock().ready_to_load(op)?;
        self.modules.load_all(op, self)
    }
}

impl Loaded {
    /// The module of a variant. All its functions are loaded with it: the rest of a family is used soon, and then
    /// nothing has to wait for the comm lane again.
    fn module(
        &mut self,
        op: &'static str,
        gpu: &Gpu,
        variant: &Variant,
        get_ready: impl FnOnce() -> Result<()>,
    ) -> Result<sys::CUmodule> {
        let key = (variant.source.family, variant.types.clone());
        if let Some(module) = self.modules.get(&key) {
            return Ok(module.0);
        }
        let unavailable = |reason: String| Error::DeviceUnavailable {
            op,
            device: gpu.device(),
            reason,
        };
        let image = compile::image(variant, gpu.capability()).map_err(unavailable)?;
        get_ready()?;
        let module = load(&image).map_err(|e| unavailable(explain(variant, e)))?;
        load_functions(module).map_err(|e| unavailable(explain(variant, e)))?;
        self.modules.insert(key, Handle(module));
        Ok(module)
    }
}

fn load(image: &Image) -> Result<sys::CUmodule, DriverError> {
    let mut module = std::ptr::null_mut();
    // PTX is a text that ends with a zero, and an ELF file knows its own size.
    // SAFETY: the image is one of both, and the card's context is current.
    unsafe { sys::cuModuleLoadData(&mut module, image.bytes().as_ptr().cast()) }.result()?;
    Ok(module)
}

fn explain(variant: &Variant, e: DriverError) -> String {
    let name = variant.name();
    match e.0 {
        CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => format!(
            "the driver is older than the compiler of the kernels {name}: {}",
            sentence(e)
        ),
        _ => format!("the kernels {name} do not load: {}", sentence(e)),
    }
}

fn find(module: sys::CUmodule, name: &str) -> Result<Function, DriverError> {
    let invalid = |_| DriverError(CUresult::CUDA_ERROR_INVALID_VALUE);
    let text = CString::new(name).map_err(invalid)?;
    let mut handle = std::ptr::null_mut();
    // SAFETY: the module is loaded, and the name is a C string.
    unsafe { sys::cuModuleGetFunction(&mut handle, module, text.as_ptr()) }.result()?;
    let driver = super::driver::driver();
    let tells_params = driver.is_ok_and(|driver| driver.tells_params);
    let params = tells_params.then(|| params(handle)).transpose()?;
    Ok(Function {
        handle: Handle(handle),
        params,
    })
}

/// The sizes of a kernel's parameters. They are asked for one by one, until there is none: the function
/// that counts them came with CUDA 13.2.
fn params(function: sys::CUfunction) -> Result<SmallVec<[usize; 12]>, DriverError> {
    let mut params = SmallVec::new();
    loop {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the function is a kernel of a loaded module; both pointers are valid; the driver has
        // this function.
        let asked =
            unsafe { sys::cuFuncGetParamInfo(function, params.len(), &mut offset, &mut size) };
        match asked.result() {
            Ok(()) => params.push(size),
            // Behind the last parameter.
            Err(DriverError(CUresult::CUDA_ERROR_INVALID_VALUE)) => return Ok(params),
            Err(e) => return Err(e),
        }
    }
}

/// Brings the code of all functions of a module to the card now, where the driver can be asked to. By default the driver
/// does so at the first launch of each, which may wait for the card.
fn load_functions(module: sys::CUmodule) -> Result<(), DriverError> {
    if !super::driver::driver().is_ok_and(|driver| driver.loads_functions) {
        return Ok(());
    }
    let mut count = 0;
    // SAFETY: the module is loaded, the pointer is valid, and the driver has this function.
    unsafe { sys::cuModuleGetFunctionCount(&mut count, module) }.result()?;
    let mut functions = vec![std::ptr::null_mut(); count as usize];
    // SAFETY: as above; the array has as many places.
    unsafe { sys::cuModuleEnumerateFunctions(functions.as_mut_ptr(), count, module) }.result()?;
    functions.into_iter().try_for_each(|function| {
        // SAFETY: the function is a kernel of the module, and the driver has this function.
        unsafe { sys::cuFuncLoad(function) }.result()
    })
}
