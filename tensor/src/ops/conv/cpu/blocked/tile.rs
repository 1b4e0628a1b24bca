//! The register tiles of the gathering passes: all of their arithmetic.
#![allow(unsafe_code)]

use super::lanes::Lanes;

/// `S` images, `P` pixels and `B` blocks, all taps.
///
/// # Safety
/// As [`Lanes`]; for each image, `x` is valid at each tap for `P` elements and `to` for `B` blocks
/// at each of `P` pixels (distances beside the pointers); `w` is valid for `B` blocks per tap,
/// `bias` for `B` blocks.
#[allow(clippy::needless_range_loop)] // plain loops unroll; iterators kept the sums in memory
#[inline(always)]
pub(super) unsafe fn tile<V: Lanes, const S: usize, const P: usize, const B: usize>(
    (x, x_image): (*const f32, usize),
    taps: &[usize],
    mut w: *const f32,
    bias: *const f32,
    (to, to_image, to_pixel): (*mut f32, usize, usize),
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = [[[V::splat(0.0); B]; P]; S];
        for s in 0..S {
            for p in 0..P {
                for b in 0..B {
                    acc[s][p][b] = V::load(bias.add(b * V::LANES));
                }
            }
        }
        for &tap in taps {
            let mut weights = [V::splat(0.0); B];
            for b in 0..B {
                weights[b] = V::load(w.add(b * V::LANES));
            }
            w = w.add(B * V::LANES);
            for s in 0..S {
                let x = x.add(s * x_image + tap);
                for p in 0..P {
                    let x = V::splat(*x.add(p));
                    for b in 0..B {
                        acc[s][p][b] = V::fma(x, weights[b], acc[s][p][b]);
                    }
                }
            }
        }
        for s in 0..S {
            for p in 0..P {
                for b in 0..B {
                    let to = to.add(s * to_image + p * to_pixel + b * V::LANES);
                    V::store(to, acc[s][p][b]);
                }
            }
        }
    }
}

/// As [`tile`] for one block and taps in runs of three neighbours: pixel `p` takes element `p + k`
/// for tap `k`, so a window of three scalars slides over the row and each is read once.
///
/// # Safety
/// As [`tile`].
#[allow(clippy::needless_range_loop)]
#[inline(always)]
pub(super) unsafe fn tile_of_runs<V: Lanes, const S: usize, const P: usize>(
    (x, x_image): (*const f32, usize),
    taps: &[usize],
    mut w: *const f32,
    bias: *const f32,
    (to, to_image, to_pixel): (*mut f32, usize, usize),
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = [[V::load(bias); P]; S];
        for taps in taps.chunks_exact(3) {
            let (w0, w1) = (V::load(w), V::load(w.add(V::LANES)));
            let w2 = V::load(w.add(2 * V::LANES));
            w = w.add(3 * V::LANES);
            for s in 0..S {
                let x = x.add(s * x_image + taps[0]);
                let (mut x0, mut x1) = (V::splat(*x), V::splat(*x.add(1)));
                for p in 0..P {
                    let x2 = V::splat(*x.add(p + 2));
                    let two = V::fma(x1, w1, V::fma(x0, w0, acc[s][p]));
                    acc[s][p] = V::fma(x2, w2, two);
                    (x0, x1) = (x1, x2);
                }
            }
        }
        for s in 0..S {
            for p in 0..P {
                V::store(to.add(s * to_image + p * to_pixel), acc[s][p]);
            }
        }
    }
}
