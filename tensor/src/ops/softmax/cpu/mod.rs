//! CPU kernels of the softmax family.

mod cross_entropy;

pub(super) use cross_entropy::{cross_entropy, cross_entropy_backward};

use crate::Float;
use crate::cpu::math::Real;
use crate::cpu::pieces::{Rows, parallel_pieces};
use crate::cpu::rows::{C, LANES, exp_sum, is_exact, load, max_of, rows_per_grain, store, total};
use crate::cpu::simd::multiversion;

/// Runs `rows(input, output)` on each thread's rows.
fn map<T: Float>(x: &[T], out: &mut [T], width: usize, rows: impl Fn(&[T], &mut [T]) + Sync) {
    let work = (Rows { data: x, width }, Rows { data: out, width });
    parallel_pieces(work, rows_per_grain(width), |_, (x, out)| {
        rows(x.data, out.data)
    });
}

/// As [`map`], of two inputs.
fn map2<T: Float>(
    a: &[T],
    b: &[T],
    out: &mut [T],
    width: usize,
    rows: impl Fn(&[T], &[T], &mut [T]) + Sync,
) {
    let (a, b) = (Rows { data: a, width }, Rows { data: b, width });
    let work = (a, b, Rows { data: out, width });
    parallel_pieces(work, rows_per_grain(width), |_, (a, b, out)| {
        rows(a.data, b.data, out.data);
    });
}

pub(super) fn softmax<T: Float>(x: &[T], out: &mut [T], width: usize) {
    map(x, out, width, |x, out| softmax_rows(x, out, width));
}

pub(super) fn log_softmax<T: Float>(x: &[T], out: &mut [T], width: usize) {
    map(x, out, width, |x, out| log_softmax_rows(x, out, width));
}

pub(super) fn softmax_backward<T: Float>(g: &[T], y: &[T], dx: &mut [T], width: usize) {
    map2(g, y, dx, width, |g, y, dx| {
        softmax_backward_rows(g, y, dx, width)
    });
}

pub(super) fn log_softmax_backward<T: Float>(g: &[T], y: &[T], dx: &mut [T], width: usize) {
    map2(g, y, dx, width, |g, y, dx| {
        log_softmax_backward_rows(g, y, dx, width)
    });
}

multiversion! {
    fn softmax_rows[T: Float](x: &[T], out: &mut [T], width: usize) {
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
    fn log_softmax_rows[T: Float](x: &[T], out: &mut [T], width: usize) {
        for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let max = max_of(x);
            let log_sum = exp_sum(x, max).ln();
            let pairs = out.iter_mut().zip(x);
            pairs.for_each(|(out, x)| *out = T::narrow((x.widen() - max) - log_sum));
        }
    }
}

multiversion! {
    fn softmax_backward_rows[T: Float](g: &[T], y: &[T], dx: &mut [T], width: usize) {
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
    fn log_softmax_backward_rows[T: Float](g: &[T], y: &[T], dx: &mut [T], width: usize) {
        let zero = C::<T>::ZERO;
        let inputs = g.chunks_exact(width).zip(y.chunks_exact(width));
        for ((g, y), dx) in inputs.zip(dx.chunks_exact_mut(width)) {
            let mut sum = [zero; LANES];
            for at in (0..width).step_by(LANES) {
                let g = load(g, at, zero);
                for i in 0..LANES {
                    sum[i] += g[i];
                }
            }
            let sum = total(sum);
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
