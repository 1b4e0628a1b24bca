//! CUDA kernels: one pass over all arrays of a parameter.

use super::adam::AdamNumbers;
use super::{AdamConfig, Item, SgdConfig};
use crate::cuda::{Arg, Grid, Issue, Source};
use crate::ops::Scalar;
use crate::{DType, Result, Tensor};

/// A parameter's type and its gradient's.
const PAIRS: &[&[DType]] = &[
    &[DType::F32, DType::F32],
    &[DType::F64, DType::F64],
    &[DType::BF16, DType::BF16],
    &[DType::BF16, DType::F32],
    &[DType::F16, DType::F16],
    &[DType::F16, DType::F32],
];

pub(crate) static KERNELS: Source = Source {
    family: "optim",
    path: "tensor/src/ops/optim/kernel.cu",
    before: "",
    text: include_str!("kernel.cu"),
    after: "",
    types: PAIRS,
};

/// Compiles and loads the kernel `name` for pairs of types, before anything is changed.
pub(super) fn prepare(
    lane: &Issue,
    name: &'static str,
    mut types: impl Iterator<Item = [DType; 2]>,
) -> Result<()> {
    types.try_for_each(|types| lane.prepare(&KERNELS, &types, name))
}

/// One step of SGD for each parameter of a batch.
pub(super) fn sgd(
    lane: &mut Issue,
    (params, grads, momenta): (&mut [&mut Tensor], &[&Tensor], &mut [&mut Tensor]),
    items: &[Item<'_, SgdConfig>],
) -> Result<()> {
    let mut momenta = momenta.iter_mut();
    for ((param, grad), item) in params.iter_mut().zip(grads).zip(items) {
        let momentum = match item.states {
            0 => None,
            _ => momenta.next(),
        };
        let n = param.numel();
        if n == 0 {
            continue;
        }
        let config = item.config;
        let args = [
            lane.address(param),
            lane.address(grad),
            momentum.map_or(Arg::Address(0), |m| lane.address(m)),
            Arg::Int(n as i64),
            Arg::Small(i32::from(item.step == 1)),
            Arg::Small(i32::from(config.nesterov)),
            Arg::Real(config.lr),
            Arg::Real(config.weight_decay),
            Arg::Real(config.momentum),
            Arg::Real(1.0 - config.dampening),
        ];
        let types = [param.dtype(), grad.dtype()];
        lane.launch(&KERNELS, &types, "sgd", Grid::over(n), &args)?;
    }
    Ok(())
}

/// One step of Adam for each parameter of a batch.
pub(super) fn adam(
    lane: &mut Issue,
    (params, grads, moments): (&mut [&mut Tensor], &[&Tensor], &mut [&mut Tensor]),
    items: &[Item<'_, AdamConfig>],
) -> Result<()> {
    let (moments, _) = moments.as_chunks_mut::<2>();
    for (((param, grad), [m, v]), item) in params.iter_mut().zip(grads).zip(moments).zip(items) {
        let n = param.numel();
        if n == 0 {
            continue;
        }
        let numbers = AdamNumbers::new(item.config, item.step);
        let args = [
            lane.address(param),
            lane.address(grad),
            lane.address(m),
            lane.address(v),
            Arg::Int(n as i64),
            Arg::Real(numbers.coupled),
            Arg::Real(numbers.shrink),
            Arg::Real(numbers.fresh1),
            Arg::Real(numbers.keep2),
            Arg::Real(numbers.fresh2),
            Arg::Real(numbers.rate),
            Arg::Real(numbers.root),
            Arg::Real(numbers.eps),
        ];
        let types = [param.dtype(), grad.dtype()];
        lane.launch(&KERNELS, &types, "adam", Grid::over(n), &args)?;
    }
    Ok(())
}

/// Multiplies by `factor`.
pub(super) fn scale(
    lane: &mut Issue,
    tensors: &mut [&mut Tensor],
    factor: Scalar<'_>,
) -> Result<()> {
    let [number, place] = match factor {
        Scalar::Host(value) => [Arg::Real(value), Arg::Address(0)],
        Scalar::Device(tensor) => [Arg::Real(1.0), lane.address(tensor)],
    };
    for tensor in tensors {
        let n = tensor.numel();
        if n == 0 {
            continue;
        }
        let args = [lane.address(tensor), Arg::Int(n as i64), number, place];
        let types = [tensor.dtype(), tensor.dtype()];
        lane.launch(&KERNELS, &types, "scale", Grid::over(n), &args)?;
    }
    Ok(())
}
