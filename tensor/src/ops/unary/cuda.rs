//! CUDA kernels: one for each function and for each derivative, made from the table.

pub(crate) const FUNCTIONS: &str = "
template <class R> __device__ R unary_relu(R x) { return x < R(0) ? R(0) : x; }
template <class R> __device__ R unary_gelu(R x, R kind) { return x; }
template <class R> __device__ R unary_silu(R x) { return x / (R(1) + exp(-x)); }
template <class R> __device__ R unary_tanh(R x) { return tanh(x); }
template <class R> __device__ R unary_sigmoid(R x) { return R(1) / (R(1) + exp(-x)); }
";

use super::{Backward, Unary};
use crate::cuda::Issue;
use crate::{Result, Tensor};

pub(super) fn unary(lane: &mut Issue, _: Unary, _: &Tensor, _: &mut Tensor) -> Result<()> {
    Err(lane.unsupported())
}

pub(super) fn backward(
    lane: &mut Issue,
    _: Backward,
    _: &Tensor,
    _: &Tensor,
    _: &mut Tensor,
) -> Result<()> {
    Err(lane.unsupported())
}
