//! The CPU kernels of the convolution and the choice between them.

#[cfg(target_arch = "x86_64")]
mod blocked;
mod planar;

use super::geometry::Geometry;
use crate::cpu::math::Real;
use crate::cpu::scratch::NoMemory;
use crate::cpu::working::{Wide, on_real, working};
use crate::{Result, Tensor};
#[cfg(target_arch = "x86_64")]
use blocked::{f32s, f32s_mut};

/// `out = x ⋆ w + bias`.
pub(super) fn forward(
    op: &'static str,
    g: &Geometry,
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    out: &mut Tensor,
) -> Result<()> {
    let bias = bias.map(|b| working(op, b)).transpose()?;
    let (x, w) = (working(op, x)?, working(op, w)?);
    let mut out = Wide::new(op, out)?;
    on_real!(x, T => {
        let bias = bias.as_ref().map(Tensor::as_slice::<T>).transpose()?;
        run_forward(g, x.as_slice()?, w.as_slice()?, bias, out.slice()?)
    })
    .map_err(|e| e.on(op, x.device()))?;
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
    let (dy, w) = (working(op, dy)?, working(op, w)?);
    let mut dx = Wide::new(op, dx)?;
    on_real!(dy, T => run_input_grad::<T>(g, dy.as_slice()?, w.as_slice()?, dx.slice()?))
        .map_err(|e| e.on(op, dy.device()))?;
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
    let (x, dy) = (working(op, x)?, working(op, dy)?);
    let mut dw = Wide::new(op, dw)?;
    on_real!(x, T => run_weight_grad::<T>(g, x.as_slice()?, dy.as_slice()?, dw.slice()?))
        .map_err(|e| e.on(op, x.device()))?;
    dw.round()
}

fn run_forward<T: Real>(
    g: &Geometry,
    x: &[T],
    w: &[T],
    bias: Option<&[T]>,
    out: &mut [T],
) -> Result<(), NoMemory> {
    if out.is_empty() {
        return Ok(());
    }
    #[cfg(target_arch = "x86_64")]
    if let (Some(x), Some(w), true) = (f32s(x), f32s(w), blocked::forward_pays(g))
        && let Some(out) = f32s_mut(out)
    {
        return blocked::forward(g, x, w, bias.and_then(f32s), out);
    }
    planar::forward(g, x, w, bias, out);
    Ok(())
}

fn run_input_grad<T: Real>(g: &Geometry, dy: &[T], w: &[T], dx: &mut [T]) -> Result<(), NoMemory> {
    if dx.is_empty() {
        return Ok(());
    }
    #[cfg(target_arch = "x86_64")]
    if let (Some(dy), Some(w), true) = (f32s(dy), f32s(w), blocked::input_grad_pays(g))
        && let Some(dx) = f32s_mut(dx)
    {
        return blocked::input_grad(g, dy, w, dx);
    }
    planar::input_grad(g, dy, w, dx);
    Ok(())
}

fn run_weight_grad<T: Real>(g: &Geometry, x: &[T], dy: &[T], dw: &mut [T]) -> Result<(), NoMemory> {
    if g.n == 0 || dw.is_empty() {
        dw.fill(T::default());
        return Ok(());
    }
    #[cfg(target_arch = "x86_64")]
    if let (Some(x), Some(dy), true) = (f32s(x), f32s(dy), blocked::weight_grad_pays(g))
        && let Some(dw) = f32s_mut(dw)
    {
        return blocked::weight_grad(g, x, dy, dw);
    }
    planar::weight_grad(g, x, dy, dw);
    Ok(())
}
