//! CUDA kernels. An index out of range sets the card's flag, and its elements keep what they were.

use crate::cuda::{Arg, Grid, Issue, SIZES, Source, View, word};
use crate::{Result, Tensor};

pub(crate) static KERNELS: Source = Source {
    family: "index",
    path: "tensor/src/ops/index/kernel.cu",
    before: "",
    text: include_str!("kernel.cu"),
    after: "",
    types: SIZES,
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
    lane.launch(&KERNELS, &[word(x.dtype())], "select", Grid::over(n), &args)
}
