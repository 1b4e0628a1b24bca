//! Convolutions of `f32` with enough output channels to fill vectors: register tiles over blocks
//! of channels, written once over [`Lanes`](lanes::Lanes) for AVX-512 and AVX2.
#![allow(unsafe_code)]

mod gather;
mod lanes;
mod pack;
mod plan;
mod tile;
mod weight;

use super::super::geometry::Geometry;
use crate::cpu::scratch::NoMemory;
use crate::cpu::vector::{Avx2F32, Avx512F32};
use crate::cpu::{SimdLevel, simd_level};
use pack::Padded;

/// Whether the blocked kernels pay for `channels` lanes: half-empty vectors still beat the planar
/// kernels, which read and write a plane for every tap.
fn pays(channels: usize) -> bool {
    channels >= 4 && simd_level() >= SimdLevel::Avx2
}

/// Whether [`forward`] pays.
pub(super) fn forward_pays(g: &Geometry) -> bool {
    g.ci > 0 && pays(g.cog()) && Padded::input(g, g.stride[1]).is_modest(g, g.cig())
}

/// Whether [`input_grad`] pays.
pub(super) fn input_grad_pays(g: &Geometry) -> bool {
    let modest = || plan::few_classes(g) && Padded::output_grad(g).is_modest(g, g.cog());
    g.co > 0 && pays(g.cig()) && modest()
}

/// Whether [`weight_grad`] pays.
pub(super) fn weight_grad_pays(g: &Geometry) -> bool {
    pays(g.cog()) && Padded::input(g, 1).is_modest(g, g.cig())
}

/// `out = x ⋆ w + bias`, where [`forward_pays`].
pub(super) fn forward(
    g: &Geometry,
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
) -> Result<(), NoMemory> {
    assert!(simd_level() >= SimdLevel::Avx2);
    // SAFETY: `simd_level` says at most what the processor has.
    unsafe {
        match simd_level() {
            SimdLevel::Avx512 => gather::forward::<Avx512F32>(g, x, w, bias, out),
            _ => gather::forward::<Avx2F32>(g, x, w, bias, out),
        }
    }
}

/// The gradient with respect to `x`, where [`input_grad_pays`].
pub(super) fn input_grad(
    g: &Geometry,
    dy: &[f32],
    w: &[f32],
    dx: &mut [f32],
) -> Result<(), NoMemory> {
    assert!(simd_level() >= SimdLevel::Avx2);
    // SAFETY: `simd_level` says at most what the processor has.
    unsafe {
        match simd_level() {
            SimdLevel::Avx512 => gather::input_grad::<Avx512F32>(g, dy, w, dx),
            _ => gather::input_grad::<Avx2F32>(g, dy, w, dx),
        }
    }
}

