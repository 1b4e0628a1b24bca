//! CUDA kernels: one for each function and for each derivative, made from the table.

use super::{GeluKind, Unary};
use crate::cuda::{Arg, Grid, Issue, Source, View};
use crate::{DType, Error, Result, Tensor, unary_table};

/// An argument of a function, as a kernel gets it.
pub(crate) trait Argument {
    fn real(self) -> f64;
}

impl Argument for f64 {
    fn real(self) -> f64 {
        self
    }
}

impl Argument for GeluKind {
    fn real(self) -> f64 {
        match self {
            GeluKind::Exact => 0.0,
            GeluKind::Tanh => 1.0,
        }
    }
}

macro_rules! kernels {
    (|$vx:ident, $vout:ident, $vg:ident| $({
        $Name:ident $name:ident ($($arg:ident: $ty:ty)?) $values:tt $range:tt $gradient:tt $reference:tt
        $backward:tt $integers:tt $($rest:tt)*
    })*) => {
        /// An instance of the kernels' macros for each row.
        const INSTANCES: &str = concat!(
            "#if FLOATS\n",
            $("FORWARD(", stringify!($name), ", ", $("COMMA R(p) /* ", stringify!($arg), " */",)? ")\n",
            derivative!($name ($($arg)?) $backward),)*
            "#else\n",
            $(integer!($name $integers),)*
            "#endif\n",
        );

        impl Unary {
            /// The names of its kernels and its argument. The second one is there where the
            /// derivative is an operation of its own.
            fn kernels(self) -> (&'static str, &'static str, f64) {
                match self {
                    $(Unary::$Name $(($arg))? => (
                        concat!("forward_", stringify!($name)),
                        concat!("backward_", stringify!($name)),
                        0.0 $(+ $arg.real())?,
                    ),)*
                }
            }

            /// Whether integers have the function.
            fn of_integers(self) -> bool {
                match self {
                    $(Unary::$Name { .. } => integer!(@has $integers),)*
                }
            }
        }
    };
}

macro_rules! derivative {
    ($name:ident $args:tt []) => { "" };
    ($name:ident ($($arg:ident)?) [$back:ident $($rest:tt)*]) => {
        concat!(
            "BACKWARD(", stringify!($name), ", unary_", stringify!($back), ", ",
            $("COMMA R(p) /* ", stringify!($arg), " */",)? ")\n",
        )
    };
}

macro_rules! integer {
    (@has []) => {
        false
    };
    (@has [$($rest:tt)+]) => {
        true
    };
    ($name:ident []) => {
        ""
    };
    ($name:ident [$($rest:tt)+]) => {
        concat!("FORWARD(", stringify!($name), ", )\n")
    };
}

unary_table!(kernels);

pub(crate) static KERNELS: Source = Source {
    family: "unary",
    path: "tensor/src/ops/unary/kernel.cu",
    before: super::CUDA,
    text: include_str!("kernel.cu"),
    after: INSTANCES,
    types: &[
        &[DType::F32],
        &[DType::F64],
        &[DType::BF16],
        &[DType::F16],
        &[DType::I64],
        &[DType::I32],
    ],
};

/// `y = kind(x)`.
pub(crate) fn unary(lane: &mut Issue, kind: Unary, x: &Tensor, y: &mut Tensor) -> Result<()> {
    let dtype = x.dtype();
    let integer = matches!(dtype, DType::I64 | DType::I32);
    if !(dtype.is_float() || integer && kind.of_integers()) {
        return Err(Error::UnsupportedDType {
            op: lane.op(),
            dtype,
        });
    }
    let n = x.numel();
    if n == 0 {
        return Ok(());
    }
    let (name, _, argument) = kind.kernels();
    let view = View::new(lane.op(), x.layout())?;
    let args = [
        lane.address(x),
        Arg::Struct(bytemuck::bytes_of(&view)),
        lane.address(y),
        Arg::Int(n as i64),
        Arg::Real(argument),
    ];
    lane.launch(&KERNELS, &[dtype], name, Grid::over(n), &args)
}

/// `dx = dy · kind'(saved)`.
pub(super) fn backward(
    lane: &mut Issue,
    kind: Unary,
    dy: &Tensor,
    saved: &Tensor,
    dx: &mut Tensor,
) -> Result<()> {
    let dtype = dy.dtype();
    if !dtype.is_float() {
        return Err(Error::UnsupportedDType {
            op: lane.op(),
            dtype,
        });
    }
    let n = dy.numel();
    if n == 0 {
        return Ok(());
    }
    let (_, name, argument) = kind.kernels();
    let views = [
        View::new(lane.op(), dy.layout())?,
        View::new(lane.op(), saved.layout())?,
    ];
    let args = [
        lane.address(dy),
        Arg::Struct(bytemuck::bytes_of(&views[0])),
        lane.address(saved),
        Arg::Struct(bytemuck::bytes_of(&views[1])),
        lane.address(dx),
        Arg::Int(n as i64),
        Arg::Real(argument),
    ];
    lane.launch(&KERNELS, &[dtype], name, Grid::over(n), &args)
}
