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
/// Blocks that keep a card busy: with fewer results, several share one.
const BLOCKS: usize = 1024;
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
    let [by_block, by_columns, by_thread, join] = match kind {
        Reduction::Sum => [
            "sum_by_block",
            "sum_by_columns",
            "sum_by_thread",
            "sum_join",
        ],
        Reduction::Max => [
            "max_by_block",
            "max_by_columns",
            "max_by_thread",
            "max_join",
        ],
        Reduction::Min => [
            "min_by_block",
            "min_by_columns",
            "min_by_thread",
            "min_join",
        ],
    };
    let op = lane.op();
    let types = [x.dtype(), y.dtype()];
    let (kept, reduced) = (View::new(op, &kept)?, View::new(op, &reduced)?);
    let (from, to) = (lane.address(x), lane.address(y));
    let kept = Arg::Struct(bytemuck::bytes_of(&kept));
    let reduced = Arg::Struct(bytemuck::bytes_of(&reduced));
    let [n_arg, count_arg] = [n, count].map(|v| Arg::Int(v as i64));
    if count < MANY {
        let args = [from, kept, reduced, to, n_arg, count_arg];
        return lane.launch(&KERNELS, &types, by_thread, Grid::over(n), &args);
    }
    let (name, units, least) = match along_rows {
        true => (by_block, n, 16 * 256),
        false => (by_columns, n.div_ceil(32), MANY),
    };
    // The number of parts, and so the order of the sums, follows from the shape alone.
    let parts = (BLOCKS / units).min(count / least).max(1);
    let folds = match parts {
        1 => Arg::Address(0),
        _ => lane.scratch(parts * n * y.dtype().size().max(4))?,
    };
    lane.prepare(&KERNELS, &types, join)?;
    let args = [
        from,
        kept,
        reduced,
        folds,
        to,
        n_arg,
        count_arg,
        Arg::Int(parts as i64),
    ];
    let grid = Grid::over(units.saturating_mul(parts).saturating_mul(256));
    lane.launch(&KERNELS, &types, name, grid, &args)?;
    match parts {
        1 => Ok(()),
        _ => {
            let args = [folds, to, n_arg, Arg::Int(parts as i64)];
            lane.launch(&KERNELS, &types, join, Grid::over(n), &args)
        }
    }
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
