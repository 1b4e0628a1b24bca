//! CPU kernels of the softmax family.

mod cross_entropy;

pub(super) use cross_entropy::{cross_entropy, cross_entropy_backward};

use super::Kind;
use crate::cpu::math::{Computed, Real};
use crate::cpu::pieces::{Rows, parallel_pieces};
use crate::cpu::rows::{
    C, LANES, exp_sum, is_exact, load, max_of, rows_per_grain, store, sum_of, total,
};
use crate::cpu::simd::multiversion;
use crate::{Result, Tensor, dispatch_float};

/// `y = kind(x)` along the last axis.
pub(super) fn forward(op: &'static str, kind: Kind, x: &Tensor, y: &mut Tensor) -> Result<()> {
    let Some(width) = width(y) else { return Ok(()) };
    let x = x.contiguous_for(op)?;
    dispatch_float!(op, x.dtype(), T => {
        let run = match kind {
            Kind::Softmax => softmax_rows::<T>,
            Kind::LogSoftmax => log_softmax_rows::<T>,
        };
        let rows = Rows { data: x.as_slice::<T>()?, width };
        let work = (rows, Rows { data: y.make_mut::<T>()?, width });
        parallel_pieces(work, rows_per_grain(width), |_, (x, y)| run(x.data, y.data, width));
    });
    Ok(())
}

/// The gradient of `x`, where `y = kind(x)`.
pub(super) fn backward(
    op: &'static str,
    kind: Kind,
    g: &Tensor,
    y: &Tensor,
    dx: &mut Tensor,
) -> Result<()> {
    let Some(width) = width(dx) else {
        return Ok(());
    };
    let (g, y) = (g.contiguous_for(op)?, y.contiguous_for(op)?);
    dispatch_float!(op, g.dtype(), T => {
        let run = match kind {
            Kind::Softmax => softmax_backward_rows::<T>,
            Kind::LogSoftmax => log_softmax_backward_rows::<T>,
        };
        let rows = |t| Ok(Rows { data: Tensor::as_slice::<T>(t)?, width });
        let work = (rows(&g)?, rows(&y)?, Rows { data: dx.make_mut::<T>()?, width });
        parallel_pieces(work, rows_per_grain(width), |_, (g, y, dx)| {
            run(g.data, y.data, dx.data, width);
        });
    });
    Ok(())
}

/// Elements of a row; `None` where there are none at all.
fn width(t: &Tensor) -> Option<usize> {
    t.dims().last().copied().filter(|_| t.numel() > 0)
}

multiversion! {
    fn softmax_rows[T: Computed](x: &[T], out: &mut [T], width: usize) {
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let max = max_of(x);
            if is_exact::<T>() {
                let mut sum = [C::<T>::ZERO; LANES];
                for at in (0..width).step_by(LANES) {
                    let mut v = load(x, at, -C::<T>::INFINITY);
                    for i in 0..LANES {
                        v[i] = (v[i] - max).exp();
                        sum[i] += v[i];
                    }
                    store(out, at, v);
                }
                let share = C::<T>::ONE / total(sum);
                out.iter_mut().for_each(|p| *p = T::narrow(p.widen() * share));
            } else {
                // Exponentials again rather than rounded twice.
                let share = C::<T>::ONE / exp_sum(x, max);
                for at in (0..width).step_by(LANES) {
                    let mut v = load(x, at, max);
                    for v in &mut v {
                        *v = (*v - max).exp() * share;
                    }
                    store(out, at, v);
                }
            }
        }
    }
}

multiversion! {
    fn log_softmax_rows[T: Computed](x: &[T], out: &mut [T], width: usize) {
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let max = max_of(x);
            let log_sum = exp_sum(x, max).ln();
            let pairs = out.iter_mut().zip(x);
            pairs.for_each(|(out, x)| *out = T::narrow((x.widen() - max) - log_sum));
        }
    }
}

multiversion! {
    fn softmax_backward_rows[T: Computed](g: &[T], y: &[T], dx: &mut [T], width: usize) {
        let zero = C::<T>::ZERO;
        let inputs = g.chunks_exact(width).zip(y.chunks_exact(width));
        for ((g, y), dx) in inputs.zip(dx.chunks_exact_mut(width)) {
            let mut dot = [zero; LANES];
            for at in (0..width).step_by(LANES) {
                let (g, y) = (load(g, at, zero), load(y, at, zero));
                for i in 0..LANES {
                    dot[i] += g[i] * y[i];
                }
            }
            let dot = total(dot);
            let pairs = dx.iter_mut().zip(g.iter().zip(y));
            pairs.for_each(|(dx, (g, y))| *dx = T::narrow(y.widen() * (g.widen() - dot)));
        }
    }
}

multiversion! {
    fn log_softmax_backward_rows[T: Computed](g: &[T], y: &[T], dx: &mut [T], width: usize) {
        let zero = C::<T>::ZERO;
        let inputs = g.chunks_exact(width).zip(y.chunks_exact(width));
        for ((g, y), dx) in inputs.zip(dx.chunks_exact_mut(width)) {
            let sum = sum_of(g, zero, |g| g);
            for at in (0..width).step_by(LANES) {
                let (mut v, y) = (load(g, at, zero), load(y, at, zero));
                for i in 0..LANES {
                    v[i] = v[i] - y[i].exp() * sum;
                }
                store(dx, at, v);
            }
        }
    }
}
