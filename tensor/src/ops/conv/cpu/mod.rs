//! The CPU kernels of the convolution and the choice between them.

#[cfg(target_arch = "x86_64")]
mod blocked;
mod planar;

use super::geometry::Geometry;
use crate::cpu::working::{Wide, on_real, slice_if, working, working_if};
use crate::{Result, Tensor};

/// `out = x ⋆ w + bias`.
pub(super) fn forward(
    op: &'static str,
    g: &Geometry,
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    out: &mut Tensor,
) -> Result<()> {
    if out.numel() == 0 {
        return Ok(());
    }
    let bias = working_if(op, bias)?;
    let (x, w) = (working(op, x)?, working(op, w)?);
    let mut out = Wide::new(op, out)?;
    #[cfg(target_arch = "x86_64")]
    if x.dtype() == crate::DType::F32 && blocked::forward_pays(g) {
        blocked::forward(
            g,
            x.as_slice()?,
            w.as_slice()?,
            slice_if(&bias)?,
            out.slice()?,
        )
        .map_err(|e| e.on(op, x.device()))?;
        return out.round();
    }
    on_real!(x, T => {
        planar::forward::<T>(g, x.as_slice()?, w.as_slice()?, slice_if(&bias)?, out.slice()?);
    });
    out.round()
}

/// The gradient with respect to `x`.
pub(super) fn input_grad(
    op: &'static str,
    g: &Geometry,
    dy: &Tensor,
    w: &Tensor,
    dx: &mut Tensor,
) -> Result<()> {
    if dx.numel() == 0 {
        return Ok(());
    }
    let (dy, w) = (working(op, dy)?, working(op, w)?);
    let mut dx = Wide::new(op, dx)?;
    #[cfg(target_arch = "x86_64")]
    if dy.dtype() == crate::DType::F32 && blocked::input_grad_pays(g) {
        blocked::input_grad(g, dy.as_slice()?, w.as_slice()?, dx.slice()?)
            .map_err(|e| e.on(op, dy.device()))?;
        return dx.round();
    }
    on_real!(dy, T => {
        planar::input_grad::<T>(g, dy.as_slice()?, w.as_slice()?, dx.slice()?);
    });
    dx.round()
}

/// The gradient with respect to `w`.
pub(super) fn weight_grad(
    op: &'static str,
    g: &Geometry,
    x: &Tensor,
    dy: &Tensor,
    dw: &mut Tensor,
) -> Result<()> {
    if dw.numel() == 0 {
        return Ok(());
    }
    let (x, dy) = (working(op, x)?, working(op, dy)?);
    let mut dw = Wide::new(op, dw)?;
    #[cfg(target_arch = "x86_64")]
    if x.dtype() == crate::DType::F32 && g.n > 0 && blocked::weight_grad_pays(g) {
        blocked::weight_grad(g, x.as_slice()?, dy.as_slice()?, dw.slice()?)
            .map_err(|e| e.on(op, x.device()))?;
        return dw.round();
    }
    on_real!(x, T => {
        planar::weight_grad::<T>(g, x.as_slice()?, dy.as_slice()?, dw.slice()?);
    });
    dw.round()
}
