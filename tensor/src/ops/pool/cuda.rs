//! CUDA kernels. The gradient of the maximum goes to arbitrary pixels: each plane's outputs are added
//! in order by one warp or, where planes are few and large, sorted first.

use super::windows::Windows;
use crate::cuda::{Arg, FLOATS, Grid, Issue, Source, View};
use crate::ops::index::cuda::{Sums, add_sorted};
use crate::ops::index::sort::{Keys, Sort};
use crate::{Layout, Result, Shape, Tensor};

pub(crate) static KERNELS: Source = Source {
    family: "pool",
    path: "tensor/src/ops/pool/kernel.cu",
    before: "",
    text: include_str!("kernel.cu"),
    after: "",
    types: FLOATS,
};

/// Pixels of a window from which on a warp takes its mean, where windows lie apart.
const WARP: usize = 32;
/// Pixels of a window from which on a block takes its mean.
const BLOCK: usize = 2048;
/// Pixels between neighbouring windows from which on they lie apart.
const APART: usize = 4;
/// Planes from which on the card is busy with a warp for each of them.
const MANY_PLANES: usize = 1024;
/// Outputs of a plane that one warp adds up sooner than they are sorted.
const FEW_OUTPUTS: usize = 4096;

/// One axis of the windows: `Side` of the kernels.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Side {
    inp: i64,
    out: i64,
    kernel: i64,
    stride: i64,
    pad: i64,
    dilation: i64,
}

/// `Windows` of the kernels.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Shapes {
    sides: [Side; 2],
    parts: i64,
    count_pad: i64,
}

impl Shapes {
    fn new(w: &Windows) -> Shapes {
        match w {
            Windows::Fixed { axes, count_pad } => Shapes {
                sides: axes.map(|a| Side {
                    inp: a.inp as i64,
                    out: a.out as i64,
                    kernel: a.kernel as i64,
                    stride: a.stride as i64,
                    pad: a.pad as i64,
                    dilation: a.dilation as i64,
                }),
                parts: 0,
                count_pad: (*count_pad).into(),
            },
            Windows::Parts { inp, out } => Shapes {
                sides: [0, 1].map(|d| Side {
                    inp: inp[d] as i64,
                    out: out[d] as i64,
                    kernel: 1,
                    stride: 1,
                    pad: 0,
                    dilation: 1,
                }),
                parts: 1,
                count_pad: 0,
            },
        }
    }
}

