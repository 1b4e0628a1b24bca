//! The other families that have kernels for cards, against the CPU's.

use crate::support::*;
use phalanx_tensor::ops::optim::{AdamConfig, adam_step, scale};
use phalanx_tensor::{DType, Device, Result, Tensor};

/// A function of two tensors of one type.
pub type Case = (&'static str, fn(&Tensor, &Tensor) -> Result<Tensor>);

/// Views of a pair of tensors that broadcast.
type View = fn(&Tensor, &Tensor) -> Result<(Tensor, Tensor)>;

/// Runs each case on the CPU and on the card, on matrices of `dtypes` and on views of them.
pub fn compare(device: Device, dtypes: &[DType], cases: &[Case]) {
    for &dtype in dtypes {
        for seed in SEEDS {
            let (a, b) = (
                values(&[5, 9], DType::F64, seed),
                values(&[5, 9], DType::F64, seed + 7),
            );
            let scaled = |t: &Tensor| t.mul_scalar(if dtype.is_float() { 1.0 } else { 30.0 });
            let (a, b) = (scaled(&a).unwrap(), scaled(&b).unwrap());
            // Unsigned bytes have no negative numbers.
            let (a, b) = match dtype {
                DType::U8 => (a.abs().unwrap(), b.abs().unwrap()),
                _ => (a, b),
            };
            let (a, b) = (a.cast(dtype).unwrap(), b.cast(dtype).unwrap());
            let pairs: [View; 5] = [
                |a, b| Ok((a.clone(), b.clone())),
                |a, b| Ok((a.t()?, b.t()?)),
                |a, b| Ok((a.clone(), b.narrow(0, 2, 1)?)),
                |a, b| Ok((a.slice(1, 0..9, 2)?, b.narrow(1, 3, 5)?)),
                |a, b| Ok((a.narrow(0, 0, 0)?, b.narrow(0, 0, 0)?)),
            ];
            for (name, run) in cases {
                for (view, pair) in pairs.iter().enumerate() {
                    let (x, y) = pair(&a, &b).unwrap();
                    let there = |t: &Tensor| t.to_device(device).unwrap();
                    let (u, v) = pair(&there(&a), &there(&b)).unwrap();
                    let name = format!("{name} {dtype} view {view} seed {seed}");
                    match (run(&x, &y), run(&u, &v)) {
                        (Ok(here), Ok(there)) => {
                            assert_near(&name, &there, &here, 1e-5);
                        }
                        (Err(here), Err(there)) => assert_eq!(here, there, "{name}"),
                        (here, there) => panic!("{name}: {here:?} and {there:?}"),
                    }
                }
            }
        }
    }
}

#[test]
fn arithmetic_is_the_cpus() {
    let (device, _turn) = card!();
    compare(
        device,
        &DType::ALL,
        &[
            ("add", |a, b| a.add(b)),
            ("sub", |a, b| a.sub(b)),
            ("mul", |a, b| a.mul(b)),
            ("div", |a, b| a.div(b)),
            ("maximum", |a, b| a.maximum(b)),
            ("minimum", |a, b| a.minimum(b)),
            ("pow", |a, b| a.abs()?.pow(b)),
            ("add_scalar", |a, _| a.add_scalar(2.0)),
            ("mul_scalar", |a, _| a.mul_scalar(3.0)),
            ("add_into", |a, b| a.copy()?.add_into(b)),
            ("add_widened", |a, b| a.add_widened(b)),
        ],
    );
}

#[test]
fn comparisons_are_the_cpus() {
    let (device, _turn) = card!();
    compare(
        device,
        &DType::ALL,
        &[
            ("lt", |a, b| a.lt(b)),
            ("ge", |a, b| a.ge(b)),
            ("eq", |a, b| a.maximum(b)?.eq(a)),
            ("where", |a, b| Tensor::where_cond(&a.lt(b)?, a, b)),
        ],
    );
}

#[test]
fn casts_are_the_cpus() {
    let (device, _turn) = card!();
    compare(
        device,
        &DType::ALL,
        &[
            ("f32", |a, _| a.cast(DType::F32)),
            ("f64", |a, _| a.cast(DType::F64)),
            ("bf16", |a, _| a.cast(DType::BF16)),
            ("f16", |a, _| a.cast(DType::F16)),
            ("i64", |a, _| a.cast(DType::I64)),
            ("i32", |a, _| a.cast(DType::I32)),
            ("u8", |a, _| a.cast(DType::U8)),
            ("bool", |a, _| a.cast(DType::Bool)),
        ],
    );
}

#[test]
fn scaled_writes_are_the_cpus() {
    let (device, _turn) = card!();
    fn into(to: DType, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let mut y = Tensor::full([a.numel() + 9], 5.0, to, a.device())?;
        y.write_scaled_at(4, a, 0.3)?;
        // Another number, which is on the device, and other elements in the same place.
        let number = Tensor::full([1], -1.5, DType::BF16, a.device())?;
        let b = b.broadcast_to(a.shape().clone())?;
        y.write_scaled_at(2, &b, &number)?;
        Ok(y)
    }
    compare(
        device,
        &DType::ALL,
        &[
            ("f32", |a, b| into(DType::F32, a, b)),
            ("f64", |a, b| into(DType::F64, a, b)),
            ("bf16", |a, b| into(DType::BF16, a, b)),
            ("f16", |a, b| into(DType::F16, a, b)),
        ],
    );
}

#[test]
fn what_is_filled_joined_and_looked_up_is_the_cpus() {
    let (device, _turn) = card!();
    compare(
        device,
        &DType::ALL,
        &[
            ("zeros", |a, _| {
                Tensor::zeros(a.shape().clone(), a.dtype(), a.device())
            }),
            ("full", |a, _| {
                Tensor::full(a.shape().clone(), 7, a.dtype(), a.device())
            }),
            ("arange", |a, _| {
                Tensor::arange(a.numel(), a.dtype(), a.device())
            }),
            ("cat", |a, b| Tensor::cat(&[a, b, a], 0)),
            ("stack", |a, _| Tensor::stack(&[a, a], 1)),
            ("index_select", |a, _| {
                a.index_select(1, &Tensor::from_slice(&[2i64, 0, 2, 1], [4], a.device())?)
            }),
            ("index_select by i32", |a, _| {
                a.index_select(1, &Tensor::from_slice(&[4i32, 0], [2], a.device())?)
            }),
        ],
    );
}

#[test]
fn adam_and_scale_are_the_cpus() {
    let (device, _turn) = card!();
    for config in [AdamConfig::adam(), AdamConfig::adamw()] {
        for dtype in [DType::F32, DType::F64, DType::BF16] {
            let run = |device: Device| {
                let on = |t: Tensor| t.to_device(device).unwrap();
                let mut params = [on(values(&[7, 3], dtype, 1)), on(values(&[130], dtype, 2))];
                let mut states = [None, None];
                for step in 0..3 {
                    let mut grads = [
                        on(values(&[7, 3], dtype, step + 3)),
                        on(values(&[130], dtype, step + 9)),
                    ];
                    scale(&mut grads, 0.5).unwrap();
                    let factor = on(Tensor::scalar(2.0f64, Device::cpu(0)).unwrap());
                    scale(&mut grads, &factor).unwrap();
                    adam_step(&mut params, &grads, &mut states, &config).unwrap();
                }
                params.iter().flat_map(read).collect::<Vec<f64>>()
            };
            let apart = distance(&run(device), &run(Device::cpu(0)));
            assert!(apart <= tolerance(dtype), "{config:?} {dtype}: {apart}");
        }
    }
}
