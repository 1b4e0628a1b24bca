//! `bench card`: what a card does with our kernels, as a share of what it can do: bytes beside those of a copy on the
//! device, products beside cuBLASLt called straight.

mod straight;

use anyhow::{Result, ensure};
use clap::Args;
use phalanx_tensor::ops::optim::{
    AdamConfig, AdamState, SgdConfig, adam_step, global_norm, sgd_step,
};
use phalanx_tensor::ops::softmax::CrossEntropyConfig;
use phalanx_tensor::{DType, Device, GeluKind, Rng, Tensor};
use serde::Serialize;

use crate::options::Common;
use crate::sample::{Sampling, Spread, rates_until};
use crate::table::{Table, figure, ratio};

/// What to measure on a card.
#[derive(Args, Clone, Debug)]
pub struct CardArgs {
    /// The card
    #[arg(long, default_value = "cuda:0")]
    device: Device,
    /// Rows and columns of the products
    #[arg(long, value_delimiter = ',', default_value = "512,1024,2048,4096,8192")]
    size: Vec<usize>,
    /// Types of the products' elements: f32, f64, bf16, f16
    #[arg(long, value_delimiter = ',', default_value = "f32,bf16,f16")]
    dtype: Vec<DType>,
    /// MiB of each operand of the kernels that memory bounds
    #[arg(long, value_delimiter = ',', default_value = "64,256")]
    mib: Vec<usize>,
    #[command(flatten)]
    common: Common,
}

#[derive(Serialize)]
struct Product {
    bench: &'static str,
    device: String,
    size: usize,
    dtype: String,
    tf32: bool,
    tflops: f64,
    min: f64,
    max: f64,
    straight_tflops: f64,
    over_straight: f64,
}

#[derive(Serialize)]
struct Kernel {
    bench: &'static str,
    device: String,
    op: &'static str,
    dtype: String,
    mib: usize,
    /// 10⁹ bytes per second that are read and written at least.
    gigabytes: f64,
    min: f64,
    max: f64,
    share_of_copy: f64,
}

/// Runs the benchmark.
///
/// # Errors
/// There is no card, or an operation fails.
pub fn run(args: &CardArgs) -> Result<()> {
    let Device::Cuda(ordinal) = args.device else {
        anyhow::bail!("{} is no card; write cuda:0", args.device);
    };
    // What is missing, in one sentence.
    args.device.memory()?;
    kernels(args)?;
    products(args, ordinal)
}

fn products(args: &CardArgs, ordinal: usize) -> Result<()> {
    let columns = ["n", "type", "TFLOP/s", "min", "max", "straight", "ratio"];
    let title = "products of n x n matrices; straight: cuBLASLt called by itself";
    let mut table = Table::new(title, &columns, args.common.json)?;
    let kinds = args.dtype.iter().map(|dtype| (*dtype, false));
    let fast = args
        .dtype
        .contains(&DType::F32)
        .then_some((DType::F32, true));
    for (dtype, tf32) in kinds.chain(fast) {
        for &n in &args.size {
            let (device, sampling) = (args.device, args.common.sampling);
            let mut rng = Rng::new(0);
            let a = Tensor::randn([n, n], dtype, device, &mut rng)?;
            let b = Tensor::randn([n, n], dtype, device, &mut rng)?;
            device.allow_tf32(tf32)?;
            let multiply = || a.matmul(&b).map(drop);
            // Ours before and after the library, so that both have seen the same clocks.
            let mut ours = rates_until(sampling, multiply, || device.synchronize())?;
            let library = straight::rates(ordinal, n, dtype, tf32, sampling)?;
            ours.extend(rates_until(sampling, multiply, || device.synchronize())?);
            device.allow_tf32(false)?;
            let scale = 2.0 * (n as f64).powi(3) * 1e-12;
            let (ours, library) = (
                Spread::of(ours).scaled(scale),
                Spread::of(library).scaled(scale),
            );
            let row = Product {
                bench: "card_gemm",
                device: device.to_string(),
                size: n,
                dtype: dtype.to_string(),
                tf32,
                tflops: ours.median,
                min: ours.min,
                max: ours.max,
                straight_tflops: library.median,
                over_straight: ours.median / library.median,
            };
            let name = if tf32 {
                "tf32".to_owned()
            } else {
                dtype.to_string()
            };
            let cells = [
                n.to_string(),
                name,
                figure(row.tflops),
                figure(row.min),
                figure(row.max),
                figure(row.straight_tflops),
                ratio(row.over_straight),
            ];
            table.row(&cells, &row)?;
        }
    }
    table.finish()
}

/// The operands of the kernels: matrices of 4,096 columns.
struct Given {
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    /// A column of each row.
    classes: Tensor,
    /// All rows, in an order by chance.
    order: Tensor,
}

const COLUMNS: usize = 4096;

