//! The CPU kernels of the convolution and the choice between them.

#[cfg(target_arch = "x86_64")]
mod blocked;
mod planar;

use super::geometry::Geometry;
use crate::cpu::working::{Wide, on_real, slice_if, working, working_if};
use crate::{Result, Tensor};

/// What is computed, from which two operands.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pass {
    /// `x ⋆ w + bias`, from `x` and `w`.
    Forward,
    /// The gradient with respect to `x`, from that of the output and `w`.
    InputGrad,
    /// The gradient with respect to `w`, from `x` and the gradient of the output.
    WeightGrad,
    /// The same, added to what is there.
    AddWeightGrad,
}

/// Fills in `out`; only the forward pass has a bias.
pub(super) fn convolve(
    op: &'static str,
    pass: Pass,
    g: &Geometry,
    [a, b]: [&Tensor; 2],
    bias: Option<&Tensor>,
    out: &mut Tensor,
) -> Result<()> {
    if out.numel() == 0 {
        return Ok(());
    }
    let bias = working_if(op, bias)?;
    let (a, b) = (working(op, a)?, working(op, b)?);
    let mut out = Wide::new(op, out)?;
    #[cfg(target_arch = "x86_64")]
    if a.dtype() == crate::DType::F32 && blocked::pays(pass, g) {
        let (x, y, bias) = (a.as_slice()?, b.as_slice()?, slice_if(&bias)?);
        let done = blocked::convolve(pass, g, [x, y], bias, out.slice()?);
        done.map_err(|e| e.on(op, a.device()))?;
        return out.round();
    }
    on_real!(a, T => {
        let (a, b) = (a.as_slice::<T>()?, b.as_slice()?);
        match pass {
            Pass::Forward => planar::forward(g, a, b, slice_if(&bias)?, out.slice()?),
            Pass::InputGrad => planar::input_grad(g, a, b, out.slice()?),
            Pass::WeightGrad => planar::weight_grad(g, a, b, out.slice()?, false),
            Pass::AddWeightGrad => planar::weight_grad(g, a, b, out.slice()?, true),
        }
    });
    out.round()
}
