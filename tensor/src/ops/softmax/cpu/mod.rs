//! CPU kernels of the softmax family.

mod cross_entropy;

pub(super) use cross_entropy::{Terms, cross_entropy, cross_entropy_backward};

use crate::Float;
use crate::cpu::math::Real;
use crate::cpu::rows::{
    C, each_row, each_row2, exp_sum, is_exact, map_row, map_row2, max_of, sum_row2,
};

pub(super) fn softmax<T: Float>(x: &[T], out: &mut [T], width: usize) {
    each_row(x, out, width, |x, out| {
        let max = max_of(x);
        if is_exact::<T>() {
            map_row(x, out, |x| (x - max).exp());
            let share = C::<T>::ONE / sum_row2(out, out, |x, _| x);
            out.iter_mut()
                .for_each(|p| *p = T::narrow(p.widen() * share));
        } else {
            let share = C::<T>::ONE / exp_sum(x, max);
            map_row(x, out, |x| (x - max).exp() * share);
        }
    });
}

pub(super) fn log_softmax<T: Float>(x: &[T], out: &mut [T], width: usize) {
    each_row(x, out, width, |x, out| {
        let max = max_of(x);
        let log_sum = exp_sum(x, max).ln();
        map_row(x, out, |x| (x - max) - log_sum);
    });
}

pub(super) fn softmax_backward<T: Float>(g: &[T], y: &[T], dx: &mut [T], width: usize) {
    each_row2(g, y, dx, width, |g, y, dx| {
        let dot = sum_row2(g, y, |g, y| g * y);
        map_row2(g, y, dx, |g, y| y * (g - dot));
    });
}

pub(super) fn log_softmax_backward<T: Float>(g: &[T], y: &[T], dx: &mut [T], width: usize) {
    each_row2(g, y, dx, width, |g, y, dx| {
        let sum = sum_row2(g, g, |g, _| g);
        map_row2(g, y, dx, |g, y| g - y.exp() * sum);
    });
}
