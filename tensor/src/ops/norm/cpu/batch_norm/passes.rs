//! The passes of batch normalisation over planes of `f32` or `f64`.
//!
//! The passes of one channel (mean, variance, normalise; or sums, gradient) follow each other
//! directly, over as many channels at once as fit the second-level cache: memory is read and
//! written once. Threads split the channels, so their number does not change a bit of the result.
#![allow(unsafe_code)]

use crate::cpu::math::Real;
use crate::cpu::pieces::parallel_pieces;
use crate::cpu::prefetch::prefetch;
use crate::cpu::share::Shared;
use crate::cpu::vector::Aligned;
use crate::cpu::vectorize;
use crate::ops::norm::batch_norm::{Dims, Origin};
use std::ops::Range;

/// Elements of one tensor that a block of channels may have: 512 KiB of `f32`, so that the two or
/// three tensors of a pass stay in a cache of 2 MiB.
const BLOCK: usize = 1 << 17;

/// Channels of a block at most: their sums stand on the stack.
const CHANNELS: usize = 512;

/// Scale and shift of each channel; 1 and 0 where missing.
pub(super) type Affine<'a, T> = (Option<&'a [T]>, Option<&'a [T]>);

/// Where the backward pass reads ReLU's mask.
pub(super) enum Mask<'a, T> {
    /// There was no ReLU.
    None,
    /// From the sign of the output, computed again from the input.
    Input,
    /// From the output; the masked gradient, which is the residual's, is written.
    Output(&'a [T], &'a mut [T]),
}

/// The affine map of one channel, `(x − mean) · scale + shift`. Forward and backward share it, so
/// that a mask computed again is the mask that was applied.
#[derive(Clone, Copy)]
struct Map<T> {
    mean: T,
    scale: T,
    shift: T,
}

impl<T: Real> Map<T> {
    fn new(mean: T, invstd: T, (w, b): Affine<'_, T>, c: usize) -> Self {
        let scale = w.map_or(invstd, |w| w[c] * invstd);
        Map {
            mean,
            scale,
            shift: b.map_or(T::default(), |b| b[c]),
        }
    }

    #[inline(always)]
    fn apply(&self, x: T) -> T {
        (x - self.mean) * self.scale + self.shift
    }
}

/// Runs `f` for blocks of channels, in parallel.
fn for_blocks(d: &Dims, f: impl Fn(Range<usize>) + Sync) {
    let per_channel = (d.n * d.plane).max(1);
    let block = (BLOCK / per_channel).clamp(1, CHANNELS);
    // Below 16 Ki elements a thread is not worth its start.
    let grain = ((1 << 14) / per_channel).max(1);
    parallel_pieces(0..d.c, grain, |_, channels| {
        for c in channels.clone().step_by(block) {
            vectorize(
                #[inline(always)]
                || f(c..(c + block).min(channels.end)),
            );
        }
    });
}

/// Calls `f(c, plane)` for the planes of `channels` in the order of memory. The planes of `cold`,
/// which no cache has yet, are asked for an image ahead: the processor's own prefetcher loses a walk
/// that jumps over the other channels.
#[inline(always)]
fn for_planes<T, const N: usize>(
    d: &Dims,
    channels: Range<usize>,
    cold: [&[T]; N],
    mut f: impl FnMut(usize, Range<usize>),
) {
    if d.plane == 0 {
        return; // the images may be without number then
    }
    for n in 0..d.n {
        for c in channels.clone() {
            let start = (n * d.c + c) * d.plane;
            let ahead = start + d.c * d.plane;
            if n + 1 < d.n {
                for cold in cold {
                    prefetch(&cold[ahead..ahead + d.plane]);
                }
            }
            f(c, start..start + d.plane);
        }
    }
}

