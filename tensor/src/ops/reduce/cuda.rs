//! CUDA kernels: each result by a block of threads, or by one thread.

use super::Reduction;
use crate::cuda::{Arg, Grid, Issue, Source, TYPES, View};
use crate::{DType, Result, Tensor};

/// The type of the elements and that of the results.
pub(crate) static KERNELS: Source = Source {
    family: "reduce",
    path: "tensor/src/ops/reduce/kernel.cu",
    before: "",
    text: include_str!("kernel.cu"),
    after: "",
    types: &[
        &[DType::F32, DType::F32],
        &[DType::F64, DType::F64],
        &[DType::BF16, DType::BF16],
        &[DType::F16, DType::F16],
        &[DType::I64, DType::I64],
        &[DType::I32, DType::I32],
        &[DType::I32, DType::I64],
        &[DType::U8, DType::U8],
        &[DType::U8, DType::I64],
        &[DType::Bool, DType::Bool],
        &[DType::Bool, DType::I64],
    ],
};

/// Indices of extrema, by the type of the elements.
pub(crate) static ARGS: Source = Source {
    family: "arg-reduce",
    path: "tensor/src/ops/reduce/arg.cu",
    before: "",
    text: include_str!("arg.cu"),
    after: "",
    types: TYPES,
};

/// Elements from which on a block computes a result, and not a thread.
const MANY: usize = 64;
/// Results from which on the threads are busy with one each, where neighbours lie side by side.
const MANY_RESULTS: usize = 8 * 1024;

/// `y = reduce(x)` over the axes in `mask`.
pub(super) fn reduce(
    lane: &mut Issue,
    kind: Reduction,
    x: &Tensor,
    mask: &[bool],
    y: &mut Tensor,
) -> Result<()> {
    let n = y.numel();
    if n == 0 {
        return Ok(());
    }
    // The places of the results are those of x's elements with index 0 on the reduced axes.
    let (mut kept, mut reduced) = (x.layout().at_origin(), x.layout().at_origin());
    let mut count = 1;
    for (axis, (&extent, &is_reduced)) in x.dims().iter().zip(mask).enumerate() {
        let one = extent.min(1);
        if is_reduced {
            kept = kept.narrow(axis as isize, 0, one)?;
            count *= extent;
        } else {
            reduced = reduced.narrow(axis as isize, 0, one)?;
        }
    }
    if count == 0 {
        kept = y.layout().clone(); // nothing is read
    }
    let innermost = x.layout().strides().iter().zip(mask);
    let along_rows = innermost
        .rev()
        .find(|(s, _)| **s == 1)
        .is_none_or(|(_, m)| *m);
    let by_block = count >= MANY && (along_rows || n < MANY_RESULTS);
    let name = match (kind, by_block) {
        (Reduction::Sum, true) => "sum_by_block",
        (Reduction::Max, true) => "max_by_block",
        (Reduction::Min, true) => "min_by_block",
        (Reduction::Sum, false) => "sum_by_thread",
        (Reduction::Max, false) => "max_by_thread",
        (Reduction::Min, false) => "min_by_thread",
    };
    let op = lane.op();
    let (kept, reduced) = (View::new(op, &kept)?, View::new(op, &reduced)?);
    let args = [
        lane.address(x),
        Arg::Struct(bytemuck::bytes_of(&kept)),
        Arg::Struct(bytemuck::bytes_of(&reduced)),
        lane.address(y),
        Arg::Int(n as i64),
        Arg::Int(count as i64),
    ];
    let grid = match by_block {
        true => Grid::over(n.saturating_mul(256)),
        false => Grid::over(n),
    };
    lane.launch(&KERNELS, &[x.dtype(), y.dtype()], name, grid, &args)
}

/// `y` = where along `axis` the extremum of `x` is.
pub(super) fn arg_reduce(
    lane: &mut Issue,
    kind: Reduction,
    x: &Tensor,
    axis: usize,
    y: &mut Tensor,
) -> Result<()> {
    let (n, count) = (y.numel(), x.dims()[axis]);
    if n == 0 {
        return Ok(());
    }
    let along = x.layout().strides()[axis];
    let kept = x.layout().narrow(axis as isize, 0, 1)?.at_origin();
    // As for the other reductions: neighbouring threads read neighbouring elements.
    let along_rows = along == 1 || x.layout().strides().iter().all(|&s| s != 1);
    let by_block = count >= MANY && (along_rows || n < MANY_RESULTS);
    let (name, grid) = match (kind, by_block) {
        (Reduction::Min, true) => ("argmin_by_block", Grid::over(n.saturating_mul(256))),
        (Reduction::Min, false) => ("argmin_by_thread", Grid::over(n)),
        (_, true) => ("argmax_by_block", Grid::over(n.saturating_mul(256))),
        (_, false) => ("argmax_by_thread", Grid::over(n)),
    };
    let kept = View::new(lane.op(), &kept)?;
    let args = [
        lane.address(x),
        Arg::Struct(bytemuck::bytes_of(&kept)),
        Arg::Int(along as i64),
        lane.address(y),
        Arg::Int(n as i64),
        Arg::Int(count as i64),
    ];
    lane.launch(&ARGS, &[x.dtype()], name, grid, &args)
}
