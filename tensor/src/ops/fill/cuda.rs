//! CUDA kernels. What is filled with one number is filled with its bits.

use crate::cuda::{Arg, Grid, Issue, Source, TYPES};
use crate::{Result, Tensor};

pub(crate) static KERNELS: Source = Source {
    family: "fill",
    path: "tensor/src/ops/fill/kernel.cu",
    before: crate::ops::cast::cuda::CONVERSIONS,
    text: include_str!("kernel.cu"),
    after: "",
    types: TYPES,
};

/// All elements are the one whose bytes `element` starts with.
pub(super) fn full(lane: &mut Issue, element: [u8; 8], y: &mut Tensor) -> Result<()> {
    launch(lane, "full", y, Arg::Int(i64::from_le_bytes(element)))
}

/// The numbers `0, 1, …`, which the element type holds.
pub(super) fn arange(lane: &mut Issue, y: &mut Tensor) -> Result<()> {
    launch(lane, "arange", y, Arg::Int(0))
}

fn launch(lane: &mut Issue, name: &'static str, y: &Tensor, number: Arg<'_>) -> Result<()> {
    let n = y.numel();
    if n == 0 {
        return Ok(());
    }
    let args = [lane.address(y), Arg::Int(n as i64), number];
    lane.launch(&KERNELS, &[y.dtype()], name, Grid::over(n), &args)
}
