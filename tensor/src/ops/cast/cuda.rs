//! CUDA kernels: one for each pair of types.

use crate::cuda::{Arg, Grid, Issue, Source, View};
use crate::ops::Scalar;
use crate::{DType, Result, Tensor};

macro_rules! pairs {
    ($($from:ident: $($to:ident)*;)*) => {
        &[$($(&[DType::$from, DType::$to]),*),*]
    };
}

/// `Cast<To>::of(value)`: the conversions themselves, which other families use too.
pub(crate) const CONVERSIONS: &str = include_str!("conversions.cu");

pub(crate) static KERNELS: Source = Source {
    family: "cast",
    path: "tensor/src/ops/cast/kernel.cu",
    before: CONVERSIONS,
    text: include_str!("kernel.cu"),
    after: "",
    types: PAIRS,
};

/// Scaled into a place that is there: float types, also from each to itself.
pub(crate) static SCALED: Source = Source {
    family: "cast_scaled",
    path: "tensor/src/ops/cast/scaled.cu",
    before: CONVERSIONS,
    text: include_str!("scaled.cu"),
    after: "",
    types: pairs! {
        F32: F32 F64 BF16 F16;
        F64: F32 F64 BF16 F16;
        BF16: F32 F64 BF16 F16;
        F16: F32 F64 BF16 F16;
    },
};

const PAIRS: &[&[DType]] = pairs! {
    F32: F64 BF16 F16 I64 I32 U8 Bool;
    F64: F32 BF16 F16 I64 I32 U8 Bool;
    BF16: F32 F64 F16 I64 I32 U8 Bool;
    F16: F32 F64 BF16 I64 I32 U8 Bool;
    I64: F32 F64 BF16 F16 I32 U8 Bool;
    I32: F32 F64 BF16 F16 I64 U8 Bool;
    U8: F32 F64 BF16 F16 I64 I32 Bool;
    Bool: F32 F64 BF16 F16 I64 I32 U8;
};
/// `y = x`, in `y`'s type.
pub(super) fn cast(lane: &mut Issue, x: &Tensor, y: &mut Tensor) -> Result<()> {
    let n = y.numel();
    if n == 0 {
        return Ok(());
    }
    let view = View::new(lane.op(), x.layout())?;
    let args = [
        lane.address(x),
        lane.address(y),
        Arg::Int(n as i64),
        Arg::Struct(bytemuck::bytes_of(&view)),
    ];
    let types = [x.dtype(), y.dtype()];
    lane.launch(&KERNELS, &types, "cast", Grid::over(n), &args)
}

/// `y[start + i] = factor · x[i]`, in `y`'s type.
pub(super) fn write_scaled(
    lane: &mut Issue,
    y: &mut Tensor,
    start: usize,
    x: &Tensor,
    factor: Scalar<'_>,
) -> Result<()> {
    let n = x.numel();
    if n == 0 {
        return Ok(());
    }
    let view = View::new(lane.op(), x.layout())?;
    let [number, place] = match factor {
        Scalar::Host(value) => [Arg::Real(value), Arg::Address(0)],
        Scalar::Device(tensor) => [Arg::Real(1.0), lane.address(tensor)],
    };
    let args = [
        lane.address(x),
        Arg::Struct(bytemuck::bytes_of(&view)),
        lane.address(y),
        Arg::Int(start as i64),
        Arg::Int(n as i64),
        number,
        place,
    ];
    let types = [x.dtype(), y.dtype()];
    lane.launch(&SCALED, &types, "write_scaled", Grid::over(n), &args)
}
