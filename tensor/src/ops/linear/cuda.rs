//! On cards: products by cuBLASLt, and a kernel for what its epilogues do not have.

use super::Activation;
use crate::cuda::{Arg, FLOATS, Gemm, Grid, Issue, Matrix, Source};
use crate::ops::unary::cuda::Argument;
use crate::{DType, Result, Tensor, unary_table};

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

/// Bytes at a multiple of which a bias lies that cuBLASLt adds: its algorithms read several elements at
/// once, and no preference tells them where a bias lies.
const BIAS_ALIGNMENT: u64 = 16;

/// `y = act(x weightᵀ + bias)` for matrices; `y` may have more axes.
pub(super) fn forward(
    lane: &mut Issue,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    activation: Activation,
    y: &mut Tensor,
) -> Result<()> {
    let [m, k] = [x.dims()[0], x.dims()[1]];
    let n = weight.dims()[0];
    if m == 0 || n == 0 {
        return Ok(());
    }
    let dtype = y.dtype();
    let (a, b) = (lane.matrix(x)?, lane.matrix(weight)?.t());
    let at = lane.address(y);
    let product = |c| Gemm::new([m, n, k], dtype, [a, b, c]);
    let (function, argument) = activation.kernel();
    let [function, argument] = [Arg::Small(function), Arg::Real(argument)];
    let n_all = Arg::Int((m * n) as i64);
    let grid = Grid::over(m * n);
    // Rounding first changes nothing here.
    let last = matches!(activation, Activation::None | Activation::Relu);
    let fits = |bias: &Tensor| {
        bias.is_contiguous() && lane.address(bias).bits().is_multiple_of(BIAS_ALIGNMENT)
    };
    if k > 0 && last && bias.is_none_or(fits) {
        let bias = bias.map(|bias| lane.address(bias).bits());
        let product = Gemm {
            bias,
            ..product(Matrix::dense(at, m, n))
        };
        if lane.has_product(&product)? {
            if activation == Activation::None {
                return lane.gemm(&product);
            }
            lane.prepare(&KERNELS, &[dtype], "apply")?;
            lane.gemm(&product)?;
            let args = [function, argument, at, n_all];
            return lane.launch(&KERNELS, &[dtype], "apply", grid, &args);
        }
    }
    // The sums of half types wait as floats: they are rounded once, behind the activation.
    let wide = match dtype {
        DType::F64 => DType::F64,
        _ => DType::F32,
    };
    let sums = match dtype == wide {
        true => at,
        false => lane.scratch(m * n * wide.size())?,
    };
    let product = product(Matrix::dense(sums, m, n));
    lane.prepare(&KERNELS, &[dtype], "finish")?;
    lane.gemm(&Gemm {
        result: wide,
        ..product
    })?;
    let (bias, step) = match bias {
        Some(bias) => (lane.address(bias), bias.layout().strides()[0]),
        None => (Arg::Address(0), 0),
    };
    let [step, columns] = [step, n].map(|n| Arg::Int(n as i64));
    let args = [sums, bias, step, function, argument, at, n_all, columns];
    lane.launch(&KERNELS, &[dtype], "finish", grid, &args)
}

/// `c = a b` for matrices; `c` may have more axes.
pub(super) fn product(lane: &mut Issue, a: &Tensor, b: &Tensor, c: &mut Tensor) -> Result<()> {
    let [m, k, n] = [a.dims()[0], a.dims()[1], b.dims()[1]];
    if m == 0 || n == 0 {
        return Ok(());
    }
    let (dtype, at) = (c.dtype(), lane.address(c));
    let (a, b) = (lane.matrix(a)?, lane.matrix(b)?);
    let c = Matrix::dense(at, m, n);
    lane.gemm(&Gemm::new([m, n, k], dtype, [a, b, c]))
}