impl Given {
    fn new(mib: usize, dtype: DType, device: Device) -> Result<Given> {
        let rows = (mib << 20) / (COLUMNS * dtype.size());
        ensure!(rows > 0, "--mib {mib} is less than one row");
        let mut rng = Rng::new(1);
        let mut draw = |shape: &[usize]| Tensor::randn(shape.to_vec(), dtype, device, &mut rng);
        Ok(Given {
            x: draw(&[rows, COLUMNS])?,
            y: draw(&[rows, COLUMNS])?,
            weight: draw(&[COLUMNS])?,
            classes: Tensor::randint(0, COLUMNS as i64, [rows], device, &mut Rng::new(2))?,
            order: Tensor::randperm(rows, device, &mut Rng::new(3))?,
        })
    }
}

type Run = Box<dyn FnMut() -> phalanx_tensor::Result<()>>;

/// Each kernel with how many times the bytes of one operand it moves at least.
fn cases(mib: usize, dtype: DType, device: Device) -> Result<Vec<(&'static str, f64, Run)>> {
    let Given {
        x,
        y,
        weight,
        classes,
        order,
    } = Given::new(mib, dtype, device)?;
    let mut cases: Vec<(&'static str, f64, Run)> = Vec::new();
    macro_rules! case {
        ($name:literal, $moved:expr, |$($held:ident),+| $call:expr) => {{
            $(let $held = $held.clone();)+
            cases.push(($name, $moved, Box::new(move || $call.map(drop))));
        }};
    }
    case!("copy", 2.0, |x| x.copy());
    case!("relu", 2.0, |x| x.relu());
    case!("gelu", 2.0, |x| x.gelu(GeluKind::Tanh));
    case!("add", 3.0, |x, y| x.add(&y));
    case!("sum of rows", 1.0, |x| x.sum(&[1], false));
    case!("sum of columns", 1.0, |x| x.sum(&[0], false));
    case!("transpose", 2.0, |x| x.t()?.contiguous());
    case!("softmax", 2.0, |x| x.softmax(1));
    case!("layer_norm", 2.0, |x, weight| x.layer_norm(
        [COLUMNS],
        Some(&weight),
        Some(&weight),
        1e-5
    ));
    case!("cross_entropy", 1.0, |x, classes| x
        .cross_entropy(&classes, &CrossEntropyConfig::default()));
    case!("index_select", 2.0, |x, order| x.index_select(0, &order));
    case!("dropout", 2.0, |x| x.dropout(0.5, &mut Rng::new(3)));
    case!("global_norm", 1.0, |x| global_norm([&x]));
    if dtype == DType::F32 {
        let (mut params, grads) = (vec![x.copy()?], vec![y.copy()?]);
        let mut states = vec![None];
        let config = SgdConfig {
            momentum: 0.9,
            ..SgdConfig::default()
        };
        cases.push((
            "sgd with momentum",
            5.0,
            Box::new(move || sgd_step(&mut params, &grads, &mut states, &config)),
        ));
        let (mut params, grads) = (vec![x.copy()?], vec![y.copy()?]);
        let mut states: Vec<Option<AdamState>> = vec![None];
        let config = AdamConfig::adamw();
        cases.push((
            "adamw",
            7.0,
            Box::new(move || adam_step(&mut params, &grads, &mut states, &config)),
        ));
    }
    Ok(cases)
}

fn kernels(args: &CardArgs) -> Result<()> {
    let columns = ["op", "type", "MiB", "GB/s", "min", "max", "of copy"];
    let title =
        "kernels that memory bounds: bytes that are read and written at least, beside a copy's";
    let mut table = Table::new(title, &columns, args.common.json)?;
    let (device, sampling) = (args.device, args.common.sampling);
    for dtype in [DType::F32, DType::BF16] {
        for &mib in &args.mib {
            let mut copy = None;
            for (op, moved, mut run) in cases(mib, dtype, device)? {
                let rates = measure(device, sampling, &mut run)?;
                let spread = Spread::of(rates).scaled(moved * (mib << 20) as f64 * 1e-9);
                let copy = *copy.get_or_insert(spread.median);
                let row = Kernel {
                    bench: "card_kernel",
                    device: device.to_string(),
                    op,
                    dtype: dtype.to_string(),
                    mib,
                    gigabytes: spread.median,
                    min: spread.min,
                    max: spread.max,
                    share_of_copy: spread.median / copy,
                };
                let cells = [
                    op.to_owned(),
                    dtype.to_string(),
                    mib.to_string(),
                    figure(row.gigabytes),
                    figure(row.min),
                    figure(row.max),
                    ratio(row.share_of_copy),
                ];
                table.row(&cells, &row)?;
            }
        }
    }
    table.finish()
}

fn measure(device: Device, sampling: Sampling, run: &mut Run) -> Result<Vec<f64>> {
    Ok(rates_until(sampling, run, || device.synchronize())?)
}
