//! Convolutions of `f32` with enough output channels to fill vectors: register tiles over blocks
//! of channels, written once over [`Lanes`] for AVX-512 and AVX2.
#![allow(unsafe_code)]

mod gather;
mod lanes;
mod pack;
mod plan;
mod tile;
mod weight;

use super::super::geometry::Geometry;
use super::Pass;
use crate::cpu::scratch::NoMemory;
use crate::cpu::vector::{Avx2F32, Avx512F32};
use crate::cpu::{SimdLevel, simd_level};
use lanes::Lanes;
use pack::Padded;
use plan::Plan;

/// Whether [`convolve`] pays.
pub(super) fn pays(pass: Pass, g: &Geometry) -> bool {
    let channels = match pass {
        Pass::Forward | Pass::WeightGrad | Pass::AddWeightGrad => g.cog(),
        Pass::InputGrad => g.cig(),
    };
    // Half-empty vectors still beat the planar kernels, which read and write a plane for every tap.
    channels >= 4
        && simd_level() >= SimdLevel::Avx2
        && match pass {
            Pass::Forward => g.ci > 0 && Padded::input(g, g.stride[1]).is_modest(g, g.cig()),
            Pass::InputGrad => {
                let few = g.co > 0 && plan::few_classes(g);
                few && Padded::output_grad(g).is_modest(g, g.cog())
            }
            Pass::WeightGrad | Pass::AddWeightGrad => {
                g.n > 0 && Padded::input(g, 1).is_modest(g, g.cig())
            }
        }
}

/// Computes a pass, where that [`pays`].
pub(super) fn convolve(
    pass: Pass,
    g: &Geometry,
    operands: [&[f32]; 2],
    bias: Option<&[f32]>,
    out: &mut [f32],
) -> Result<(), NoMemory> {
    assert!(simd_level() >= SimdLevel::Avx2);
    // SAFETY: `simd_level` says at most what the processor has.
    unsafe {
        match simd_level() {
            SimdLevel::Avx512 => convolve_on::<Avx512F32>(pass, g, operands, bias, out),
            _ => convolve_on::<Avx2F32>(pass, g, operands, bias, out),
        }
    }
}

/// # Safety
/// The processor has the features of `V`.
unsafe fn convolve_on<V: Lanes>(
    pass: Pass,
    g: &Geometry,
    [a, b]: [&[f32]; 2],
    bias: Option<&[f32]>,
    out: &mut [f32],
) -> Result<(), NoMemory> {
    // SAFETY: the caller's promise.
    unsafe {
        match pass {
            Pass::Forward => gather::run::<V>(&Plan::forward(g)?, a, b, bias, out),
            Pass::InputGrad => gather::run::<V>(&Plan::input_grad(g)?, a, b, None, out),
            Pass::WeightGrad => weight::run::<V>(g, a, b, out, false),
            Pass::AddWeightGrad => weight::run::<V>(g, a, b, out, true),
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
        use Pass::{Forward, InputGrad, WeightGrad};
        for many in [1 << 50, 1 << 52, 1 << 54] {
            // Input planes of 64 × 64 zeros, and no pixel that would be in memory.
            let g = Geometry::new(&[1, many, 0, 0], &[4, many, 1, 1], &cfg).unwrap();
            assert!(!pays(Forward, &g) && !pays(WeightGrad, &g), "{many}");
            let g = Geometry::new(&[1, 4, 1, 1], &[many, 4, 1, 1], &cfg).unwrap();
            assert!(!pays(InputGrad, &g), "{many}");
        }
        let g = Geometry::new(&[1, 8, 0, 0], &[8, 8, 1, 1], &cfg).unwrap();
        let vectors = simd_level() >= SimdLevel::Avx2;
        assert_eq!(
            [Forward, WeightGrad].map(|pass| pays(pass, &g)),
            [vectors; 2]
        );
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
            planar::weight_grad(&g, &x, &dy, &mut dw, false);
            let levels = [SimdLevel::Avx2, SimdLevel::Avx512];
            for level in levels.into_iter().filter(|&level| level <= simd_level()) {
                let (mut y2, mut dx2, mut dw2) = (dy.clone(), x.clone(), w.clone());
                let on = match level {
                    SimdLevel::Avx2 => convolve_on::<Avx2F32>,
                    _ => convolve_on::<Avx512F32>,
                };
                // SAFETY: the machine has this level.
                unsafe {
                    on(Pass::Forward, &g, [&x, &w], Some(&bias), &mut y2).unwrap();
                    on(Pass::InputGrad, &g, [&dy, &w], None, &mut dx2).unwrap();
                    on(Pass::WeightGrad, &g, [&x, &dy], None, &mut dw2).unwrap();
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
