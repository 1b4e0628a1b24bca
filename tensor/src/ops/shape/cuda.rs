//! CUDA kernel: one for all element types of a size.

use crate::cuda::{Arg, Grid, Issue, SIZES, Source, View, word};
use crate::{Layout, Result, Tensor};

pub(crate) static KERNELS: Source = Source {
    family: "shape",
    path: "tensor/src/ops/shape/kernel.cu",
    before: "",
    text: include_str!("kernel.cu"),
    after: "",
    types: SIZES,
};

/// Copies all elements of `from` to the places `place` of `to`.
pub(super) fn copy_into(
    lane: &mut Issue,
    from: &Tensor,
    to: &mut Tensor,
    place: &Layout,
) -> Result<()> {
    let n = from.numel();
    if n == 0 {
        return Ok(());
    }
    let (view, target) = (
        View::new(lane.op(), from.layout())?,
        View::new(lane.op(), place)?,
    );
    let args = [
        lane.address(from),
        Arg::Struct(bytemuck::bytes_of(&view)),
        lane.address(to),
        Arg::Struct(bytemuck::bytes_of(&target)),
        Arg::Int(place.offset() as i64),
        Arg::Int(n as i64),
    ];
    let types = [word(from.dtype())];
    lane.launch(&KERNELS, &types, "copy", Grid::over(n), &args)
}
