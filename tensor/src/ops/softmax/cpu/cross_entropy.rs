//! Kernels of the cross-entropy: the losses from one read of the logits, their gradient from
//! another.

use crate::cpu::math::Real;
use crate::cpu::pieces::{Rows, parallel_pieces};
use crate::cpu::rows::{C, LANES, exp_sum, load, max_of, rows_per_grain, store};
use crate::cpu::simd::multiversion;
use crate::{Element, Float};

/// The loss of a row with the target `t` is `on · w[t] · nll[t] + off · Σ w[c] · nll[c]`, where
/// `nll` are the negative log-probabilities.
pub(crate) struct Terms<C> {
    classes: usize,
    ignore: i64,
    on: C,
    off: C,
    weights: Option<Vec<C>>,
    /// `Σ w[c]`.
    total_weight: C,
}

impl<C: Real> Terms<C> {
    /// For a smoothing of `smoothing` over `classes` classes.
    pub(crate) fn new(
        classes: usize,
        smoothing: f64,
        ignore: i64,
        weights: Option<Vec<C>>,
    ) -> Terms<C> {
        let total = match &weights {
            Some(weights) => weights.iter().map(|w| w.to_f64()).sum(),
            None => classes as f64,
        };
        Terms {
            classes,
            ignore,
            on: C::from_f64(1.0 - smoothing),
            off: C::from_f64(smoothing / classes.max(1) as f64),
            weights,
            total_weight: C::from_f64(total),
        }
    }

    /// The factor of the target's own term.
    #[inline(always)]
    fn hit(&self, target: usize) -> C {
        match &self.weights {
            Some(weights) => self.on * weights[target],
            None => self.on,
        }
    }
}

/// Fills in `(maximum, ln Σ exp(x − maximum))` and the loss of each row.
pub(crate) fn cross_entropy<T: Float>(
    x: &[T],
    targets: &[i64],
    terms: &Terms<C<T>>,
    saved: &mut [C<T>],
    losses: &mut [C<T>],
) {
    let width = terms.classes;
    if width == 0 {
        // Every target is ignored: the caller has checked that none is out of range.
        return losses.fill(C::<T>::ZERO);
    }
    let saved = Rows {
        data: saved,
        width: 2,
    };
    let work = (Rows { data: x, width }, targets, saved, losses);
    let grain = rows_per_grain(width);
    parallel_pieces(work, grain, |_, (x, targets, saved, losses)| {
        forward_rows(x.data, targets, terms, saved.data, losses);
    });
}

multiversion! {
    fn forward_rows[T: Float](
        x: &[T],
        targets: &[i64],
        terms: &Terms<C<T>>,
        saved: &mut [C<T>],
        losses: &mut [C<T>],
    ) {
        let rows = x.chunks_exact(terms.classes).zip(targets);
        let outs = saved.as_chunks_mut::<2>().0.iter_mut().zip(losses);
        for ((x, &target), (saved, loss)) in rows.zip(outs) {
            let max = max_of(x);
            let log_sum = exp_sum(x, max).ln();
            *saved = [max, log_sum];
            *loss = C::<T>::ZERO;
            if target != terms.ignore {
                let target = target as usize;
                *loss = terms.hit(target) * (log_sum + (max - x[target].widen()));
                if terms.off != C::<T>::ZERO {
                    *loss += terms.off * spread(x, max, log_sum, terms);
                }
            }
        }
    }
}

/// `Σ w[c] · nll[c]`.
#[inline(always)]
fn spread<T: Float>(x: &[T], max: C<T>, log_sum: C<T>, terms: &Terms<C<T>>) -> C<T> {
    let mut below = C::<T>::ZERO;
    match &terms.weights {
        Some(weights) => {
            let pairs = x.iter().zip(weights);
            pairs.for_each(|(x, &w)| below += w * (max - x.widen()));
        }
        None => x.iter().for_each(|x| below += max - x.widen()),
    }
    below + terms.total_weight * log_sum
}

/// The gradient of the logits: `scale` (times the gradient of the loss, one for all or one for
/// each row) times `softmax · (on · w[t] + off · Σ w) − on · w[t] · [c = t] − off · w[c]`.
pub(crate) fn cross_entropy_backward<T: Float>(
    grad: &[T],
    scale: f64,
    (x, saved): (&[T], &[C<T>]),
    targets: &[i64],
    terms: &Terms<C<T>>,
    out: &mut [T],
) {
    let width = terms.classes;
    if out.is_empty() {
        return;
    }
    let scale = C::<T>::from_f64(scale);
    let rows = Rows { data: x, width };
    let saved = Rows {
        data: saved,
        width: 2,
    };
    let work = (rows, saved, targets, Rows { data: out, width });
    let grain = rows_per_grain(width);
    parallel_pieces(work, grain, |first, (x, saved, targets, out)| {
        let grad = match grad {
            [one] => std::slice::from_ref(one),
            each => &each[first..],
        };
        backward_rows(x.data, saved.data, targets, terms, grad, scale, out.data);
    });
}

multiversion! {
    fn backward_rows[T: Float](
        x: &[T],
        saved: &[C<T>],
        targets: &[i64],
        terms: &Terms<C<T>>,
        grad: &[T],
        scale: C<T>,
        out: &mut [T],
    ) {
        let zero = C::<T>::ZERO;
        let width = terms.classes;
        let rows = x.chunks_exact(width).zip(saved.as_chunks::<2>().0);
        let outs = targets.iter().zip(out.chunks_exact_mut(width));
        for (row, ((x, &[max, log_sum]), (&target, out))) in rows.zip(outs).enumerate() {
            if target == terms.ignore {
                out.fill(T::narrow(zero));
                continue;
            }
            let target = target as usize;
            let grad = grad[if grad.len() == 1 { 0 } else { row }].widen() * scale;
            let hit = grad * terms.hit(target);
            let off = grad * terms.off;
            let all = hit + off * terms.total_weight;
            for at in (0..width).step_by(LANES) {
                let mut v = load(x, at, max);
                for v in &mut v {
                    *v = (*v - max - log_sum).exp() * all;
                }
                if terms.off != zero {
                    let w = match &terms.weights {
                        Some(weights) => load(weights, at, zero),
                        None => [C::<T>::ONE; LANES],
                    };
                    for i in 0..LANES {
                        v[i] = v[i] - off * w[i];
                    }
                }
                if let Some(v) = v.get_mut(target.wrapping_sub(at)) {
                    *v = *v - hit;
                }
                store(out, at, v);
            }
        }
    }
}
