//! CUDA kernels: a tiled product with an epilogue.

use super::Activation;
use crate::cuda::{Arg, FLOATS, Grid, Issue, Source};
use crate::ops::unary::GeluKind;
use crate::{Result, Tensor};

pub(crate) static KERNELS: Source = Source {
    family: "linear",
    path: "tensor/src/ops/linear/kernel.cu",
    before: crate::ops::unary::cuda::FUNCTIONS,
    text: include_str!("kernel.cu"),
    after: "",
    types: FLOATS,
};

/// Rows and columns of the part of the result that a block of threads computes: `TILE` of the kernel.
const TILE: usize = 64;

/// `y = act(x weightᵀ + bias)` for matrices; `y` may have more axes.
pub(super) fn forward(
    lane: &mut Issue,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    activation: Activation,
    y: &mut Tensor,
) -> Result<()> {
    // As the switch of the kernel has them.
    let function = match activation {
        Activation::None => 0,
        Activation::Relu => 1,
        Activation::Gelu(GeluKind::Exact) => 2,
        Activation::Gelu(GeluKind::Tanh) => 3,
        Activation::Silu => 4,
        Activation::Tanh => 5,
        Activation::Sigmoid => 6,
    };
    multiply(lane, x, &weight.transpose(0, 1)?, bias, function, y)
}

/// `c = a b` for matrices; `c` may have more axes.
pub(super) fn product(lane: &mut Issue, a: &Tensor, b: &Tensor, c: &mut Tensor) -> Result<()> {
    multiply(lane, a, b, None, 0, c)
}

fn multiply(
    lane: &mut Issue,
    a: &Tensor,
    b: &Tensor,
    bias: Option<&Tensor>,
    function: i32,
    c: &mut Tensor,
) -> Result<()> {
    let (m, k, n) = (a.dims()[0], a.dims()[1], b.dims()[1]);
    if m == 0 || n == 0 {
        return Ok(());
    }
    let strides = |t: &Tensor| {
        let strides = t.layout().strides();
        [Arg::Int(strides[0] as i64), Arg::Int(strides[1] as i64)]
    };
    let ([a0, a1], [b0, b1]) = (strides(a), strides(b));
    let (bias, step) = match bias {
        Some(bias) => (lane.address(bias), bias.layout().strides()[0]),
        None => (Arg::Address(0), 0),
    };
    let args = [
        lane.address(a),
        a0,
        a1,
        lane.address(b),
        b0,
        b1,
        bias,
        Arg::Int(step as i64),
        Arg::Small(function),
        lane.address(c),
        Arg::Int(m as i64),
        Arg::Int(n as i64),
        Arg::Int(k as i64),
    ];
    // Along x, which has room for more than any matrix has tiles.
    let tiles = m.div_ceil(TILE) * n.div_ceil(TILE);
    let grid = Grid {
        blocks: [u32::try_from(tiles).unwrap_or(u32::MAX), 1, 1],
        threads: [256, 1, 1],
    };
    lane.launch(&KERNELS, &[c.dtype()], "multiply", grid, &args)
}
