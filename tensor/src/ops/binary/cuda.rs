//! CUDA kernels: one for each function, of two tensors and of a tensor and a number.

use super::Binary;
use crate::cuda::{Arg, Grid, Issue, NUMBERS, Source, View};
use crate::{DType, Result, Tensor};

/// The functions themselves.
const FUNCTIONS: &str = include_str!("functions.cu");

pub(crate) static KERNELS: Source = Source {
    family: "binary",
    path: "tensor/src/ops/binary/kernel.cu",
    before: FUNCTIONS,
    text: include_str!("kernel.cu"),
    after: "",
    types: NUMBERS,
};

/// Sums in another type than their addends': the type of the sum and that of what is added.
pub(crate) static SUMS: Source = Source {
    family: "add_into",
    path: "tensor/src/ops/binary/sum.cu",
    before: FUNCTIONS,
    text: include_str!("sum.cu"),
    after: "",
    types: &[
        &[DType::F32, DType::F32],
        &[DType::F32, DType::BF16],
        &[DType::F32, DType::F16],
        &[DType::F64, DType::F64],
        &[DType::BF16, DType::BF16],
        &[DType::F16, DType::F16],
        &[DType::I64, DType::I64],
        &[DType::I32, DType::I32],
        &[DType::U8, DType::U8],
    ],
};

impl Binary {
    /// The kernels of two tensors, and of a tensor and a number.
    fn kernels(self) -> [&'static str; 2] {
        match self {
            Binary::Add => ["add", "add_scalar"],
            Binary::Sub => ["sub", "sub_scalar"],
            Binary::Mul => ["mul", "mul_scalar"],
            Binary::Div => ["div", "div_scalar"],
            Binary::Maximum => ["maximum", "maximum_scalar"],
            Binary::Minimum => ["minimum", "minimum_scalar"],
            Binary::Pow => ["power", "power_scalar"],
        }
    }
}

/// `y = kind(a, b)`; both broadcast to the shape of `y`.
pub(super) fn binary(
    lane: &mut Issue,
    kind: Binary,
    a: &Tensor,
    b: &Tensor,
    y: &mut Tensor,
) -> Result<()> {
    let [kernel, _] = kind.kernels();
    two(lane, (&KERNELS, &[y.dtype()], kernel), a, b, y)
}

/// `y = a + b` of a half type, in `f32`; both broadcast to the shape of `y`.
pub(super) fn add_widened(lane: &mut Issue, a: &Tensor, b: &Tensor, y: &mut Tensor) -> Result<()> {
    let types = [y.dtype(), a.dtype()];
    two(lane, (&SUMS, &types, "add_widened"), a, b, y)
}

fn two(
    lane: &mut Issue,
    (source, types, kernel): (&'static Source, &[DType], &'static str),
    a: &Tensor,
    b: &Tensor,
    y: &Tensor,
) -> Result<()> {
    let n = y.numel();
    if n == 0 {
        return Ok(());
    }
    let views = [a, b].map(|t| View::stretched(lane.op(), t, y.shape()));
    let [a_view, b_view] = views;
    let (a_view, b_view) = (a_view?, b_view?);
    let args = [
        lane.address(a),
        Arg::Struct(bytemuck::bytes_of(&a_view)),
        lane.address(b),
        Arg::Struct(bytemuck::bytes_of(&b_view)),
        lane.address(y),
        Arg::Int(n as i64),
    ];
    lane.launch(source, types, kernel, Grid::over(n), &args)
}

/// `y = kind(x, scalar)`, of floats.
pub(super) fn with_scalar(
    lane: &mut Issue,
    kind: Binary,
    x: &Tensor,
    scalar: f64,
    y: &mut Tensor,
) -> Result<()> {
    let [_, kernel] = kind.kernels();
    one(lane, (&KERNELS, &[y.dtype()], kernel), x, Some(scalar), y)
}

/// `sum += rhs`, where `rhs` broadcasts to the shape of `sum`.
pub(super) fn add_into(lane: &mut Issue, sum: &mut Tensor, rhs: &Tensor) -> Result<()> {
    let types = [sum.dtype(), rhs.dtype()];
    one(lane, (&SUMS, &types, "add_into"), rhs, None, sum)
}

fn one(
    lane: &mut Issue,
    (source, types, kernel): (&'static Source, &[DType], &'static str),
    x: &Tensor,
    scalar: Option<f64>,
    y: &Tensor,
) -> Result<()> {
    let n = y.numel();
    if n == 0 {
        return Ok(());
    }
    let view = View::stretched(lane.op(), x, y.shape())?;
    let args = [
        lane.address(x),
        Arg::Struct(bytemuck::bytes_of(&view)),
        lane.address(y),
        Arg::Int(n as i64),
        Arg::Real(scalar.unwrap_or(0.0)),
    ];
    let args = &args[..args.len() - usize::from(scalar.is_none())];
    lane.launch(source, types, kernel, Grid::over(n), args)
}
