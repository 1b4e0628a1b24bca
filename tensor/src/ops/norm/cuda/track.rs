//! The launch that moves running statistics.

use crate::cuda::{Arg, FLOATS, Grid, Issue, Source, View};
use crate::ops::cast::cuda::CONVERSIONS;
use crate::ops::norm::running::BatchNormMomentum;
use crate::{DType, Result, Tensor};

pub(crate) static KERNELS: Source = Source {
    family: "batch-norm-track",
    path: "tensor/src/ops/norm/cuda/track.cu",
    before: CONVERSIONS,
    text: include_str!("track.cu"),
    after: "",
    types: FLOATS,
};

/// `Numbers` of the kernel.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Numbers {
    numbers: u64,
    view: View,
    dtype: i64,
}

/// Moves running statistics towards those of a batch. Both terms are rounded to their type.
pub(crate) fn track(
    lane: &mut Issue,
    running: &[&Tensor],
    batch: &[&Tensor],
    elements: usize,
    momentum: BatchNormMomentum<'_>,
    (mean, var): (&mut Tensor, &mut Tensor),
) -> Result<()> {
    let (share, count) = match momentum {
        BatchNormMomentum::Share(share) => (share, Arg::Address(0)),
        BatchNormMomentum::Cumulative(count) => (0.0, lane.address(count)),
    };
    let unbiased = elements as f64 / (elements as f64 - 1.0);
    let results = [(mean, 1.0), (var, unbiased)];
    for ((running, batch), (out, factor)) in running.iter().zip(batch).zip(results) {
        let n = out.numel();
        if n == 0 {
            continue;
        }
        let view = View::new(lane.op(), running.layout())?;
        let batch = Numbers {
            numbers: lane.address(batch).bits(),
            view: View::new(lane.op(), batch.layout())?,
            dtype: match batch.dtype() {
                DType::F32 => 0,
                DType::F64 => 1,
                DType::BF16 => 2,
                _ => 3,
            },
        };
        let args = [
            lane.address(running),
            Arg::Struct(bytemuck::bytes_of(&view)),
            Arg::Struct(bytemuck::bytes_of(&batch)),
            Arg::Real(share),
            count,
            Arg::Real(factor),
            lane.address(out),
            Arg::Int(n as i64),
        ];
        let types = [running.dtype()];
        lane.launch(&KERNELS, &types, "batch_norm_track", Grid::over(n), &args)?;
    }
    Ok(())
}
