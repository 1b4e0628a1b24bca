//! The micro-kernel: one tile of the result, accumulated in registers over one block of `k`.
//!
//! A tile has `R` rows of *stripes* (elements that are broadcast) and `NV` *vectors* of columns.
//! Which operand is striped and which is vectorised is the plan's choice; the tile is written
//! along the vectors or, transposed, along the stripes. Every element is one chain of
//! multiply-adds in the order of `k`, whatever tile it falls in: so neither the tiling nor the
//! number of threads changes a bit.

use super::ahead::Ahead;
use crate::cpu::math::Real;
use crate::cpu::prefetch::prefetch_line;
use crate::cpu::vector::{Aligned, Simd, at_least};
use std::mem::MaybeUninit;

/// The most rows that a tile may have, at any level.
pub(super) const MAX_ROWS: usize = 14;
/// The most elements that a row of a tile may have: two vectors of sixteen.
pub(super) const MAX_WIDTH: usize = 32;

/// Terms between two requests for memory.
const STRIDE: usize = 4;
/// Terms from the stripes that are read to those that are asked for.
const STRIPES_AHEAD: usize = 16;

/// What a tile is made of and where it goes.
pub(super) struct Tile<T> {
    /// Terms in each sum.
    pub kc: usize,
    /// Striped operand, packed: `kc` times one element for each row.
    pub s: *const T,
    /// Vectorised operand: `kc` rows of whole vectors, `v_k` elements apart.
    pub v: *const T,
    pub v_k: usize,
    /// Columns that count; the rest of the last vector is padding.
    pub width: usize,
    pub out: Out<T>,
}

impl<T> Tile<T> {
    /// A tile whose sums are there, for a [`Finish`] of `width` columns.
    pub fn summed(width: usize, out: Out<T>) -> Tile<T> {
        Tile {
            kc: 0,
            s: std::ptr::null(),
            v: std::ptr::null(),
            v_k: 0,
            width,
            out,
        }
    }
}

/// Destination of a tile, and what happens on the way there:
/// `x = alpha * sum (+ beta * old) (+ bias) ; max(x, floor)`.
#[derive(Clone, Copy)]
pub(super) struct Out<T> {
    pub c: *mut T,
    /// Distance between rows of `c`, which run along the vectors or, with a transposing `finish`,
    /// along the stripes.
    pub ld: usize,
    pub alpha: T,
    /// Factor of what stands in `c`; not read if `None`.
    pub beta: Option<T>,
    /// One per striped row, or null.
    pub bias_s: *const T,
    /// One per vectorised column, or null.
    pub bias_v: *const T,
    /// Zero for a rectified result, minus infinity otherwise.
    pub floor: T,
    pub finish: Finish<T>,
}

/// Takes the sums of a tile, `rows` rows that are `stride` apart, to where they belong.
///
/// # Safety
/// As [`along`].
pub(super) type Finish<T> = unsafe fn(&Tile<T>, sums: *const T, rows: usize, stride: usize);

/// A micro-kernel of fixed rows and vectors.
///
/// # Safety
/// As [`run`].
pub(super) type TileFn<T> = unsafe fn(&Tile<T>, straight: bool, result: &Ahead, next: &Ahead);

