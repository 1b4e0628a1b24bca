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
    types: &PAIRS,
};

const PAIRS: [&[DType]; 30] = [
    &[DType::F32, DType::F64],
    &[DType::F32, DType::BF16],
    &[DType::F32, DType::F16],
    &[DType::F32, DType::I64],
    &[DType::F32, DType::U8],
    &[DType::F64, DType::F32],
    &[DType::F64, DType::BF16],
    &[DType::F64, DType::F16],
    &[DType::F64, DType::I64],
    &[DType::F64, DType::U8],
    &[DType::BF16, DType::F32],
    &[DType::BF16, DType::F64],
    &[DType::BF16, DType::F16],
    &[DType::BF16, DType::I64],
    &[DType::BF16, DType::U8],
    &[DType::F16, DType::F32],
    &[DType::F16, DType::F64],
    &[DType::F16, DType::BF16],
    &[DType::F16, DType::I64],
    &[DType::F16, DType::U8],
    &[DType::I64, DType::F32],
    &[DType::I64, DType::F64],
    &[DType::I64, DType::BF16],
    &[DType::I64, DType::F16],
    &[DType::I64, DType::U8],
    &[DType::U8, DType::F32],
    &[DType::U8, DType::F64],
    &[DType::U8, DType::BF16],
    &[DType::U8, DType::F16],
    &[DType::U8, DType::I64],
];

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
