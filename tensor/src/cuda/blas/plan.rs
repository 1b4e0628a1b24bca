//! [`Blas`]: cuBLASLt on one card, and how it computes each product that it was asked for.
//!
//! Which algorithm suits a product is asked of cuBLASLt once for each kind of product ([`Key`]), and
//! kept. An algorithm was chosen for operands of some alignment, so that is part of the kind.
#![allow(unsafe_code)]

use super::{EPILOGUE_ALIGNMENT, Epilogue, Function, missing};
use crate::cuda::gpu::{Gpu, Issuing};
use crate::{DType, Error, Result};
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{
    self, cublasComputeType_t as ComputeType, cublasLtEpilogue_t as LtEpilogue,
    cublasLtMatmulDescAttributes_t as DescAttribute,
    cublasLtMatmulPreferenceAttributes_t as PreferenceAttribute,
    cublasLtMatrixLayoutAttribute_t as LayoutAttribute,
    cublasLtReductionScheme_t as ReductionScheme, cudaDataType_t,
};
use cudarc::driver::sys::CUstream;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The functions of cuBLASLt that this backend calls.
const FUNCTIONS: &[&str] = &[
    "cublasLtCreate",
    "cublasLtMatmul",
    "cublasLtMatmulAlgoGetHeuristic",
    "cublasLtMatmulDescCreate",
    "cublasLtMatmulDescDestroy",
    "cublasLtMatmulDescSetAttribute",
    "cublasLtMatmulPreferenceCreate",
    "cublasLtMatmulPreferenceDestroy",
    "cublasLtMatmulPreferenceSetAttribute",
    "cublasLtMatrixLayoutCreate",
    "cublasLtMatrixLayoutDestroy",
    "cublasLtMatrixLayoutSetAttribute",
];

/// There is no algorithm for what is asked.
pub(super) const NOT_SUPPORTED: CublasError =
    CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED);

/// Kinds of products that are kept, at most: a program whose shapes never repeat stays bounded.
const KEPT: usize = 4096;

/// Bytes of scratch memory that a product may ask for: what NVIDIA recommends for Hopper.
const WORKSPACE: usize = 32 << 20;

/// A matrix as cuBLASLt is told of it: `rows` by `cols` in column-major order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Stored {
    transposed: bool,
    rows: usize,
    cols: usize,
    /// Elements from column to column.
    ld: usize,
}

impl Stored {
    pub(super) fn new(transposed: bool, rows: usize, cols: usize, ld: usize) -> Stored {
        Stored {
            transposed,
            rows,
            cols,
            ld,
        }
    }
}

/// A kind of product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) dtype: DType,
    pub(super) result: DType,
    pub(super) tf32: bool,
    /// The left operand of cuBLASLt, its right one, and the result.
    pub(super) operands: [Stored; 3],
    /// Elements from matrix to matrix.
    pub(super) apart: [usize; 3],
    pub(super) batch: usize,
    /// Powers of two that divide the addresses.
    pub(super) aligned: [u32; 3],
    pub(super) bias: bool,
    pub(super) function: Function,
    pub(super) arguments: bool,
    pub(super) add: bool,
}

impl Key {
    fn epilogue(&self) -> LtEpilogue {
        debug_assert!(!self.arguments || self.function == Function::Gelu);
        match (self.function, self.arguments, self.bias) {
            (Function::Identity, _, false) => LtEpilogue::CUBLASLT_EPILOGUE_DEFAULT,
            (Function::Identity, _, true) => LtEpilogue::CUBLASLT_EPILOGUE_BIAS,
            (Function::Relu, _, false) => LtEpilogue::CUBLASLT_EPILOGUE_RELU,
            (Function::Relu, _, true) => LtEpilogue::CUBLASLT_EPILOGUE_RELU_BIAS,
            (Function::Gelu, false, false) => LtEpilogue::CUBLASLT_EPILOGUE_GELU,
            (Function::Gelu, false, true) => LtEpilogue::CUBLASLT_EPILOGUE_GELU_BIAS,
            (Function::Gelu, true, false) => LtEpilogue::CUBLASLT_EPILOGUE_GELU_AUX,
            (Function::Gelu, true, true) => LtEpilogue::CUBLASLT_EPILOGUE_GELU_AUX_BIAS,
        }
    }
}

/// cuBLASLt on one card.
#[derive(Debug, Default)]
pub(crate) struct Blas {
    library: OnceLock<Result<Library, String>>,
    /// `None` for a kind of which the library has no algorithm.
    plans: Mutex<HashMap<Key, Option<Arc<Plan>>>>,
}

/// The handle of the library, which may be used by any thread.
#[derive(Debug, Clone, Copy)]
struct Library(sys::cublasLtHandle_t);

// SAFETY: "the cuBLASLt handle … is thread-safe" (cuBLASLt, cublasLtHandle_t); it is never destroyed.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

