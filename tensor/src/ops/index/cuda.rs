//! CUDA kernels. An index out of range sets the card's flag, and the bits of
//! its elements are all set: floats are NaN.

use crate::cuda::{Arg, Grid, Issue, Source, View, word};
use crate::{DType, Result, Tensor};

/// An element type of each size, and the type of the indices.
pub(crate) static KERNELS: Source = Source {
    family: "index",
    path: "tensor/src/ops/index/kernel.cu",
    before: "",
    text: include_str!("kernel.cu"),
    after: "",
    types: &[
        &[DType::U8, DType::I64],
        &[DType::BF16, DType::I64],
        &[DType::F32, DType::I64],
        &[DType::I64, DType::I64],
        &[DType::U8, DType::I32],
        &[DType::BF16, DType::I32],
        &[DType::F32, DType::I32],
        &[DType::I64, DType::I32],
    ],
};

/// `y` = the slices of `axis` of `x` at `indices`.
pub(super) fn select(
    lane: &mut Issue,
    x: &Tensor,
    axis: usize,
    indices: &Tensor,
    y: &mut Tensor,
) -> Result<()> {
    let n = y.numel();
    if n == 0 {
        return Ok(());
    }
    let op = lane.op();
    let views = (View::new(op, x.layout())?, View::new(op, indices.layout())?);
    let inner: usize = x.dims()[axis + 1..].iter().product();
    let [fault, place] = lane.index_flag()?;
    let args = [
        lane.address(x),
        Arg::Struct(bytemuck::bytes_of(&views.0)),
        lane.address(indices),
        Arg::Struct(bytemuck::bytes_of(&views.1)),
        lane.address(y),
        Arg::Int(n as i64),
        Arg::Int(indices.numel() as i64),
        Arg::Int(inner as i64),
        Arg::Int(x.dims()[axis] as i64),
        fault,
        place,
    ];
    let types = [word(x.dtype()), indices.dtype()];
    lane.launch(&KERNELS, &types, "select", Grid::over(n), &args)
}
