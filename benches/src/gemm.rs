//! `bench gemm`: matrix products, beside the operations that the cores can do and beside PyTorch's.

use anyhow::{Result, bail};
use clap::Args;
use phalanx_examples::cli::{at_least_one, threads};
use phalanx_tensor::cpu::internals::{Epilogue, Kernels, MatMut, MatRef, Scalar, gemm};
use phalanx_tensor::{DType, Device, Element, Rng, Tensor, bf16, cpu, f16};
use serde::Serialize;

use crate::options::Common;
use crate::peer::{CProgram, number};
use crate::sample::{Sampling, Spread, rates, rates_until};
use crate::table::{Table, figure, ratio};

/// What to multiply.
#[derive(Args, Clone, Debug)]
pub struct GemmArgs {
    /// Rows, columns and depth of the product
    #[arg(long, value_delimiter = ',', default_value = "256,512,1024,2048", value_parser = at_least_one)]
    pub size: Vec<usize>,
    /// Compute threads
    #[arg(long, value_delimiter = ',', default_value = "1,2", value_parser = threads)]
    pub threads: Vec<usize>,
    /// Type of the elements: f32, f64, bf16, f16
    #[arg(long, default_value = "f32")]
    pub dtype: DType,
    /// Multiply on the vector kernels, as a processor without a matrix unit does
    #[arg(long)]
    pub vector: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Serialize)]
struct Row {
    bench: &'static str,
    size: usize,
    threads: usize,
    dtype: String,
    gflops: f64,
    min: f64,
    max: f64,
    peak_gflops: Option<f64>,
    share_of_peak: Option<f64>,
    over_torch_mm: Option<f64>,
    over_onednn: Option<f64>,
}

/// GFLOP/s of an `n`×`n` by `n`×`n` product on a device, on `threads` threads of a CPU.
///
/// # Errors
/// The product fails.
pub fn product(
    n: usize,
    threads: usize,
    dtype: DType,
    device: Device,
    sampling: Sampling,
) -> Result<Spread> {
    let mut rng = Rng::new(0);
    let a = Tensor::randn([n, n], dtype, device, &mut rng)?;
    let b = Tensor::randn([n, n], dtype, device, &mut rng)?;
    let multiply = || a.matmul(&b).map(drop);
    let rates = cpu::with_threads(threads, || {
        rates_until(sampling, multiply, || device.synchronize())
    })?;
    Ok(Spread::of(rates).scaled(2.0 * (n as f64).powi(3) * 1e-9))
}

/// As [`product`], on the vector kernels.
///
/// # Errors
/// The operands do not fit the device.
pub fn vector_product<T: Scalar + Element>(
    n: usize,
    threads: usize,
    sampling: Sampling,
) -> Result<Spread> {
    let (device, mut rng) = (Device::cpu(0), Rng::new(0));
    let a = Tensor::randn([n, n], T::DTYPE, device, &mut rng)?;
    let b = Tensor::randn([n, n], T::DTYPE, device, &mut rng)?;
    let a = MatRef::row_major(a.as_slice::<T>()?, n, n);
    let b = MatRef::row_major(b.as_slice::<T>()?, n, n);
    // A tensor's memory for the result too: on small pages it costs a tenth.
    let mut c = Tensor::randn([n, n], T::DTYPE, device, &mut rng)?;
    let c = c.make_mut::<T>()?;
    let rates = cpu::with_threads(threads, || {
        rates(sampling, || {
            let c = MatMut::row_major(c, n, n);
            gemm(
                Kernels::Vector(cpu::simd_level()),
                c,
                a,
                b,
                &Epilogue::default(),
            );
            anyhow::Ok(())
        })
    })?;
    Ok(Spread::of(rates).scaled(2.0 * (n as f64).powi(3) * 1e-9))
}

/// The cores' multiply-add peak in GFLOP/s, measured now.
fn peak(program: &CProgram, threads: usize) -> Result<f64> {
    let lines = program.run(&[threads.to_string()])?;
    lines
        .iter()
        .try_fold(0.0, |most: f64, line| Ok(most.max(number(line, "gflops")?)))
}

/// Runs the benchmark.
///
/// # Errors
/// A product or a peer fails.
pub fn run(args: &GemmArgs) -> Result<()> {
    let program = CProgram::build("peak")?;
    let columns = [
        "n", "threads", "GFLOP/s", "min", "max", "peak f32", "of peak", "torch.mm", "oneDNN",
    ];
    let title = format!(
        "{} product of n x n matrices{}; peak: f32 multiply-adds",
        args.dtype,
        if args.vector { ", vector kernels" } else { "" }
    );
    let mut table = Table::new(&title, &columns, args.common.json)?;
    for &threads in &args.threads {
        for &size in &args.size {
            // The peak before and after, so that a slow moment is not taken for the limit.
            let before = program
                .as_ref()
                .map(|program| peak(program, threads))
                .transpose()?;
            let sampling = args.common.sampling;
            let ours = match args.dtype {
                dtype if !args.vector => product(size, threads, dtype, Device::cpu(0), sampling),
                DType::F32 => vector_product::<f32>(size, threads, sampling),
                DType::F64 => vector_product::<f64>(size, threads, sampling),
                DType::BF16 => vector_product::<bf16>(size, threads, sampling),
                DType::F16 => vector_product::<f16>(size, threads, sampling),
                dtype => bail!("the vector kernels do not multiply {dtype}"),
            }?;
            let after = program
                .as_ref()
                .map(|program| peak(program, threads))
                .transpose()?;
            let peak = before.zip(after).map(|(before, after)| before.max(after));
            let options = [
                "--size",
                &size.to_string(),
                "--threads",
                &threads.to_string(),
            ];
            let peer = match args.dtype {
                DType::F32 => args.common.peer.figures("gemm.py", &options)?,
                _ => None,
            };
            let over = |key| {
                let rate = peer.as_ref().map(|peer| number(peer, key)).transpose();
                rate.map(|rate| rate.map(|rate| ours.median / rate))
            };
            let row = Row {
                bench: "gemm",
                size,
                threads,
                dtype: args.dtype.to_string(),
                gflops: ours.median,
                min: ours.min,
                max: ours.max,
                peak_gflops: peak,
                share_of_peak: peak.map(|peak| ours.median / peak),
                over_torch_mm: over("torch_mm/median")?,
                over_onednn: over("onednn/median")?,
            };
            let cells = [
                size.to_string(),
                threads.to_string(),
                figure(row.gflops),
                figure(row.min),
                figure(row.max),
                figure(row.peak_gflops),
                figure(row.share_of_peak),
                ratio(row.over_torch_mm),
                ratio(row.over_onednn),
            ];
            table.row(&cells, &row)?;
        }
    }
    table.finish()
}