/// The gradient with respect to `w`, where [`weight_grad_pays`].
pub(super) fn weight_grad(
    g: &Geometry,
    x: &[f32],
    dy: &[f32],
    dw: &mut [f32],
) -> Result<(), NoMemory> {
    assert!(simd_level() >= SimdLevel::Avx2);
    // SAFETY: `simd_level` says at most what the processor has.
    unsafe {
        match simd_level() {
            SimdLevel::Avx512 => weight::weight_grad::<Avx512F32>(g, x, dy, dw),
            _ => weight::weight_grad::<Avx2F32>(g, x, dy, dw),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::Conv2dConfig;
    use super::super::planar;
    use super::*;

    /// Numbers in −1..1 from a multiplicative hash.
    fn numbers(len: usize) -> Vec<f32> {
        let hash = |i: usize| (i as u32).wrapping_add(1).wrapping_mul(2_654_435_769);
        (0..len)
            .map(|i| hash(i) as f32 / 2f32.powi(31) - 1.0)
            .collect()
    }

    /// Channels times padded planes are counted before anything asks for memory or points into it.
    #[test]
    fn planes_that_cannot_be_addressed_together_are_not_gathered() {
        let cfg = Conv2dConfig::default().with_padding(32);
        for many in [1 << 50, 1 << 52, 1 << 54] {
            // Input planes of 64 × 64 zeros, and no pixel that would be in memory.
            let g = Geometry::new(&[1, many, 0, 0], &[4, many, 1, 1], &cfg).unwrap();
            assert!(!forward_pays(&g) && !weight_grad_pays(&g), "{many}");
            let g = Geometry::new(&[1, 4, 1, 1], &[many, 4, 1, 1], &cfg).unwrap();
            assert!(!input_grad_pays(&g), "{many}");
        }
        let g = Geometry::new(&[1, 8, 0, 0], &[8, 8, 1, 1], &cfg).unwrap();
        let vectors = simd_level() >= SimdLevel::Avx2;
        assert_eq!((forward_pays(&g), weight_grad_pays(&g)), (vectors, vectors));
    }

    /// A machine runs one level: here each that it has meets the planar kernels, whatever is best.
    #[test]
    fn every_level_agrees_with_the_planar_kernels() {
        let cfg = Conv2dConfig::default();
        let problems = [
            ([3, 16, 9, 28], [16, 16, 3, 3], cfg.with_padding(1)),
            ([5, 32, 7, 7], [40, 32, 3, 3], cfg.with_padding(1)),
            (
                [2, 5, 11, 13],
                [24, 5, 3, 3],
                cfg.with_padding(2).with_stride(2),
            ),
            ([2, 24, 6, 9], [8, 24, 1, 1], cfg),
            (
                [2, 12, 10, 5],
                [18, 6, 3, 2],
                cfg.with_groups(2).with_dilation(2).with_padding(3),
            ),
            (
                [9, 4, 3, 1],
                [7, 4, 2, 1],
                cfg.with_stride(3).with_padding(1),
            ),
        ];
        for (x_shape, w_shape, cfg) in problems {
            let g = Geometry::new(&x_shape, &w_shape, &cfg).unwrap();
            let x = numbers(x_shape.iter().product());
            let w = numbers(w_shape.iter().product());
            let dy = numbers(g.n * g.co * g.out_plane());
            let bias = numbers(g.co);
            let (mut y, mut dx, mut dw) = (dy.clone(), x.clone(), w.clone());
            planar::forward(&g, &x, &w, Some(&bias), &mut y);
            planar::input_grad(&g, &dy, &w, &mut dx);
            planar::weight_grad(&g, &x, &dy, &mut dw);
            let levels = [SimdLevel::Avx2, SimdLevel::Avx512];
            for level in levels.into_iter().filter(|&level| level <= simd_level()) {
                let (mut y2, mut dx2, mut dw2) = (dy.clone(), x.clone(), w.clone());
                // SAFETY: the machine has this level.
                unsafe {
                    if level == SimdLevel::Avx2 {
                        gather::forward::<Avx2F32>(&g, &x, &w, Some(&bias), &mut y2).unwrap();
                        gather::input_grad::<Avx2F32>(&g, &dy, &w, &mut dx2).unwrap();
                        weight::weight_grad::<Avx2F32>(&g, &x, &dy, &mut dw2).unwrap();
                    } else {
                        gather::forward::<Avx512F32>(&g, &x, &w, Some(&bias), &mut y2).unwrap();
                        gather::input_grad::<Avx512F32>(&g, &dy, &w, &mut dx2).unwrap();
                        weight::weight_grad::<Avx512F32>(&g, &x, &dy, &mut dw2).unwrap();
                    }
                }
                for (a, b) in [(&y, &y2), (&dx, &dx2), (&dw, &dw2)] {
                    for (a, b) in a.iter().zip(b) {
                        // The longest sums have some 800 terms below 1.
                        assert!(
                            (a - b).abs() < 1e-3,
                            "{level:?} {x_shape:?} {w_shape:?}: {a} {b}"
                        );
                    }
                }
            }
        }
    }
}