impl Blas {
    /// How a kind of product is computed; `None` where the library has no algorithm for it. The card's
    /// context is the thread's.
    pub(super) fn plan(
        &self,
        op: &'static str,
        issuing: &mut Issuing,
        key: Key,
    ) -> Result<Option<Arc<Plan>>> {
        let gpu = issuing.gpu();
        let library = self.library.get_or_init(start);
        let library = *library.as_ref().map_err(|e| missing(op, gpu, e))?;
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = plans.get(&key) {
            return Ok(plan.clone());
        }
        // The library loads its kernels late, too.
        issuing.ready_to_load(op)?;
        let plan = match Plan::new(library, key) {
            Ok(plan) => Some(Arc::new(plan)),
            Err(NOT_SUPPORTED) => None,
            // Epilogues that a library does not have, it may also call invalid.
            Err(CublasError(sys::cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE))
                if key.epilogue() != LtEpilogue::CUBLASLT_EPILOGUE_DEFAULT =>
            {
                None
            }
            Err(e) => return Err(failed(op, gpu, "choosing how to multiply matrices", e)),
        };
        if plans.len() >= KEPT {
            plans.clear();
        }
        plans.insert(key, plan.clone());
        Ok(plan)
    }
}

/// The library, where it is installed and has all functions; else the sentence that says what is
/// missing.
fn start() -> Result<Library, String> {
    // SAFETY: loading the library runs its initialisers, which have no requirements.
    if !unsafe { sys::is_culib_present() } {
        let sentence = "products of matrices need cuBLASLt, which is not installed (there is no \
                        libcublasLt.so)";
        return Err(sentence.into());
    }
    // SAFETY: the library is present, so this does not panic.
    let library = unsafe { sys::culib() };
    for name in FUNCTIONS {
        // SAFETY: the symbol is only looked for; its type does not matter.
        if unsafe { library.get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_err() {
            return Err(format!("cuBLASLt is too old: it has no function {name}"));
        }
    }
    let handle = result::create_handle();
    handle
        .map(Library)
        .map_err(|e| format!("cuBLASLt does not start: {e}"))
}

pub(super) fn failed(op: &'static str, gpu: &Gpu, what: &str, e: CublasError) -> Error {
    Error::DeviceFailed {
        op,
        device: gpu.device(),
        reason: format!("{what}: {e}"),
    }
}

fn data_type(dtype: DType) -> cudaDataType_t {
    match dtype {
        DType::F32 => cudaDataType_t::CUDA_R_32F,
        DType::F64 => cudaDataType_t::CUDA_R_64F,
        DType::BF16 => cudaDataType_t::CUDA_R_16BF,
        DType::F16 => cudaDataType_t::CUDA_R_16F,
        DType::I64 | DType::I32 | DType::U8 | DType::Bool => {
            unreachable!("products are of floats: the operations check it")
        }
    }
}

/// A description of an operation, which the library owns until the drop.
#[derive(Debug)]
struct Description(sys::cublasLtMatmulDesc_t);

impl Description {
    fn set<V: bytemuck::NoUninit>(&self, which: DescAttribute, v: V) -> Result<(), CublasError> {
        // SAFETY: the description is alive; the attribute is as large as the value, or the library
        // refuses it.
        unsafe {
            result::set_matmul_desc_attribute(self.0, which, (&raw const v).cast(), size_of::<V>())
        }
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: it was made by the library, and is destroyed once. An error leaves it allocated.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// A description of a matrix, which the library owns until the drop.
#[derive(Debug)]
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(
        dtype: DType,
        stored: Stored,
        batch: usize,
        apart: usize,
    ) -> Result<Layout, CublasError> {
        let Stored { rows, cols, ld, .. } = stored;
        let layout = result::create_matrix_layout(
            data_type(dtype),
            rows as u64,
            cols as u64,
            i64::try_from(ld).unwrap_or(i64::MAX),
        )?;
        let layout = Layout(layout);
        if batch > 1 {
            let count = i32::try_from(batch).unwrap_or(i32::MAX);
            layout.set(LayoutAttribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, count)?;
            let which = LayoutAttribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET;
            layout.set(which, apart as i64)?;
        }
        Ok(layout)
    }

    fn set<V: bytemuck::NoUninit>(&self, which: LayoutAttribute, v: V) -> Result<(), CublasError> {
        // SAFETY: as in `Description::set`.
        unsafe {
            result::set_matrix_layout_attribute(
                self.0,
                which,
                (&raw const v).cast(),
                size_of::<V>(),
            )
        }
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: as in the drop of `Description`.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// What cuBLASLt may choose from; the library owns it until the drop.
#[derive(Debug)]
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn set<V: bytemuck::NoUninit>(
        &self,
        which: PreferenceAttribute,
        v: V,
    ) -> Result<(), CublasError> {
        // SAFETY: as in `Description::set`.
        unsafe {
            result::set_matmul_pref_attribute(self.0, which, (&raw const v).cast(), size_of::<V>())
        }
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: as in the drop of `Description`.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

/// How a kind of product is computed.
#[derive(Debug)]
pub(super) struct Plan {
    library: Library,
    key: Key,
    /// The addresses of its epilogue are others at every call, so it is used under a lock.
    description: Mutex<Description>,
    layouts: [Layout; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
    workspace: usize,
}

// SAFETY: the descriptions belong to the plan alone and have no thread of their own; layouts and the
// algorithm are only read after the plan is made, and what is written stands behind a lock.
unsafe impl Send for Plan {}
// SAFETY: as above.
unsafe impl Sync for Plan {}

impl Plan {
    fn new(library: Library, key: Key) -> Result<Plan, CublasError> {
        let (compute, scale) = match (key.dtype, key.tf32) {
            (DType::F64, _) => (ComputeType::CUBLAS_COMPUTE_64F, DType::F64),
            (_, true) => (ComputeType::CUBLAS_COMPUTE_32F_FAST_TF32, DType::F32),
            (_, false) => (ComputeType::CUBLAS_COMPUTE_32F, DType::F32),
        };
        let description = result::create_matmul_desc(compute, data_type(scale))?;
        let description = Description(description);
        let transposes = [
            DescAttribute::CUBLASLT_MATMUL_DESC_TRANSA,
            DescAttribute::CUBLASLT_MATMUL_DESC_TRANSB,
        ];
        for (which, stored) in transposes.into_iter().zip(key.operands) {
            // CUBLAS_OP_N is 0, CUBLAS_OP_T is 1.
            description.set(which, u32::from(stored.transposed))?;
        }
        let which = DescAttribute::CUBLASLT_MATMUL_DESC_EPILOGUE;
        description.set(which, key.epilogue() as u32)?;
        // Which algorithm serves is told by how such an address is aligned; nothing lies there.
        let aligned = EPILOGUE_ALIGNMENT;
        if key.bias {
            description.set(DescAttribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, aligned)?;
        }
        if key.arguments {
            let which = DescAttribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER;
            description.set(which, aligned)?;
            let ld = key.operands[2].rows as i64;
            description.set(DescAttribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, ld)?;
        }
        let layout = |i: usize, dtype| {
            let batch = key.batch;
            Layout::new(dtype, key.operands[i], batch, key.apart[i])
        };
        let layouts = [
            layout(0, key.dtype)?,
            layout(1, key.dtype)?,
            layout(2, key.result)?,
        ];
        let preference = Preference(result::create_matmul_pref()?);
        let which = PreferenceAttribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        preference.set(which, WORKSPACE)?;
        // Parts of a sum are added in the type of computation: a half type would round each.
        let schemes = ReductionScheme::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        let which = PreferenceAttribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK;
        preference.set(which, schemes)?;
        let [a, b, c] = key.aligned;
        let alignments = [
            (
                PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                a,
            ),
            (
                PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                b,
            ),
            (
                PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                c,
            ),
            (
                PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
                c,
            ),
        ];
        for (which, bytes) in alignments {
            preference.set(which, bytes)?;
        }
        let [a, b, c] = &layouts;
        // SAFETY: all of them are alive.
        let found = unsafe {
            result::get_matmul_algo_heuristic(
                library.0,
                description.0,
                a.0,
                b.0,
                c.0,
                c.0,
                preference.0,
            )
        }?;
        Ok(Plan {
            library,
            key,
            description: Mutex::new(description),
            layouts,
            algorithm: found.algo,
            workspace: found.workspaceSize,
        })
    }

    /// Bytes of scratch memory that [`run`](Plan::run) needs.
    pub(super) fn workspace(&self) -> usize {
        self.workspace
    }

    /// Issues the product of what lies at the addresses `a` and `b` into `c`, as cuBLASLt has them.
    pub(super) fn run(
        &self,
        [a, b, c]: [u64; 3],
        Epilogue {
            bias, arguments, ..
        }: Epilogue,
        workspace: u64,
        stream: CUstream,
    ) -> Result<(), CublasError> {
        let description = &self.description;
        let description = description.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bias) = bias {
            description.set(DescAttribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias)?;
        }
        if let Some(at) = arguments {
            let which = DescAttribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER;
            description.set(which, at)?;
        }
        let beta = f64::from(u8::from(self.key.add));
        // The factors are of the type of computation.
        let doubles = [1.0, beta];
        let floats = doubles.map(|v| v as f32);
        let [alpha, beta]: [*const c_void; 2] = match self.key.dtype {
            DType::F64 => [
                (&raw const doubles[0]).cast(),
                (&raw const doubles[1]).cast(),
            ],
            _ => [(&raw const floats[0]).cast(), (&raw const floats[1]).cast()],
        };
        let [la, lb, lc] = &self.layouts;
        // SAFETY: descriptions and handle are alive; the addresses are those of operands whose memory
        // the issue of the operation has put in order, as large as the layouts say; so are those of the
        // epilogue, whose sizes follow from the result's; the workspace is as large as the algorithm asked
        // for; the library reads the factors before it returns.
        unsafe {
            result::matmul(
                self.library.0,
                description.0,
                alpha,
                beta,
                a as *const c_void,
                la.0,
                b as *const c_void,
                lb.0,
                c as *const c_void,
                lc.0,
                c as *mut c_void,
                lc.0,
                &raw const self.algorithm,
                workspace as *mut c_void,
                self.workspace,
                stream.cast(),
            )
        }
    }
}
