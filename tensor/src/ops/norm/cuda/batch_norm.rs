//! Launches of batch normalisation.

use super::planes::{Affine, Channels, Image, Walk, planes_cu};
use crate::cuda::{Arg, FLOATS, Grid, Issue, Source, View};
use crate::ops::norm::batch_norm::{BatchNormMask, BatchNormSaved, Dims, Input, Origin};
use crate::{Result, Tensor};

pub(crate) static KERNELS: Source = Source {
    family: "batch-norm",
    path: "tensor/src/ops/norm/cuda/batch_norm.cu",
    before: planes_cu!(),
    text: include_str!("batch_norm.cu"),
    after: "",
    types: FLOATS,
};

pub(crate) static BACKWARD: Source = Source {
    family: "batch-norm-backward",
    path: "tensor/src/ops/norm/cuda/batch_norm_backward.cu",
    before: planes_cu!(),
    text: include_str!("batch_norm_backward.cu"),
    after: "",
    types: FLOATS,
};

/// Bytes of `Moments` and `Sums` of the kernels.
const MOMENTS: usize = 24;
const SUMS: usize = 16;

/// Normalises with the statistics of the batch, which are written.
pub(in crate::ops::norm) fn forward(
    lane: &mut Issue,
    d: &Dims,
    input: &Input<'_>,
    (mean, var, invstd): (&mut Tensor, &mut Tensor, &mut Tensor),
    out: &mut Tensor,
) -> Result<()> {
    if d.c == 0 {
        return Ok(());
    }
    let x = input.x;
    let types = [x.dtype()];
    let walk = Walk::new(d, &[Some(x)]);
    let partial = lane.scratch(d.c * walk.entries * MOMENTS)?;
    if walk.entries > 0 {
        let at = Image::new(lane, Some(x))?;
        let args = [
            lane.address(x),
            Arg::Struct(bytemuck::bytes_of(&at)),
            Arg::Struct(bytemuck::bytes_of(&walk.planes)),
            Arg::Struct(bytemuck::bytes_of(&walk.split)),
            partial,
        ];
        let name = walk.name("batch_norm_moments_wide", "batch_norm_moments_single");
        lane.launch(&KERNELS, &types, name, walk.grid, &args)?;
    }
    let args = [
        partial,
        Arg::Int(walk.entries as i64),
        Arg::Int(d.c as i64),
        Arg::Real(input.eps),
        lane.address(mean),
        lane.address(var),
        lane.address(invstd),
    ];
    lane.launch(
        &KERNELS,
        &types,
        "batch_norm_statistics",
        walk.by_channel(),
        &args,
    )?;
    let statistics = [mean, invstd].map(|t| Channels::computed(lane.address(t)));
    normalise(lane, d, input, statistics, out)
}

/// Normalises with given statistics.
pub(in crate::ops::norm) fn inference(
    lane: &mut Issue,
    d: &Dims,
    input: &Input<'_>,
    (mean, var): (&Tensor, &Tensor),
    out: &mut Tensor,
) -> Result<()> {
    if out.numel() == 0 {
        return Ok(());
    }
    let scratch = lane.scratch(d.c * input.x.dtype().compute().size())?;
    launch_invstd(lane, var, input.eps, scratch)?;
    let mean = Channels::new(lane, Some(mean), input.x);
    normalise(lane, d, input, [mean, Channels::computed(scratch)], out)
}

/// `1 / √(var + eps)`.
pub(in crate::ops::norm) fn invstd(
    lane: &mut Issue,
    var: &Tensor,
    eps: f64,
    out: &mut Tensor,
) -> Result<()> {
    let out = lane.address(out);
    launch_invstd(lane, var, eps, out)
}

fn launch_invstd(lane: &mut Issue, var: &Tensor, eps: f64, out: Arg<'_>) -> Result<()> {
    let n = var.numel();
    if n == 0 {
        return Ok(());
    }
    let view = View::new(lane.op(), var.layout())?;
    let args = [
        lane.address(var),
        Arg::Struct(bytemuck::bytes_of(&view)),
        Arg::Real(eps),
        out,
        Arg::Int(n as i64),
    ];
    let types = [var.dtype()];
    lane.launch(&KERNELS, &types, "batch_norm_invstd", Grid::over(n), &args)
}

