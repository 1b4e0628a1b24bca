//! CUDA kernels: one for each pair of types.

use crate::cuda::{Arg, Grid, Issue, Source, View};
use crate::{DType, Result, Tensor};

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

macro_rules! pairs {
    ($($from:ident: $($to:ident)*;)*) => {
        &[$($(&[DType::$from, DType::$to]),*),*]
    };
}

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