/// Normalises with the statistics of the batch, which are written to `stats`: mean, variance, and
/// the inverse of the deviation.
pub(super) fn forward<T: Real>(
    d: &Dims,
    x: &[T],
    affine: Affine<'_, T>,
    eps: f64,
    (residual, relu): (Option<&[T]>, bool),
    stats: [&mut [T]; 3],
    out: &mut [T],
) {
    let count = (d.n * d.plane) as f64;
    let [mean, var, invstd] = stats.map(Shared::new);
    let out = Shared::new(out);
    for_blocks(
        d,
        #[inline(always)]
        |channels| {
            let first = channels.start;
            let (mut sums, mut means) = ([0.0f64; CHANNELS], [0.0f64; CHANNELS]);
            let (sums, means) = (&mut sums[..channels.len()], &mut means[..channels.len()]);
            for_planes::<T, 1>(
                d,
                channels.clone(),
                [x],
                #[inline(always)]
                |c, plane| {
                    sums[c - first] += sum1(&x[plane], |v| v).to_f64();
                },
            );
            (means.iter_mut().zip(&*sums)).for_each(|(m, s)| *m = s / count);
            sums.fill(0.0);
            for_planes::<T, 0>(
                d,
                channels.clone(),
                [],
                #[inline(always)]
                |c, plane| {
                    let m = T::from_f64(means[c - first]);
                    sums[c - first] += sum1(&x[plane], |v| (v - m) * (v - m)).to_f64();
                },
            );
            // SAFETY: the blocks of channels are disjoint.
            let (mean, var, invstd) = unsafe {
                (
                    mean.range(channels.clone()),
                    var.range(channels.clone()),
                    invstd.range(channels.clone()),
                )
            };
            for (i, square) in sums.iter().enumerate() {
                mean[i] = T::from_f64(means[i]);
                // The distances were taken from the rounded mean.
                let off = means[i] - mean[i].to_f64();
                let v = square / count - off * off;
                // Rounding may leave it below 0. Not `max`, which would turn NaN into 0.
                let v = if v < 0.0 { 0.0 } else { v };
                var[i] = T::from_f64(v);
                invstd[i] = T::from_f64(1.0 / (v + eps).sqrt());
            }
            for_planes::<T, 0>(
                d,
                channels.clone(),
                [],
                #[inline(always)]
                |c, plane| {
                    let map = Map::new(mean[c - first], invstd[c - first], affine, c);
                    // SAFETY: each plane of each channel belongs to one block.
                    let out = unsafe { out.range(plane.clone()) };
                    let residual = residual.map(|r| &r[plane.clone()]);
                    normalise(map, &x[plane], residual, relu, out);
                },
            );
        },
    );
}

/// Normalises with given mean and inverse standard deviation.
pub(super) fn inference<T: Real>(
    d: &Dims,
    x: &[T],
    (mean, invstd): (&[T], &[T]),
    affine: Affine<'_, T>,
    (residual, relu): (Option<&[T]>, bool),
    out: &mut [T],
) {
    let out = Shared::new(out);
    for_blocks(
        d,
        #[inline(always)]
        |channels| {
            for_planes::<T, 1>(
                d,
                channels,
                [x],
                #[inline(always)]
                |c, plane| {
                    let map = Map::new(mean[c], invstd[c], affine, c);
                    // SAFETY: each plane of each channel belongs to one block.
                    let out = unsafe { out.range(plane.clone()) };
                    let residual = residual.map(|r| &r[plane.clone()]);
                    normalise(map, &x[plane], residual, relu, out);
                },
            );
        },
    );
}

/// `out = relu?(map(x) + residual?)`; ReLU keeps NaN.
#[inline(always)]
fn normalise<T: Real>(map: Map<T>, x: &[T], residual: Option<&[T]>, relu: bool, out: &mut [T]) {
    let zero = T::default();
    let clip = |y: T| if y <= zero { zero } else { y };
    match (residual, relu) {
        (None, false) => out.iter_mut().zip(x).for_each(|(o, &x)| *o = map.apply(x)),
        (None, true) => out
            .iter_mut()
            .zip(x)
            .for_each(|(o, &x)| *o = clip(map.apply(x))),
        (Some(r), false) => {
            let xr = x.iter().zip(r);
            out.iter_mut()
                .zip(xr)
                .for_each(|(o, (&x, &r))| *o = map.apply(x) + r);
        }
        (Some(r), true) => {
            let xr = x.iter().zip(r);
            out.iter_mut()
                .zip(xr)
                .for_each(|(o, (&x, &r))| *o = clip(map.apply(x) + r));
        }
    }
}