fn normalise(
    lane: &mut Issue,
    d: &Dims,
    input: &Input<'_>,
    [mean, invstd]: [Channels; 2],
    out: &mut Tensor,
) -> Result<()> {
    if out.numel() == 0 {
        return Ok(());
    }
    let (x, residual) = (input.x, input.residual);
    let walk = Walk::new(d, &[Some(x), residual, Some(out)]);
    let (weight, bias) = input.affine;
    let affine = Affine {
        mean,
        invstd,
        weight: Channels::new(lane, weight, x),
        bias: Channels::new(lane, bias, x),
    };
    let places = (Image::new(lane, Some(x))?, Image::new(lane, residual)?);
    let args = [
        lane.address(x),
        Arg::Struct(bytemuck::bytes_of(&places.0)),
        Arg::Struct(bytemuck::bytes_of(&affine)),
        residual.map_or(Arg::Address(0), |t| lane.address(t)),
        Arg::Struct(bytemuck::bytes_of(&places.1)),
        Arg::Small(i32::from(input.relu)),
        lane.address(out),
        Arg::Struct(bytemuck::bytes_of(&walk.planes)),
    ];
    let name = walk.name("batch_norm_wide", "batch_norm_single");
    lane.launch(&KERNELS, &[x.dtype()], name, walk.over(), &args)
}

/// The gradients of the input, of scale and shift, and of the residual where there was one.
pub(in crate::ops::norm) fn backward(
    lane: &mut Issue,
    d: &Dims,
    grad: &Tensor,
    saved: &BatchNormSaved<'_>,
    origin: Origin,
    (dx, (dw, db), residual): (&mut Tensor, (&mut Tensor, &mut Tensor), Option<&mut Tensor>),
) -> Result<()> {
    if d.c == 0 {
        return Ok(());
    }
    let x = saved.input;
    let types = [x.dtype()];
    let (mask, output) = match saved.activation {
        BatchNormMask::Linear => (0, None),
        BatchNormMask::Relu => (1, None),
        BatchNormMask::ResidualRelu(output) => (2, Some(output)),
    };
    let walk = Walk::new(d, &[Some(x), Some(grad), output]);
    let partial = lane.scratch(d.c * walk.entries * SUMS)?;
    let factor = match origin {
        Origin::Batch => lane.scratch(d.c * 2 * x.dtype().compute().size())?,
        Origin::Given => Arg::Address(0),
    };
    let affine = Affine {
        mean: Channels::new(lane, Some(saved.mean), x),
        invstd: Channels::new(lane, Some(saved.invstd), x),
        weight: Channels::new(lane, saved.weight, x),
        bias: Channels::new(lane, saved.bias, x),
    };
    let at = Image::new(lane, Some(x))?;
    let masked = residual.map(|t| &*t);
    if walk.entries > 0 {
        let grad_at = Image::new(lane, Some(grad))?;
        let output_at = Image::new(lane, output)?;
        let args = [
            lane.address(grad),
            Arg::Struct(bytemuck::bytes_of(&grad_at)),
            lane.address(x),
            Arg::Struct(bytemuck::bytes_of(&at)),
            output.map_or(Arg::Address(0), |t| lane.address(t)),
            Arg::Struct(bytemuck::bytes_of(&output_at)),
            masked.map_or(Arg::Address(0), |t| lane.address(t)),
            Arg::Struct(bytemuck::bytes_of(&affine)),
            Arg::Small(mask),
            Arg::Struct(bytemuck::bytes_of(&walk.planes)),
            Arg::Struct(bytemuck::bytes_of(&walk.split)),
            partial,
        ];
        let name = walk.name("batch_norm_sums_wide", "batch_norm_sums_single");
        lane.launch(&BACKWARD, &types, name, walk.grid, &args)?;
    }
    let (dw, db) = (
        Channels::new(lane, Some(dw), x),
        Channels::new(lane, Some(db), x),
    );
    let args = [
        partial,
        Arg::Int(walk.entries as i64),
        Arg::Int(d.c as i64),
        Arg::Struct(bytemuck::bytes_of(&affine)),
        Arg::Struct(bytemuck::bytes_of(&dw)),
        Arg::Struct(bytemuck::bytes_of(&db)),
        Arg::Real((d.n * d.plane) as f64),
        factor,
    ];
    let by_channel = walk.by_channel();
    lane.launch(
        &BACKWARD,
        &types,
        "batch_norm_parameters",
        by_channel,
        &args,
    )?;
    if dx.numel() == 0 {
        return Ok(());
    }
    // What is masked already stands in the residual's gradient.
    let (g, mask) = match masked {
        Some(masked) => (masked, 0),
        None => (grad, mask),
    };
    let walk = Walk::new(d, &[Some(x), Some(g), Some(dx)]);
    let g_at = Image::new(lane, Some(g))?;
    let args = [
        lane.address(g),
        Arg::Struct(bytemuck::bytes_of(&g_at)),
        lane.address(x),
        Arg::Struct(bytemuck::bytes_of(&at)),
        Arg::Struct(bytemuck::bytes_of(&affine)),
        Arg::Small(mask),
        factor,
        lane.address(dx),
        Arg::Struct(bytemuck::bytes_of(&walk.planes)),
    ];
    let name = walk.name("batch_norm_input_wide", "batch_norm_input_single");
    lane.launch(&BACKWARD, &types, name, walk.over(), &args)
}
