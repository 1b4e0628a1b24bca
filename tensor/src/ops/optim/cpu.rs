//! The optimizers' loops: one pass over all arrays of a parameter. They are bound by memory, so
//! each is compiled once for each type of parameter and gradient, and its switches are settled by
//! the compiler outside the loop.

use super::adam::{AdamFactors, corrections};
use super::batch::{Item, Lists};
use super::{AdamConfig, Factor, SgdConfig};
use crate::cpu::elementwise::number;
use crate::cpu::math::{Computed, Real};
use crate::cpu::pieces::parallel_pieces;
use crate::cpu::rows::C;
use crate::cpu::vectorize;
use crate::cpu::working::dispatch_pair;
use crate::ops::Scalar;
use crate::{DType, Device, Element, Float, Result, Tensor, dispatch_float};

/// Elements to a thread, at least: some 50 µs of work.
const GRAIN: usize = 32 * 1024;

/// Elements whose squares are summed at a time; fixes the order of summation.
const BLOCK: usize = 4096;
/// Blocks to a thread, at least.
const BLOCKS_PER_THREAD: usize = GRAIN / BLOCK;

fn c<T: Computed>(value: f64) -> C<T> {
    C::<T>::from_f64(value)
}

/// One step of SGD for each parameter of a batch.
pub(super) fn sgd(
    op: &'static str,
    (params, grads, momenta, numbers): Lists<'_, '_>,
    items: &[Item<'_, SgdConfig>],
) -> Result<()> {
    let mut momenta = momenta.iter_mut();
    for ((param, grad), item) in params.iter_mut().zip(grads).zip(items) {
        let momentum = match item.states {
            0 => None,
            _ => momenta.next(),
        };
        let lr = item.config.lr * number(item.lr_scale.of(numbers));
        dispatch_pair!(op, param, grad, T, G => {
            let (p, g) = (param.make_mut::<T>()?, grad.as_slice::<G>()?);
            match momentum {
                None => sgd_plain(p, g, lr, item.config),
                Some(m) => sgd_momentum(p, g, m.make_mut()?, item.is_first, lr, item.config),
            }
        });
    }
    Ok(())
}

/// One step of Adam for each parameter of a batch.
pub(super) fn adam(
    op: &'static str,
    (params, grads, moments, numbers): Lists<'_, '_>,
    items: &[Item<'_, AdamConfig>],
) -> Result<()> {
    let (moments, _) = moments.as_chunks_mut::<2>();
    for (((param, grad), [m, v]), item) in params.iter_mut().zip(grads).zip(moments).zip(items) {
        let [lr_scale, step] = [item.lr_scale, item.step].map(|n| number(n.of(numbers)));
        let numbers = AdamNumbers::new(item.config, lr_scale, step);
        dispatch_pair!(op, param, grad, T, G => {
            let (p, g) = (param.make_mut::<T>()?, grad.as_slice::<G>()?);
            adam_one(p, g, m.make_mut()?, v.make_mut()?, &numbers);
        });
    }
    Ok(())
}

/// SGD without momentum.
fn sgd_plain<T: Computed, G: Computed<Compute = C<T>>>(
    p: &mut [T],
    g: &[G],
    lr: f64,
    config: &SgdConfig,
) {
    let (lr, decay) = (c::<T>(lr), c::<T>(config.weight_decay));
    parallel_pieces((p, g), GRAIN, |_, (p, g)| {
        vectorize(
            #[inline(always)]
            || {
                for (p, g) in p.iter_mut().zip(g) {
                    let old = p.widen();
                    *p = T::narrow(old - lr * (g.widen() + decay * old));
                }
            },
        );
    });
}

/// SGD with momentum; the `first` step sets the momentum and does not read it.
fn sgd_momentum<T: Computed, G: Computed<Compute = C<T>>>(
    p: &mut [T],
    g: &[G],
    m: &mut [C<T>],
    first: bool,
    lr: f64,
    config: &SgdConfig,
) {
    // A loop for each case: with both switches inside, the compiler vectorised it for AVX-512, but
    // not for AVX2, where it took three times as long (2026-11-23).
    match (first, config.nesterov) {
        (false, false) => momentum::<T, G, false, false>(p, g, m, lr, config),
        (false, true) => momentum::<T, G, false, true>(p, g, m, lr, config),
        (true, false) => momentum::<T, G, true, false>(p, g, m, lr, config),
        (true, true) => momentum::<T, G, true, true>(p, g, m, lr, config),
    }
}

fn momentum<T: Computed, G: Computed<Compute = C<T>>, const FIRST: bool, const NESTEROV: bool>(
    p: &mut [T],
    g: &[G],
    m: &mut [C<T>],
    lr: f64,
    config: &SgdConfig,
) {
    let (lr, decay) = (c::<T>(lr), c::<T>(config.weight_decay));
    let momentum = c::<T>(config.momentum);
    let fresh = c::<T>(1.0 - config.dampening);
    parallel_pieces((p, g, m), GRAIN, |_, (p, g, m)| {
        vectorize(
            #[inline(always)]
            || {
                for ((p, g), m) in p.iter_mut().zip(g).zip(m) {
                    let old = p.widen();
                    let g = g.widen() + decay * old;
                    let kept = if FIRST { g } else { momentum * *m + fresh * g };
                    *m = kept;
                    let step = if NESTEROV { g + momentum * kept } else { kept };
                    *p = T::narrow(old - lr * step);
                }
            },
        );
    });
}

/// The numbers of one step of a parameter.
struct AdamNumbers {
    factors: AdamFactors,
    /// Factor of the parameter itself.
    shrink: f64,
    /// The learning rate, with the correction of the first moment's bias.
    rate: f64,
    /// The correction of the second moment's bias, as a factor of its root.
    root: f64,
}

impl AdamNumbers {
    fn new(config: &AdamConfig, lr_scale: f64, step: f64) -> AdamNumbers {
        let (factors, lr) = (AdamFactors::new(config), config.lr * lr_scale);
        let [correction1, correction2] = corrections(config, step);
        AdamNumbers {
            factors,
            shrink: 1.0 - lr * factors.decoupled,
            rate: lr / correction1,
            root: 1.0 / correction2.sqrt(),
        }
    }
}

/// One step of Adam or AdamW.
fn adam_one<T: Computed, G: Computed<Compute = C<T>>>(
    p: &mut [T],
    g: &[G],
    m: &mut [C<T>],
    v: &mut [C<T>],
    numbers: &AdamNumbers,
) {
    let (n, f) = (numbers, &numbers.factors);
    let (coupled, shrink) = (c::<T>(f.coupled), c::<T>(n.shrink));
    let (fresh1, keep2, fresh2) = (c::<T>(f.fresh1), c::<T>(f.keep2), c::<T>(f.fresh2));
    let (rate, root, eps) = (c::<T>(n.rate), c::<T>(n.root), c::<T>(f.eps));
    parallel_pieces((p, g, m, v), GRAIN / 2, |_, (p, g, m, v)| {
        vectorize(
            #[inline(always)]
            || {
                for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
                    let old = p.widen();
                    let g = g.widen() + coupled * old;
                    *m += fresh1 * (g - *m);
                    *v = keep2 * *v + fresh2 * g * g;
                    let denominator = v.sqrt() * root + eps;
                    *p = T::narrow(old * shrink - rate * *m / denominator);
                }
            },
        );
    });
}

/// Multiplies by the factor for which `of` stands.
pub(super) fn scale(
    op: &'static str,
    tensors: &mut [&mut Tensor],
    of: Scalar<'_>,
    factor: Factor,
) -> Result<()> {
    let factor = factor.of(number(of));
    for tensor in tensors {
        dispatch_float!(op, tensor.dtype(), T => {
            let factor = c::<T>(factor);
            parallel_pieces(tensor.make_mut::<T>()?, GRAIN, |_, x| {
                vectorize(
                    #[inline(always)]
                    || x.iter_mut().for_each(|x| *x = T::narrow(x.widen() * factor)),
                );
            });
        });
    }
    Ok(())
}

/// `sum` = the sum of the squares, taken tensor by tensor and block by block: the same bits whatever
/// the number of threads.
pub(super) fn square_sum(op: &'static str, tensors: &[&Tensor], sum: &mut Tensor) -> Result<()> {
    let mut total = 0.0;
    for tensor in tensors {
        let x = tensor.contiguous_for(op)?;
        total += dispatch_float!(op, x.dtype(), T => squares(op, x.as_slice::<T>()?, x.device())?);
    }
    sum.make_mut::<f64>()?.fill(total);
    Ok(())
}

fn squares<T: Computed>(op: &'static str, x: &[T], device: Device) -> Result<f64> {
    let blocks = x.len().div_ceil(BLOCK);
    if blocks <= BLOCKS_PER_THREAD {
        return Ok(x.chunks(BLOCK).map(block).sum());
    }
    let mut partial = Tensor::allocate(op, blocks.into(), DType::F64, device)?;
    let partial = partial.make_mut::<f64>()?;
    parallel_pieces(&mut *partial, BLOCKS_PER_THREAD, |first, partial| {
        let blocks = x[first * BLOCK..].chunks(BLOCK);
        partial
            .iter_mut()
            .zip(blocks)
            .for_each(|(p, x)| *p = block(x));
    });
    Ok(partial.iter().sum())
}

/// The sum of the squares of up to [`BLOCK`] elements.
fn block<T: Computed>(x: &[T]) -> f64 {
    const LANES: usize = 16;
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut lanes = [0.0f64; LANES];
    vectorize(
        #[inline(always)]
        || {
            for chunk in chunks {
                for (lane, x) in lanes.iter_mut().zip(chunk) {
                    let x = x.widen().to_f64();
                    *lane += x * x;
                }
            }
        },
    );
    let rest: f64 = rest.iter().map(|x| x.to_f64() * x.to_f64()).sum();
    lanes.iter().sum::<f64>() + rest
}