/// Computes a tile and asks for memory by the way: for the `result`, which it will write, and for
/// what is read `next`. `straight`: all vectors are whole, they are written along, and there is no
/// bias.
///
/// # Safety
/// `tile.s` and `tile.v` are valid for the reads that their fields describe, `c` and the biases
/// for `R` x `width` elements; `width` lies in the last of the `NV` vectors; the processor has
/// the instruction set of `S`.
#[inline(always)]
pub(super) unsafe fn run<S: Simd, const R: usize, const NV: usize>(
    tile: &Tile<S::T>,
    straight: bool,
    result: &Ahead,
    next: &Ahead,
) {
    let (mut result, mut next) = (*result, *next);
    // SAFETY: the caller's promise covers every access below; see each field.
    unsafe {
        let mut sums = [[S::splat(S::T::ZERO); NV]; R];
        let (mut s, mut v) = (tile.s, tile.v);
        let asking = tile.kc.min(STRIDE * result.left().max(next.left()));
        for k in 0..asking {
            if k % STRIDE == 0 {
                result.write();
                next.read();
            }
            term::<S, R, NV, true>(&mut sums, &mut s, &mut v, tile.v_k);
        }
        if asking > 0 {
            for _ in asking..tile.kc {
                term::<S, R, NV, true>(&mut sums, &mut s, &mut v, tile.v_k);
            }
        } else {
            for _ in 0..tile.kc {
                term::<S, R, NV, false>(&mut sums, &mut s, &mut v, tile.v_k);
            }
        }

        if straight {
            let out = &tile.out;
            let (alpha, floor) = (S::splat(out.alpha), S::splat(out.floor));
            for (r, row) in sums.iter().enumerate() {
                for (j, sum) in row.iter().enumerate() {
                    let p = out.c.add(r * out.ld + j * S::LANES);
                    let mut x = S::mul(alpha, *sum);
                    if let Some(beta) = out.beta {
                        x = S::fma(S::load(p), S::splat(beta), x);
                    }
                    S::store(p, S::at_least(x, floor));
                }
            }
            return;
        }
        // Through the stack, which the first-level cache makes cheap, so that one `finish` serves
        // every other tile, and so that the sums have no address while they are summed.
        let mut buffer = MaybeUninit::<Aligned<[S::T; MAX_ROWS * MAX_WIDTH]>>::uninit();
        let p = buffer.as_mut_ptr().cast::<S::T>();
        for (r, row) in sums.iter().enumerate() {
            for (j, sum) in row.iter().enumerate() {
                S::store(p.add((r * NV + j) * S::LANES), *sum);
            }
        }
        (tile.out.finish)(tile, p, R, NV * S::LANES);
    }
}

/// Adds one term to each sum and moves on to the next one; `ASK`s for stripes further on.
///
/// # Safety
/// `s` is valid for `R` elements, `v` for `NV` vectors, the processor has the instruction set of
/// `S`.
#[inline(always)]
unsafe fn term<S: Simd, const R: usize, const NV: usize, const ASK: bool>(
    sums: &mut [[S::V; NV]; R],
    s: &mut *const S::T,
    v: &mut *const S::T,
    v_k: usize,
) {
    // SAFETY: forwarded from the caller.
    unsafe {
        let mut columns = [S::splat(S::T::ZERO); NV];
        for (j, column) in columns.iter_mut().enumerate() {
            *column = S::load(v.add(j * S::LANES));
        }
        if ASK {
            prefetch_line::<1, _>(s.wrapping_add(STRIPES_AHEAD * R));
        }
        for (r, row) in sums.iter_mut().enumerate() {
            let stripe = S::splat(*s.add(r));
            for (sum, column) in row.iter_mut().zip(columns) {
                *sum = S::fma(stripe, column, *sum);
            }
        }
        *s = s.add(R);
        *v = v.wrapping_add(v_k);
    }
}

/// A [`Finish`] along the vectors.
///
/// # Safety
/// As [`run`], with `sums` valid for `rows` x `stride` elements; `stride` is whole vectors.
#[inline(always)]
pub(super) unsafe fn along<S: Simd>(
    tile: &Tile<S::T>,
    sums: *const S::T,
    rows: usize,
    stride: usize,
) {
    let out = &tile.out;
    // SAFETY: rows stop at `rows`, columns at `width`.
    unsafe {
        let (alpha, floor) = (S::splat(out.alpha), S::splat(out.floor));
        for r in 0..rows {
            for first in (0..tile.width).step_by(S::LANES) {
                let n = (tile.width - first).min(S::LANES);
                let p = out.c.add(r * out.ld + first);
                let mut x = S::mul(alpha, S::load(sums.add(r * stride + first)));
                if let Some(beta) = out.beta {
                    x = S::fma(load_up_to::<S>(p, n), S::splat(beta), x);
                }
                if !out.bias_s.is_null() {
                    x = S::add(x, S::splat(*out.bias_s.add(r)));
                }
                if !out.bias_v.is_null() {
                    x = S::add(x, load_up_to::<S>(out.bias_v.add(first), n));
                }
                x = S::at_least(x, floor);
                if n == S::LANES {
                    S::store(p, x)
                } else {
                    S::store_n(p, x, n)
                }
            }
        }
    }
}

