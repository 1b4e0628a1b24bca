//! CUDA kernels: one for each comparison, and the choice.

use super::Comparison;
use crate::cuda::{Arg, Grid, Issue, Source, TYPES, View};
use crate::{Result, Tensor};
use smallvec::SmallVec;

pub(crate) static KERNELS: Source = Source {
    family: "compare",
    path: "tensor/src/ops/compare/kernel.cu",
    before: "",
    text: include_str!("kernel.cu"),
    after: "",
    types: TYPES,
};

/// `y = kind(a, b)`, as 0 or 1; both broadcast to the shape of `y`.
pub(super) fn compare(
    lane: &mut Issue,
    kind: Comparison,
    a: &Tensor,
    b: &Tensor,
    y: &mut Tensor,
) -> Result<()> {
    let kernel = match kind {
        Comparison::Eq => "eq",
        Comparison::Ne => "ne",
        Comparison::Lt => "lt",
        Comparison::Le => "le",
        Comparison::Gt => "gt",
        Comparison::Ge => "ge",
    };
    launch(lane, kernel, a, &[a, b], y)
}

/// `y = cond ? a : b`; all three broadcast to the shape of `y`.
pub(super) fn choose(
    lane: &mut Issue,
    cond: &Tensor,
    a: &Tensor,
    b: &Tensor,
    y: &mut Tensor,
) -> Result<()> {
    launch(lane, "choose", a, &[cond, a, b], y)
}

/// A kernel over `operands`, compiled for the type of `typed`.
fn launch(
    lane: &mut Issue,
    kernel: &'static str,
    typed: &Tensor,
    operands: &[&Tensor],
    y: &Tensor,
) -> Result<()> {
    let n = y.numel();
    if n == 0 {
        return Ok(());
    }
    let views: Result<SmallVec<[View; 3]>> = operands
        .iter()
        .map(|t| View::stretched(lane.op(), t, y.shape()))
        .collect();
    let views = views?;
    let mut args: SmallVec<[Arg<'_>; 8]> = SmallVec::new();
    for (operand, view) in operands.iter().zip(&views) {
        args.push(lane.address(operand));
        args.push(Arg::Struct(bytemuck::bytes_of(view)));
    }
    args.extend([lane.address(y), Arg::Int(n as i64)]);
    lane.launch(&KERNELS, &[typed.dtype()], kernel, Grid::over(n), &args)
}
