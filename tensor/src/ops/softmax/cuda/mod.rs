//! CUDA kernels of the softmax family: a group of threads for each row.

mod cross_entropy;

pub(crate) use cross_entropy::KERNELS as CROSS_ENTROPY;
pub(super) use cross_entropy::{cross_entropy, cross_entropy_backward};

use super::Kind;
use crate::cuda::{Arg, FLOATS, Issue, Rows, Source, Walk, rows_cu};
use crate::{Result, Tensor};

/// Rows, and the exponentials of a row.
const EXPONENTIALS: &str = concat!(
    rows_cu!(),
    "#line 1 \"tensor/src/ops/softmax/cuda/exponentials.cu\"\n",
    include_str!("exponentials.cu")
);

pub(crate) static KERNELS: Source = Source {
    family: "softmax",
    path: "tensor/src/ops/softmax/cuda/softmax.cu",
    before: EXPONENTIALS,
    text: include_str!("softmax.cu"),
    after: "",
    types: FLOATS,
};

impl Kind {
    fn is_logarithm(self) -> Arg<'static> {
        Arg::Small(i32::from(self == Kind::LogSoftmax))
    }
}

/// `y = kind(x)` along the last axis.
pub(super) fn forward(lane: &mut Issue, kind: Kind, x: &Tensor, y: &mut Tensor) -> Result<()> {
    if y.numel() == 0 {
        return Ok(());
    }
    let walk = Walk::cut(&[x, y], 1, None);
    let rows = Rows::new(lane.op(), x, 1)?;
    let args = [
        lane.address(x),
        Arg::Struct(bytemuck::bytes_of(&rows)),
        lane.address(y),
        Arg::Int(count(y) as i64),
        Arg::Int(width(x) as i64),
        kind.is_logarithm(),
    ];
    let name = match walk.wide {
        true => "softmax_wide",
        false => "softmax_single",
    };
    lane.launch(&KERNELS, &[x.dtype()], name, walk.grid, &args)
}

/// The gradient of `x`, where `y = kind(x)`.
pub(super) fn backward(
    lane: &mut Issue,
    kind: Kind,
    g: &Tensor,
    y: &Tensor,
    dx: &mut Tensor,
) -> Result<()> {
    if dx.numel() == 0 {
        return Ok(());
    }
    let op = lane.op();
    let walk = Walk::cut(&[g, y, dx], 2, None);
    let rows = (Rows::new(op, g, 1)?, Rows::new(op, y, 1)?);
    let args = [
        lane.address(g),
        Arg::Struct(bytemuck::bytes_of(&rows.0)),
        lane.address(y),
        Arg::Struct(bytemuck::bytes_of(&rows.1)),
        lane.address(dx),
        Arg::Int(count(dx) as i64),
        Arg::Int(width(g) as i64),
        kind.is_logarithm(),
    ];
    let name = match walk.wide {
        true => "softmax_backward_wide",
        false => "softmax_backward_single",
    };
    lane.launch(&KERNELS, &[g.dtype()], name, walk.grid, &args)
}

/// The rows of a tensor, along its last axis.
fn count(t: &Tensor) -> usize {
    t.dims()
        .split_last()
        .map_or(1, |(_, lead)| lead.iter().product())
}

/// The elements of a row.
fn width(t: &Tensor) -> usize {
    t.dims().last().copied().unwrap_or(1)
}
