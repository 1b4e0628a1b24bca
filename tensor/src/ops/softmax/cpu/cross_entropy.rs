//! Kernels of the cross-entropy: the losses from one read of the logits, their gradient from
//! another.

use crate::cpu::math::Real;
use crate::cpu::pieces::{Rows, parallel_pieces};
use crate::cpu::rows::{C, exp_sum, is_exact, map_row, map_row2, max_of, rows_per_grain};
use crate::cpu::vectorize;
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

impl<C: Float<Compute = C>> Terms<C> {
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
        return losses.fill(C::<T>::default());
    }
    let smooth = terms.off != C::<T>::default();
    let saved = Rows {
        data: saved,
        width: 2,
    };
    let work = (Rows { data: x, width }, targets, saved, losses);
    parallel_pieces(
        work,
        rows_per_grain(width),
        |_, (x, targets, saved, losses)| {
            vectorize(|| {
                let rows = x.data.chunks_exact(width).zip(targets);
                let outs = saved.data.chunks_exact_mut(2).zip(losses);
                for ((x, &target), (saved, loss)) in rows.zip(outs) {
                    let max = max_of(x);
                    let log_sum = exp_sum(x, max).ln();
                    saved.copy_from_slice(&[max, log_sum]);
                    *loss = if target == terms.ignore {
                        C::<T>::default()
                    } else {
                        let target = target as usize;
                        let nll = log_sum + (max - x[target].widen());
                        let on = match &terms.weights {
                            Some(weights) => terms.on * weights[target],
                            None => terms.on,
                        };
                        let hit = on * nll;
                        if smooth {
                            hit + terms.off * spread(x, max, log_sum, terms)
                        } else {
                            hit
                        }
                    };
                }
            });
        },
    );
}

/// `Σ w[c] · nll[c]`.
#[inline(always)]
fn spread<T: Float>(x: &[T], max: C<T>, log_sum: C<T>, terms: &Terms<C<T>>) -> C<T> {
    let mut below = C::<T>::default();
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
    let smooth = terms.off != C::<T>::default();
    let scale = C::<T>::from_f64(scale);
    let rows = Rows { data: x, width };
    let saved = Rows {
        data: saved,
        width: 2,
    };
    let out = Rows { data: out, width };
    let work = (rows, saved, targets, out);
    parallel_pieces(
        work,
        rows_per_grain(width),
        |first, (x, saved, targets, out)| {
            vectorize(|| {
                let rows = x
                    .data
                    .chunks_exact(width)
                    .zip(saved.data.as_chunks::<2>().0);
                let outs = targets.iter().zip(out.data.chunks_exact_mut(width));
                for (i, ((x, &[max, log_sum]), (&target, out))) in rows.zip(outs).enumerate() {
                    if target == terms.ignore {
                        out.fill(T::narrow(C::<T>::default()));
                        continue;
                    }
                    let target = target as usize;
                    let grad = grad[if grad.len() == 1 { 0 } else { first + i }].widen() * scale;
                    let on = match &terms.weights {
                        Some(weights) => terms.on * weights[target],
                        None => terms.on,
                    };
                    let all = grad * (on + terms.off * terms.total_weight);
                    let (on, off) = (grad * on, grad * terms.off);
                    let value = |x: C<T>, w: C<T>| (x - max - log_sum).exp() * all - off * w;
                    match &terms.weights {
                        Some(weights) if smooth => map_row2(weights, x, out, |w, x| value(x, w)),
                        _ => map_row(x, out, |x| value(x, C::<T>::ONE)),
                    }
                    let before = if is_exact::<T>() {
                        out[target].widen()
                    } else {
                        // Rounded once, after the subtraction.
                        let w = terms.weights.as_ref().map_or(C::<T>::ONE, |w| w[target]);
                        value(x[target].widen(), w)
                    };
                    out[target] = T::narrow(before - on);
                }
            });
        },
    );
}
