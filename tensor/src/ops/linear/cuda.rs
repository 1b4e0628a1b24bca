//! On cards: products by cuBLASLt, and a kernel for what its epilogues do not have.

use super::Activation;
use crate::cuda::{
    Arg, EPILOGUE_ALIGNMENT, Epilogue, FLOATS, Function, Gemm, Grid, Issue, Matrix, Source,
};
use crate::ops::unary::{self, cuda::Argument};
use crate::{DType, GeluKind, Result, Tensor, unary_table};

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

/// The function of cuBLASLt that an activation is, where the program lets it be used.
fn of_library(lane: &Issue, activation: Activation, dtype: DType) -> Option<Function> {
    let allowed = lane.has_library_activations() && dtype != DType::F64;
    match activation {
        Activation::None => Some(Function::Identity),
        Activation::Relu if allowed => Some(Function::Relu),
        Activation::Gelu(GeluKind::Tanh) if allowed => Some(Function::Gelu),
        _ => None,
    }
}

/// The address of a bias, where cuBLASLt can add it.
fn readable_bias(lane: &Issue, bias: Option<&Tensor>) -> Option<Option<u64>> {
    let Some(bias) = bias else { return Some(None) };
    let at = lane.address(bias).bits();
    (bias.is_contiguous() && at.is_multiple_of(EPILOGUE_ALIGNMENT)).then_some(Some(at))
}

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
    if let Some(bias) = readable_bias(lane, bias).filter(|_| k > 0) {
        let with = |function| Gemm {
            epilogue: Epilogue {
                bias,
                function,
                arguments: None,
            },
            ..product(Matrix::dense(at, m, n))
        };
        if let Some(function) = of_library(lane, activation, dtype) {
            let whole = with(function);
            if lane.has_product(&whole)? {
                return lane.gemm(&whole);
            }
        }
        // Rounding before ReLU changes nothing.
        let sums = with(Function::Identity);
        if activation == Activation::Relu && lane.has_product(&sums)? {
            lane.prepare(&KERNELS, &[dtype], "apply")?;
            lane.gemm(&sums)?;
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

/// As [`forward`], and the sums before the activation: by one product, or by two passes. `y` is there
/// where there is an activation.
pub(super) fn forward_with_sums(
    lane: &mut Issue,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    activation: Activation,
    sums: &mut Tensor,
    y: Option<&mut Tensor>,
) -> Result<()> {
    let (Some(kind), Some(y)) = (activation.function(), y) else {
        return forward(lane, x, weight, bias, Activation::None, sums);
    };
    let [m, k] = [x.dims()[0], x.dims()[1]];
    let (n, dtype) = (weight.dims()[0], y.dtype());
    let function = of_library(lane, activation, dtype);
    let terms = m.saturating_mul(n).saturating_mul(k);
    let whole = n.is_multiple_of(8) && terms > 0 && function == Some(Function::Gelu);
    if let Some(bias) = readable_bias(lane, bias).filter(|_| whole) {
        let (a, b) = (lane.matrix(x)?, lane.matrix(weight)?.t());
        let c = Matrix::dense(lane.address(y), m, n);
        let whole = Gemm {
            epilogue: Epilogue {
                bias,
                function: Function::Gelu,
                arguments: Some(lane.address(sums).bits()),
            },
            ..Gemm::new([m, n, k], dtype, [a, b, c])
        };
        if lane.has_product(&whole)? {
            return lane.gemm(&whole);
        }
    }
    forward(lane, x, weight, bias, Activation::None, sums)?;
    unary::cuda::unary(lane, kind, sums, y)
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