/// The first `n` elements, quickly if they are a whole vector.
///
/// # Safety
/// They are readable, `n` is at most a vector, the processor has the instruction set of `S`.
#[inline(always)]
unsafe fn load_up_to<S: Simd>(p: *const S::T, n: usize) -> S::V {
    // SAFETY: forwarded from the caller.
    unsafe {
        if n == S::LANES {
            S::load(p)
        } else {
            S::load_n(p, n)
        }
    }
}

/// A transposing [`Finish`], one element at a time, in the arithmetic of `S`.
///
/// # Safety
/// As [`run`], with `sums` valid for `rows` x `stride` elements.
#[inline(always)]
pub(super) unsafe fn scatter<S: Simd>(
    tile: &Tile<S::T>,
    sums: *const S::T,
    rows: usize,
    stride: usize,
) {
    let out = &tile.out;
    for j in 0..tile.width {
        for r in 0..rows {
            // SAFETY: `j < width` and `r < rows`, so the caller's promise covers the accesses.
            unsafe {
                let p = out.c.add(j * out.ld + r);
                let mut x = out.alpha * *sums.add(r * stride + j);
                if let Some(beta) = out.beta {
                    x = S::fma1(*p, beta, x);
                }
                if !out.bias_s.is_null() {
                    x += *out.bias_s.add(r);
                }
                if !out.bias_v.is_null() {
                    x += *out.bias_v.add(j);
                }
                *p = at_least(x, out.floor);
            }
        }
    }
}

/// A transposing [`Finish`] in 8 x 8 blocks of `f32`, each one transposed in registers.
///
/// # Safety
/// As [`scatter`]; needs AVX2 and FMA; `stride` is a multiple of eight.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) unsafe fn scatter_8x8(tile: &Tile<f32>, sums: *const f32, rows: usize, stride: usize) {
    use crate::cpu::vector::{Avx2F32 as V, transpose_8x8};
    let out = &tile.out;
    // SAFETY: blocks stay within `rows` x `stride` of `sums`; only `rows` elements of `c` and of
    // `bias_s` are touched; columns stop at `width`.
    unsafe {
        let (alpha, floor) = (V::splat(out.alpha), V::splat(out.floor));
        for top in (0..rows).step_by(8) {
            let n = (rows - top).min(8);
            let bias_s = match out.bias_s {
                p if p.is_null() => None,
                p => Some(load_up_to::<V>(p.add(top), n)),
            };
            for left in (0..tile.width).step_by(8) {
                let mut block = [V::splat(0.0); 8];
                for (r, row) in block.iter_mut().enumerate().take(n) {
                    *row = V::load(sums.add((top + r) * stride + left));
                }
                let columns = transpose_8x8(block);
                for (j, column) in columns.into_iter().enumerate().take(tile.width - left) {
                    let j = left + j;
                    let p = out.c.add(j * out.ld + top);
                    let mut x = V::mul(alpha, column);
                    if let Some(beta) = out.beta {
                        x = V::fma(load_up_to::<V>(p, n), V::splat(beta), x);
                    }
                    if let Some(bias) = bias_s {
                        x = V::add(x, bias);
                    }
                    if !out.bias_v.is_null() {
                        x = V::add(x, V::splat(*out.bias_v.add(j)));
                    }
                    x = V::at_least(x, floor);
                    if n == 8 {
                        V::store(p, x)
                    } else {
                        V::store_n(p, x, n)
                    }
                }
            }
        }
    }
}