/// A tensor `[n, c, h, w]` as a kernel reads it: its address, where its planes start, and how far
/// rows and pixels are apart.
struct Planes {
    address: Arg<'static>,
    planes: View,
    steps: [Arg<'static>; 2],
}

impl Planes {
    fn new(lane: &Issue, t: &Tensor) -> Result<Planes> {
        let starts = match t.numel() {
            0 => Layout::contiguous(lane.op(), [1].into())?, // nothing is read
            _ => t.layout().at_origin().narrow(2, 0, 1)?.narrow(3, 0, 1)?,
        };
        let strides = t.layout().strides();
        Ok(Planes {
            address: lane.address(t),
            planes: View::new(lane.op(), &starts)?,
            steps: [Arg::Int(strides[2] as i64), Arg::Int(strides[3] as i64)],
        })
    }
}

/// The maximum of each window, and where it stands in its plane.
pub(super) fn max(
    lane: &mut Issue,
    w: &Windows,
    x: &Tensor,
    y: &mut Tensor,
    at: &mut Tensor,
) -> Result<()> {
    let n = y.numel();
    if n == 0 {
        return Ok(());
    }
    let (shapes, at) = (Shapes::new(w), lane.address(at));
    let x = Planes::new(lane, x)?;
    let args = [
        x.address,
        Arg::Struct(bytemuck::bytes_of(&x.planes)),
        x.steps[0],
        x.steps[1],
        Arg::Struct(bytemuck::bytes_of(&shapes)),
        lane.address(y),
        at,
        Arg::Int(n as i64),
    ];
    lane.launch(&KERNELS, &[y.dtype()], "max_forward", Grid::over(n), &args)
}

/// The mean of each window.
pub(super) fn average(lane: &mut Issue, w: &Windows, x: &Tensor, y: &mut Tensor) -> Result<()> {
    let n = y.numel();
    if n == 0 {
        return Ok(());
    }
    let (window, apart) = match w {
        Windows::Fixed { axes, .. } => (
            axes[0].kernel.saturating_mul(axes[1].kernel),
            axes[1].stride,
        ),
        Windows::Parts { inp, out } => (
            inp[0]
                .div_ceil(out[0])
                .saturating_mul(inp[1].div_ceil(out[1])),
            inp[1] / out[1],
        ),
    };
    let (name, grid) = match window {
        BLOCK.. if apart >= APART => ("average_by_block", Grid::over(n.saturating_mul(256))),
        WARP.. if apart >= APART => ("average_by_warp", Grid::over(n.saturating_mul(32))),
        _ => ("average_by_thread", Grid::over(n)),
    };
    let shapes = Shapes::new(w);
    let x = Planes::new(lane, x)?;
    let args = [
        x.address,
        Arg::Struct(bytemuck::bytes_of(&x.planes)),
        x.steps[0],
        x.steps[1],
        Arg::Struct(bytemuck::bytes_of(&shapes)),
        lane.address(y),
        Arg::Int(n as i64),
    ];
    lane.launch(&KERNELS, &[y.dtype()], name, grid, &args)
}

/// Spreads each gradient evenly over its window.
pub(super) fn average_backward(
    lane: &mut Issue,
    w: &Windows,
    dy: &Tensor,
    dx: &mut Tensor,
) -> Result<()> {
    let n = dx.numel();
    if n == 0 {
        return Ok(());
    }
    let shapes = Shapes::new(w);
    let dy = Planes::new(lane, dy)?;
    let args = [
        dy.address,
        Arg::Struct(bytemuck::bytes_of(&dy.planes)),
        dy.steps[0],
        dy.steps[1],
        Arg::Struct(bytemuck::bytes_of(&shapes)),
        lane.address(dx),
        Arg::Int(n as i64),
    ];
    let types = [dx.dtype()];
    lane.launch(&KERNELS, &types, "average_backward", Grid::over(n), &args)
}

/// Adds each gradient to the pixel whose value was taken, in the order of the outputs.
pub(super) fn max_backward(
    lane: &mut Issue,
    dy: &Tensor,
    at: &Tensor,
    dx: &mut Tensor,
) -> Result<()> {
    let op = lane.op();
    let plane = |t: &Tensor| t.dims()[2] * t.dims()[3];
    let planes = dx.dims()[0] * dx.dims()[1];
    let (n, outs, pixels) = (dx.numel(), plane(dy), plane(dx));
    if dy.numel() == 0 {
        return Ok(()); // Each plane has an output, so there are no planes.
    }
    let sorted = n > 0 && planes < MANY_PLANES && outs > FEW_OUTPUTS;
    let (dy_view, at_view) = (View::new(op, dy.layout())?, View::new(op, at.layout())?);
    let sort = match sorted {
        true => Some(Sort::new(lane, dy.numel(), n)?),
        false => None,
    };
    let [fault, place] = lane.index_flag()?;
    // Half types add up in f32.
    let (dtype, wide) = (dx.dtype(), dx.dtype().compute());
    let sum = match dtype == wide {
        true => lane.address(dx),
        false => lane.scratch(n.saturating_mul(wide.size()))?,
    };
    let count = Arg::Int(n as i64);
    if let Some(sort) = sort {
        lane.launch(&KERNELS, &[dtype], "clear", Grid::over(n), &[sum, count])?;
        let starts = Layout::contiguous(op, Shape::from([planes, pixels]))?;
        let shape = Shape::from([planes, outs]);
        let keys = Keys {
            indices: at,
            layout: at.layout(),
            lines: &starts.narrow(1, 0, 1)?.broadcast_to(op, &shape)?,
            along: 1,
            extent: pixels,
            or_none: true,
            none: n,
        };
        let sums = Sums {
            sum,
            count: dy.numel(),
            inner: 1,
            extent: n,
        };
        add_sorted(lane, dy, &sort, &keys, &sums)?;
    } else {
        let args = [
            lane.address(dy),
            Arg::Struct(bytemuck::bytes_of(&dy_view)),
            lane.address(at),
            Arg::Struct(bytemuck::bytes_of(&at_view)),
            sum,
            Arg::Int(planes as i64),
            Arg::Int(outs as i64),
            Arg::Int(pixels as i64),
            fault,
            place,
        ];
        let grid = Grid::over(planes.saturating_mul(32));
        lane.launch(&KERNELS, &[dtype], "max_backward", grid, &args)?;
    }
    if dtype == wide || n == 0 {
        return Ok(());
    }
    let args = [sum, lane.address(dx), count];
    lane.launch(&KERNELS, &[dtype], "round_sums", Grid::over(n), &args)
}
