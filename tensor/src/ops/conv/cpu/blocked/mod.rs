//! Convolutions of `f32` with enough output channels to fill vectors: register tiles over blocks
//! of channels, written once over [`Lanes`](lanes::Lanes) for AVX-512 and AVX2.
#![allow(unsafe_code)]

mod gather;
mod lanes;
mod pack;
mod weight;

use super::super::geometry::Geometry;
use crate::cpu::{SimdLevel, simd_level};
use lanes::{Avx2, Avx512};

/// Whether the blocked kernels pay for `channels` lanes: half-empty vectors still beat the planar
/// kernels, which read and write a plane for every tap.
pub(super) fn pays(channels: usize) -> bool {
    channels >= 4 && simd_level() >= SimdLevel::Avx2
}

/// `out = x ⋆ w + bias`, where [`pays`]`(g.cog())`.
pub(super) fn forward(g: &Geometry, x: &[f32], w: &[f32], bias: Option<&[f32]>, out: &mut [f32]) {
    assert!(simd_level() >= SimdLevel::Avx2);
    // SAFETY: `simd_level` says what the processor has.
    unsafe {
        match simd_level() {
            SimdLevel::Avx512 => gather::forward::<Avx512>(g, x, w, bias, out),
            _ => gather::forward::<Avx2>(g, x, w, bias, out),
        }
    }
}

/// The gradient with respect to `x`, where [`pays`]`(g.cig())`.
pub(super) fn input_grad(g: &Geometry, dy: &[f32], w: &[f32], dx: &mut [f32]) {
    assert!(simd_level() >= SimdLevel::Avx2);
    // SAFETY: `simd_level` says what the processor has.
    unsafe {
        match simd_level() {
            SimdLevel::Avx512 => gather::input_grad::<Avx512>(g, dy, w, dx),
            _ => gather::input_grad::<Avx2>(g, dy, w, dx),
        }
    }
}

/// The gradient with respect to `w`, where [`pays`]`(g.cog())`.
pub(super) fn weight_grad(g: &Geometry, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    assert!(simd_level() >= SimdLevel::Avx2);
    // SAFETY: `simd_level` says what the processor has.
    unsafe {
        match simd_level() {
            SimdLevel::Avx512 => weight::weight_grad::<Avx512>(g, x, dy, dw),
            _ => weight::weight_grad::<Avx2>(g, x, dy, dw),
        }
    }
}
