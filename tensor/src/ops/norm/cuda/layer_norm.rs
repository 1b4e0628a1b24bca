//! Launches of layer normalisation.

use crate::cuda::{Arg, FLOATS, Grid, Issue, Rows, Source, View, Walk, rows_cu};
use crate::{Layout, Result, Tensor};

pub(crate) static KERNELS: Source = Source {
    family: "layer-norm",
    path: "tensor/src/ops/norm/cuda/layer_norm.cu",
    before: rows_cu!(),
    text: include_str!("layer_norm.cu"),
    after: "",
    types: FLOATS,
};

/// Columns that a block sums, and threads that share a column: `COLUMNS` and `DEALT` of the kernels.
const COLUMNS: usize = 32;
const DEALT: usize = 8;
/// Blocks that keep a card busy.
const BUSY: usize = 1024;
/// Parts of the rows whose sums are added by one thread in the end, at most.
const MOST_PARTS: usize = 256;
/// Rows of a part, at least.
const LEAST_ROWS: usize = 64;

/// The address and the view of a parameter or a statistic; 0 where there is none.
fn operand(lane: &Issue, t: Option<&Tensor>) -> Result<(Arg<'static>, View)> {
    let op = lane.op();
    match t {
        Some(t) => Ok((lane.address(t), View::new(op, t.layout())?)),
        None => Ok((
            Arg::Address(0),
            View::new(op, &Layout::contiguous(op, [1].into())?)?,
        )),
    }
}

/// Normalises the rows of `x` and keeps their statistics `(mean, rstd)`.
pub(crate) fn forward(
    lane: &mut Issue,
    x: &Tensor,
    (weight, bias): (Option<&Tensor>, Option<&Tensor>),
    eps: f64,
    (mean, rstd): (&mut Tensor, &mut Tensor),
    out: &mut Tensor,
) -> Result<()> {
    let rows = mean.numel();
    if rows == 0 {
        return Ok(());
    }
    let axes = x.rank() - mean.rank();
    let width: usize = x.dims()[mean.rank()..].iter().product();
    let walk = Walk::new(axes, &[x, out], &[weight, bias], 1);
    let x_rows = Rows::new(lane.op(), x, axes)?;
    let (weight, bias) = (operand(lane, weight)?, operand(lane, bias)?);
    let args = [
        lane.address(x),
        Arg::Struct(bytemuck::bytes_of(&x_rows)),
        weight.0,
        Arg::Struct(bytemuck::bytes_of(&weight.1)),
        bias.0,
        Arg::Struct(bytemuck::bytes_of(&bias.1)),
        Arg::Real(eps),
        lane.address(mean),
        lane.address(rstd),
        lane.address(out),
        Arg::Int(rows as i64),
        Arg::Int(width as i64),
    ];
    let name = match walk.wide {
        true => "layer_norm_wide",
        false => "layer_norm_single",
    };
    lane.launch(&KERNELS, &[x.dtype()], name, walk.grid, &args)
}

/// The input's gradient and, under a weight, the weight's and the bias's.
pub(crate) fn backward(
    lane: &mut Issue,
    (dy, x, weight, (mean, rstd)): (&Tensor, &Tensor, Option<&Tensor>, (&Tensor, &Tensor)),
    dx: &mut Tensor,
    params: Option<(&mut Tensor, &mut Tensor)>,
) -> Result<()> {
    let (types, rows) = ([x.dtype()], mean.numel());
    let axes = x.rank() - mean.rank();
    let width: usize = x.dims()[mean.rank()..].iter().product();
    let tiles = width.div_ceil(COLUMNS);
    let parts = (BUSY / tiles).clamp(1, rows.div_ceil(LEAST_ROWS).clamp(1, MOST_PARTS));
    let partial = match params {
        Some(_) => lane.scratch(parts * 2 * width * x.dtype().compute().size())?,
        None => Arg::Address(0),
    };
    let op = lane.op();
    let (dy_rows, x_rows) = (Rows::new(op, dy, axes)?, Rows::new(op, x, axes)?);
    let (means, rstds) = (operand(lane, Some(mean))?, operand(lane, Some(rstd))?);
    let (dy_at, x_at) = (lane.address(dy), lane.address(x));
    if rows > 0 {
        let walk = Walk::new(axes, &[dy, x, dx], &[weight], 2);
        let weight = operand(lane, weight)?;
        let args = [
            dy_at,
            Arg::Struct(bytemuck::bytes_of(&dy_rows)),
            x_at,
            Arg::Struct(bytemuck::bytes_of(&x_rows)),
            weight.0,
            Arg::Struct(bytemuck::bytes_of(&weight.1)),
            means.0,
            Arg::Struct(bytemuck::bytes_of(&means.1)),
            rstds.0,
            Arg::Struct(bytemuck::bytes_of(&rstds.1)),
            lane.address(dx),
            Arg::Int(rows as i64),
            Arg::Int(width as i64),
        ];
        let name = match walk.wide {
            true => "layer_norm_backward_wide",
            false => "layer_norm_backward_single",
        };
        lane.launch(&KERNELS, &types, name, walk.grid, &args)?;
    }
    let Some((dw, db)) = params else {
        return Ok(());
    };
    let by_columns = |blocks: usize| Grid {
        blocks: [u32::try_from(blocks).unwrap_or(u32::MAX), 1, 1],
        threads: [COLUMNS as u32, DEALT as u32, 1],
        strides: false,
    };
    let args = [
        dy_at,
        Arg::Struct(bytemuck::bytes_of(&dy_rows)),
        x_at,
        Arg::Struct(bytemuck::bytes_of(&x_rows)),
        means.0,
        Arg::Struct(bytemuck::bytes_of(&means.1)),
        rstds.0,
        Arg::Struct(bytemuck::bytes_of(&rstds.1)),
        partial,
        Arg::Int(rows as i64),
        Arg::Int(width as i64),
        Arg::Int(rows.div_ceil(parts) as i64),
    ];
    let name = "layer_norm_columns";
    lane.launch(&KERNELS, &types, name, by_columns(tiles * parts), &args)?;
    let args = [
        partial,
        lane.address(dw),
        lane.address(db),
        Arg::Int(width as i64),
        Arg::Int(parts as i64),
    ];
    lane.launch(
        &KERNELS,
        &types,
        "layer_norm_parameters",
        by_columns(tiles),
        &args,
    )
}
