//! CUDA kernels: a tiled product with an epilogue.

use super::Activation;
use crate::cuda::{Arg, FLOATS, Grid, Issue, Source};
use crate::ops::unary::cuda::Argument;
use crate::{Result, Tensor, unary_table};

macro_rules! activations {
    (|$vx:ident, $vout:ident, $vg:ident| $({
        $Name:ident $name:ident ($($arg:ident: $ty:ty)?) $($rest:tt)*
    })*) => {
        /// The activations, by the numbers that [`Activation::kernel`] gives.
        const ACTIVATE: &str = concat!(
            "enum { activation_none", $(", activation_", stringify!($name),)* " };\n",
            "template <class R> __device__ R activate(int function, R p, R x) {\n",
            "    switch (function) {\n",
            $(
                "    case activation_", stringify!($name), ": return unary_", stringify!($name),
                "(x", $(", p /* ", stringify!($arg), " */",)? ");\n",
            )*
            "    default: return x;\n    }\n}\n",
        );

        impl Activation {
            /// Its number in the kernel, and its argument.
            fn kernel(self) -> (i32, f64) {
                let number = 0;
                $(
                    let number = number + 1;
                    if let Activation::$Name $(($arg))? = self {
                        return (number, 0.0 $(+ $arg.real())?);
                    }
                )*
                let _ = number;
                (0, 0.0)
            }
        }
    };
}

unary_table!(activations activations);

pub(crate) static KERNELS: Source = Source {
    family: "linear",
    path: "tensor/src/ops/linear/kernel.cu",
    before: crate::ops::unary::CUDA,
    text: include_str!("kernel.cu"),
    after: ACTIVATE,
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
    multiply(lane, x, &weight.transpose(0, 1)?, bias, activation, y)
}

/// `c = a b` for matrices; `c` may have more axes.
pub(super) fn product(lane: &mut Issue, a: &Tensor, b: &Tensor, c: &mut Tensor) -> Result<()> {
    multiply(lane, a, b, None, Activation::None, c)
}

fn multiply(
    lane: &mut Issue,
    a: &Tensor,
    b: &Tensor,
    bias: Option<&Tensor>,
    activation: Activation,
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
    let (function, argument) = activation.kernel();
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
        Arg::Real(argument),
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
