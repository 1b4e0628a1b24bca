//! cuBLASLt called straight: the products that the library itself makes, on a stream of their own.
#![allow(unsafe_code)]

use std::ffi::c_void;

use anyhow::{Context, Result, bail};
use cudarc::cublaslt::{result, sys};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DevicePtrMut};
use phalanx_tensor::{DType, Device, Rng, Tensor};
use std::sync::Arc;

use crate::sample::{Sampling, rates_until};

/// Bytes of workspace that the library may use.
const WORKSPACE: usize = 32 << 20;

/// Products of `n`×`n` matrices per second.
///
/// # Errors
/// The library is not there, or refuses.
pub fn rates(
    ordinal: usize,
    n: usize,
    dtype: DType,
    tf32: bool,
    sampling: Sampling,
) -> Result<Vec<f64>> {
    let stream = CudaContext::new(ordinal)?.new_stream()?;
    let (a, b) = (
        operand(&stream, n, dtype, 0)?,
        operand(&stream, n, dtype, 1)?,
    );
    let mut c = stream.alloc_zeros::<u8>(n * n * dtype.size())?;
    let mut workspace = stream.alloc_zeros::<u8>(WORKSPACE)?;
    let (data, scale) = match dtype {
        DType::F32 => (
            sys::cudaDataType_t::CUDA_R_32F,
            sys::cudaDataType_t::CUDA_R_32F,
        ),
        DType::F64 => (
            sys::cudaDataType_t::CUDA_R_64F,
            sys::cudaDataType_t::CUDA_R_64F,
        ),
        DType::BF16 => (
            sys::cudaDataType_t::CUDA_R_16BF,
            sys::cudaDataType_t::CUDA_R_32F,
        ),
        DType::F16 => (
            sys::cudaDataType_t::CUDA_R_16F,
            sys::cudaDataType_t::CUDA_R_32F,
        ),
        dtype => bail!("products are of floats, not of {dtype}"),
    };
    let compute = match (dtype, tf32) {
        (DType::F64, _) => sys::cublasComputeType_t::CUBLAS_COMPUTE_64F,
        (_, true) => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
        (_, false) => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
    };
    let library = result::create_handle()?;
    let product = result::create_matmul_desc(compute, scale)?;
    let layout = result::create_matrix_layout(data, n as u64, n as u64, n as i64)?;
    let preference = result::create_matmul_pref()?;
    let most = sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
    // SAFETY: the descriptions are alive to the end of the function, and the value is there for the call.
    let found = unsafe {
        let most_bytes = WORKSPACE;
        let value = (&raw const most_bytes).cast();
        result::set_matmul_pref_attribute(preference, most, value, size_of::<usize>())?;
        result::get_matmul_algo_heuristic(
            library, product, layout, layout, layout, layout, preference,
        )?
    };
    let factors = [1.0f32, 0.0];
    let doubles = [1.0f64, 0.0];
    let [alpha, beta]: [*const c_void; 2] = match dtype {
        DType::F64 => [
            (&raw const doubles[0]).cast(),
            (&raw const doubles[1]).cast(),
        ],
        _ => [
            (&raw const factors[0]).cast(),
            (&raw const factors[1]).cast(),
        ],
    };
    let rates = {
        let ((a, _a), (b, _b)) = (a.device_ptr(&stream), b.device_ptr(&stream));
        let ((c, _c), (workspace, _w)) =
            (c.device_ptr_mut(&stream), workspace.device_ptr_mut(&stream));
        let multiply = || {
            // SAFETY: all descriptions are alive; each matrix has the bytes that its layout says; what runs on one
            // stream runs in order.
            unsafe {
                result::matmul(
                    library,
                    product,
                    alpha,
                    beta,
                    a as *const c_void,
                    layout,
                    b as *const c_void,
                    layout,
                    c as *const c_void,
                    layout,
                    c as *mut c_void,
                    layout,
                    &raw const found.algo,
                    workspace as *mut c_void,
                    found.workspaceSize,
                    stream.cu_stream().cast(),
                )
            }
            .context("cublasLtMatmul")
        };
        rates_until(sampling, multiply, || Ok(stream.synchronize()?))?
    };
    // SAFETY: each was made above, nothing that uses it is running, and it is destroyed once.
    unsafe {
        result::destroy_matmul_pref(preference)?;
        result::destroy_matrix_layout(layout)?;
        result::destroy_matmul_desc(product)?;
        result::destroy_handle(library)?;
    }
    Ok(rates)
}

/// Numbers as ours are: what a product costs depends on its operands, through the card's power.
fn operand(stream: &Arc<CudaStream>, n: usize, dtype: DType, seed: u64) -> Result<CudaSlice<u8>> {
    let numbers = Tensor::randn([n, n], dtype, Device::cpu(0), &mut Rng::new(seed))?;
    Ok(stream.clone_htod(numbers.as_bytes()?)?)
}