/// The gradients `[dx, dw, db]`. With `g` the masked gradient and `N` the elements of a channel:
/// `db = Σg`, `dw = Σ g·x̂`, `dx = scale·(g − db/N − x̂·dw/N)` where `x̂ = (x − mean)·invstd`; with
/// statistics that were given, `dx = scale·g`. A channel without elements has the gradients 0.
pub(super) fn backward<T: Real>(
    d: &Dims,
    dy: &[T],
    x: &[T],
    (mean, invstd, origin): (&[T], &[T], Origin),
    affine: Affine<'_, T>,
    mask: Mask<'_, T>,
    grads: [&mut [T]; 3],
) {
    let (from_input, from_output) = match mask {
        Mask::None => (false, None),
        Mask::Input => (true, None),
        Mask::Output(out, masked) => (false, Some((out, Shared::new(masked)))),
    };
    let empty = d.n * d.plane == 0;
    let count = ((d.n * d.plane) as f64).max(1.0);
    let zero = T::default();
    let [dx, dw, db] = grads.map(Shared::new);
    for_blocks(
        d,
        #[inline(always)]
        |channels| {
            let first = channels.start;
            let map = |c: usize| Map::new(mean[c], invstd[c], affine, c);
            let mut sums = [[0.0f64; 2]; CHANNELS];
            let sums = &mut sums[..channels.len()];
            for_planes::<T, 2>(
                d,
                channels.clone(),
                [dy, x],
                #[inline(always)]
                |c, plane| {
                    let map = map(c);
                    let (x, dy) = (&x[plane.clone()], &dy[plane.clone()]);
                    let [g, gx] = match &from_output {
                        Some((out, masked)) => {
                            // SAFETY: each plane of each channel belongs to one block.
                            let masked = unsafe { masked.range(plane.clone()) };
                            let from = dy.iter().zip(&out[plane]);
                            masked.iter_mut().zip(from).for_each(|(m, (&g, &y))| {
                                *m = if y <= zero { zero } else { g };
                            });
                            sum2(masked, x, |g, x| [g, g * (x - map.mean)])
                        }
                        None if from_input => sum2(dy, x, |g, x| {
                            let g = if map.apply(x) <= zero { zero } else { g };
                            [g, g * (x - map.mean)]
                        }),
                        None => sum2(dy, x, |g, x| [g, g * (x - map.mean)]),
                    };
                    sums[c - first][0] += g.to_f64();
                    sums[c - first][1] += gx.to_f64();
                },
            );
            // SAFETY: the blocks of channels are disjoint.
            let (dw, db) = unsafe { (dw.range(channels.clone()), db.range(channels.clone())) };
            for (i, c) in channels.clone().enumerate() {
                db[i] = T::from_f64(sums[i][0]);
                // Without elements the batch's deviation is NaN.
                let inv = if empty { 0.0 } else { invstd[c].to_f64() };
                dw[i] = T::from_f64(sums[i][1] * inv);
            }
            for_planes::<T, 0>(
                d,
                channels.clone(),
                [],
                #[inline(always)]
                |c, plane| {
                    let ([g, gx], map) = (sums[c - first], map(c));
                    let (scale, inv) = (map.scale.to_f64(), invstd[c].to_f64());
                    let k = T::from_f64(-scale * inv * inv * gx / count);
                    let shift = T::from_f64(-scale * g / count);
                    let x = &x[plane.clone()];
                    // SAFETY: each plane of each channel belongs to one block; what the first pass wrote
                    // is only read here.
                    let (dx, g) = unsafe {
                        let g = match &from_output {
                            Some((_, masked)) => &*masked.range(plane.clone()),
                            None => &dy[plane.clone()],
                        };
                        (dx.range(plane), g)
                    };
                    let gx = dx.iter_mut().zip(g.iter().zip(x));
                    let masked = |g: T, x: T| if map.apply(x) <= zero { zero } else { g };
                    match (origin, from_input) {
                        (Origin::Batch, true) => gx.for_each(|(d, (&g, &x))| {
                            *d = masked(g, x) * map.scale + ((x - map.mean) * k + shift);
                        }),
                        (Origin::Batch, false) => gx.for_each(|(d, (&g, &x))| {
                            *d = g * map.scale + ((x - map.mean) * k + shift);
                        }),
                        (Origin::Given, true) => gx.for_each(|(d, (&g, &x))| {
                            *d = masked(g, x) * map.scale;
                        }),
                        (Origin::Given, false) => gx.for_each(|(d, (&g, _))| *d = g * map.scale),
                    }
                },
            );
        },
    );
}

/// `Σ f(x)` in 32 partial sums, 16 towards the end.
#[inline(always)]
fn sum1<T: Real>(x: &[T], f: impl Fn(T) -> T) -> T {
    let (wide, rest) = x.as_chunks::<32>();
    let mut lanes = [T::default(); 32];
    for chunk in wide {
        (0..32).for_each(|l| lanes[l] += f(chunk[l]));
    }
    let (narrow, rest) = rest.as_chunks::<16>();
    for chunk in narrow {
        (0..16).for_each(|l| lanes[l] += f(chunk[l]));
    }
    rest.iter().fold(halve(lanes), |s, &v| s + f(v))
}

/// The sums of both components of `f(a, b)`, as [`sum1`].
#[inline(always)]
fn sum2<T: Real>(a: &[T], b: &[T], f: impl Fn(T, T) -> [T; 2]) -> [T; 2] {
    let Aligned([first, second]) = &mut Aligned([[T::default(); 32]; 2]);
    let ((wide_a, a), (wide_b, b)) = (a.as_chunks::<32>(), b.as_chunks::<32>());
    for (a, b) in wide_a.iter().zip(wide_b) {
        for l in 0..32 {
            let [p, q] = f(a[l], b[l]);
            first[l] += p;
            second[l] += q;
        }
    }
    let ((narrow_a, a), (narrow_b, b)) = (a.as_chunks::<16>(), b.as_chunks::<16>());
    for (a, b) in narrow_a.iter().zip(narrow_b) {
        for l in 0..16 {
            let [p, q] = f(a[l], b[l]);
            first[l] += p;
            second[l] += q;
        }
    }
    a.iter()
        .zip(b)
        .fold([halve(*first), halve(*second)], |[p, q], (&a, &b)| {
            let [dp, dq] = f(a, b);
            [p + dp, q + dq]
        })
}

/// The sum of the lanes, as a tree.
#[inline(always)]
fn halve<T: Real>(mut lanes: [T; 32]) -> T {
    for width in [16, 8, 4, 2, 1] {
        for l in 0..width {
            lanes[l] += lanes[l + width];
        }
    }
    lanes[0]
}
