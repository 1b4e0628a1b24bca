//! Kernels of the cross-entropy: the losses from one read of the logits, their gradient from
//! another.

use crate::cpu::math::{Computed, Real};
use crate::cpu::pieces::{Rows, parallel_pieces};
use crate::cpu::rows::{C, LANES, exp_sum, load, max_of, rows_per_grain, store};
use crate::cpu::scratch::room;
use crate::cpu::simd::multiversion;
use crate::ops::index::cpu::expect_within;
use crate::ops::softmax::{CrossEntropyConfig, Reduction};
use crate::{Element, Result, Tensor, dispatch_float};

/// The loss of a row with the target `t` is `on · w[t] · nll[t] + off · Σ w[c] · nll[c]`, where
/// `nll` are the negative log-probabilities.
struct Terms<C> {
    classes: usize,
    ignore: i64,
    on: C,
    off: C,
    weights: Option<Vec<C>>,
    /// `Σ w[c]`.
    all_weights: C,
}

impl<C: Real> Terms<C> {
    fn new<T: Computed<Compute = C>>(
        op: &'static str,
        classes: usize,
        weight: Option<&Tensor>,
        config: &CrossEntropyConfig,
    ) -> Result<Self> {
        let weights = match weight {
            Some(weight) => {
                let mut wide = room(classes).map_err(|e| e.on(op, weight.device()))?;
                let weight = weight.contiguous_for(op)?;
                wide.extend(weight.as_slice::<T>()?.iter().map(|w| w.widen()));
                Some(wide)
            }
            None => None,
        };
        let all = match &weights {
            Some(weights) => weights.iter().map(|w: &C| w.to_f64()).sum(),
            None => classes as f64,
        };
        Ok(Terms {
            classes,
            ignore: config.ignore_index,
            on: C::from_f64(1.0 - config.label_smoothing),
            off: C::from_f64(config.label_smoothing / classes.max(1) as f64),
            weights,
            all_weights: C::from_f64(all),
        })
    }

    /// The sum of the weights of the targets that count.
    fn total_weight(&self, targets: &[i64]) -> f64 {
        let counted = targets.iter().filter(|&&t| t != self.ignore);
        match &self.weights {
            None => counted.count() as f64,
            Some(weights) => counted.map(|&t| weights[t as usize].to_f64()).sum(),
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

/// Logits as rows of classes, targets and weights of the classes.
type Operands<'a> = (&'a Tensor, &'a Tensor, Option<&'a Tensor>);

/// Logits and targets without gaps; every target is a class or is ignored.
fn ready(
    op: &'static str,
    config: &CrossEntropyConfig,
    (logits, targets, _): Operands<'_>,
) -> Result<(Tensor, Tensor, usize)> {
    let (targets, classes) = (
        targets.contiguous_for(op)?,
        *logits.dims().last().unwrap_or(&1),
    );
    expect_within(op, &targets, classes, Some(config.ignore_index))?;
    Ok((logits.contiguous_for(op)?, targets, classes))
}

/// Fills in the loss, the total weight, and for each row what the backward pass reads: its
/// `(maximum, ln Σ exp(x − maximum))`.
pub(crate) fn cross_entropy(
    op: &'static str,
    config: &CrossEntropyConfig,
    operands: Operands<'_>,
    (loss, saved, total_weight): (&mut Tensor, &mut Tensor, &mut Tensor),
) -> Result<()> {
    let (x, targets, classes) = ready(op, config, operands)?;
    let shape = targets.shape().clone();
    let targets = targets.as_slice()?;
    dispatch_float!(op, x.dtype(), T => {
        let terms = Terms::new::<T>(op, classes, operands.2, config)?;
        let total = terms.total_weight(targets);
        total_weight.make_mut()?.fill(total);
        let (x, saved) = (x.as_slice::<T>()?, saved.make_mut()?);
        if config.reduction == Reduction::None {
            forward(x, targets, &terms, saved, loss.make_mut()?);
            return Ok(());
        }
        let mut losses = Tensor::allocate(op, shape, loss.dtype(), loss.device())?;
        let losses = losses.make_mut::<C<T>>()?;
        forward(x, targets, &terms, saved, losses);
        let sum: f64 = losses.iter().map(|loss| loss.to_f64()).sum();
        let sum = sum / divisor(config, total);
        loss.make_mut()?.fill(C::<T>::from_f64(sum));
    });
    Ok(())
}

/// By what the sum of the losses is divided.
fn divisor(config: &CrossEntropyConfig, total_weight: f64) -> f64 {
    match config.reduction {
        Reduction::Mean => total_weight,
        Reduction::Sum | Reduction::None => 1.0,
    }
}

fn forward<T: Computed>(
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
    fn forward_rows[T: Computed](
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
fn spread<T: Computed>(x: &[T], max: C<T>, log_sum: C<T>, terms: &Terms<C<T>>) -> C<T> {
    let mut below = C::<T>::ZERO;
    match &terms.weights {
        Some(weights) => {
            let pairs = x.iter().zip(weights);
            pairs.for_each(|(x, &w)| below += w * (max - x.widen()));
        }
        None => x.iter().for_each(|x| below += max - x.widen()),
    }
    below + terms.all_weights * log_sum
}

/// The gradient of the logits: `scale` (times the gradient of the loss, one for all or one for
/// each row) times `softmax · (on · w[t] + off · Σ w) − on · w[t] · [c = t] − off · w[c]`.
pub(crate) fn cross_entropy_backward(
    op: &'static str,
    config: &CrossEntropyConfig,
    operands: Operands<'_>,
    (grad, saved, total_weight): (&Tensor, &Tensor, &Tensor),
    out: &mut Tensor,
) -> Result<()> {
    let (x, targets, classes) = ready(op, config, operands)?;
    let (grad, saved) = (grad.contiguous_for(op)?, saved.contiguous_for(op)?);
    let total = total_weight.as_slice()?.iter().sum();
    dispatch_float!(op, x.dtype(), T => backward::<T>(
        grad.as_slice()?,
        1.0 / divisor(config, total),
        (x.as_slice()?, saved.as_slice()?),
        targets.as_slice()?,
        &Terms::new::<T>(op, classes, operands.2, config)?,
        out.make_mut()?,
    ));
    Ok(())
}

fn backward<T: Computed>(
    grad: &[C<T>],
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
    fn backward_rows[T: Computed](
        x: &[T],
        saved: &[C<T>],
        targets: &[i64],
        terms: &Terms<C<T>>,
        grad: &[C<T>],
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
            let grad = grad[if grad.len() == 1 { 0 } else { row }] * scale;
            let hit = grad * terms.hit(target);
            let off = grad * terms.off;
            let all = hit + off * terms.all_weights;
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
