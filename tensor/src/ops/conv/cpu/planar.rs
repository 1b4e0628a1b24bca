//! The convolution of any shape and float type, plane by plane: each tap adds a shifted, scaled
//! copy of an input plane. It is the readable reference, and the path of depthwise convolutions,
//! whose channels give the blocked kernels nothing to share.

use super::super::geometry::Geometry;
use crate::cpu::math::Real;
use crate::cpu::pieces::parallel_planes;
use crate::cpu::vectorize;

/// Multiply-adds below which another thread does not pay.
const GRAIN: usize = 1 << 16;

/// How many planes of `pixels` with `taps` multiply-adds each make a thread's least share.
fn grain(pixels: usize, taps: usize) -> usize {
    (GRAIN / pixels.saturating_mul(taps).max(1)).max(1)
}

/// Visits the taps of a kernel plane that meet the input: `f(tap, rows)` where `rows` yields for
/// each output row `(o, i, first output column, columns, first input column)`.
#[inline(always)]
fn for_taps(g: &Geometry, mut f: impl FnMut(usize, Row)) {
    for kh in 0..g.ker[0] {
        let (rows, i0) = g.reach(0, kh);
        for kw in 0..g.ker[1] {
            let (cols, j0) = g.reach(1, kw);
            if cols.is_empty() {
                continue;
            }
            for (r, o) in rows.clone().enumerate() {
                let i = i0 + r * g.stride[0];
                let row = Row {
                    out: o * g.out[1] + cols.start,
                    inp: i * g.inp[1] + j0,
                    len: cols.len(),
                };
                f(kh * g.ker[1] + kw, row);
            }
        }
    }
}

/// A run of outputs of one row and the first input that one tap brings to it.
struct Row {
    out: usize,
    inp: usize,
    len: usize,
}

/// `out = x ⋆ w + bias`.
pub(super) fn forward<T: Real>(g: &Geometry, x: &[T], w: &[T], bias: Option<&[T]>, out: &mut [T]) {
    let (cig, cog, taps, inp) = (g.cig(), g.cog(), g.taps(), g.in_plane());
    let step = g.stride[1];
    parallel_planes(
        out,
        g.out_plane(),
        grain(g.out_plane(), cig * taps),
        |i, plane| {
            let (n, c) = (i / g.co, i % g.co);
            vectorize(
                #[inline(always)]
                || {
                    plane.fill(bias.map_or(T::default(), |b| b[c]));
                    for k in 0..cig {
                        let x = &x[(n * g.ci + c / cog * cig + k) * inp..][..inp];
                        let w = &w[(c * cig + k) * taps..][..taps];
                        for_taps(g, |tap, row| {
                            let (w, out) = (w[tap], &mut plane[row.out..][..row.len]);
                            let x = &x[row.inp..];
                            if step == 1 {
                                out.iter_mut().zip(x).for_each(|(o, x)| *o += w * *x);
                            } else {
                                out.iter_mut()
                                    .zip(x.iter().step_by(step))
                                    .for_each(|(o, x)| *o += w * *x);
                            }
                        });
                    }
                },
            );
        },
    );
}

/// The gradient with respect to `x`, given that with respect to the output.
pub(super) fn input_grad<T: Real>(g: &Geometry, dy: &[T], w: &[T], dx: &mut [T]) {
    let (cig, cog, taps, outp) = (g.cig(), g.cog(), g.taps(), g.out_plane());
    let step = g.stride[1];
    parallel_planes(dx, g.in_plane(), grain(outp, cog * taps), |i, plane| {
        let (n, c) = (i / g.ci, i % g.ci);
        vectorize(
            #[inline(always)]
            || {
                plane.fill(T::default());
                for k in 0..cog {
                    let co = c / cig * cog + k;
                    let dy = &dy[(n * g.co + co) * outp..][..outp];
                    let w = &w[(co * cig + c % cig) * taps..][..taps];
                    for_taps(g, |tap, row| {
                        let (w, dy) = (w[tap], &dy[row.out..][..row.len]);
                        let dx = &mut plane[row.inp..];
                        if step == 1 {
                            dx.iter_mut().zip(dy).for_each(|(d, y)| *d += w * *y);
                        } else {
                            dx.iter_mut()
                                .step_by(step)
                                .zip(dy)
                                .for_each(|(d, y)| *d += w * *y);
                        }
                    });
                }
            },
        );
    });
}

/// The gradient with respect to `w`; with `add`, onto what is there. Rows are summed in `T`, the rows'
/// sums in `f64`.
pub(super) fn weight_grad<T: Real>(g: &Geometry, x: &[T], dy: &[T], dw: &mut [T], add: bool) {
    let (cig, cog, taps) = (g.cig(), g.cog(), g.taps());
    let (inp, outp) = (g.in_plane(), g.out_plane());
    let step = g.stride[1];
    parallel_planes(dw, 1, grain(g.n, outp), |i, dw| {
        let (c, k, tap) = (i / taps / cig, i / taps % cig, i % taps);
        let (rows, i0) = g.reach(0, tap / g.ker[1]);
        let (cols, j0) = g.reach(1, tap % g.ker[1]);
        let mut sum = 0.0;
        vectorize(
            #[inline(always)]
            || {
                for n in 0..g.n {
                    let x = &x[(n * g.ci + c / cog * cig + k) * inp..][..inp];
                    let dy = &dy[(n * g.co + c) * outp..][..outp];
                    for (r, o) in rows.clone().enumerate() {
                        if cols.is_empty() {
                            continue;
                        }
                        let dy = &dy[o * g.out[1]..][cols.clone()];
                        let x = &x[(i0 + r * g.stride[0]) * g.inp[1] + j0..];
                        sum += dot(dy, x, step).to_f64();
                    }
                }
            },
        );
        let sum = T::from_f64(sum);
        dw[0] = if add { dw[0] + sum } else { sum };
    });
}

/// `Σ a[i]·b[i·step]`, in eight partial sums where the step allows.
#[inline(always)]
fn dot<T: Real>(a: &[T], b: &[T], step: usize) -> T {
    let mut lanes = [T::default(); 8];
    let whole = if step == 1 { a.len() / 8 * 8 } else { 0 };
    if step == 1 {
        for (a, b) in a[..whole].chunks_exact(8).zip(b[..whole].chunks_exact(8)) {
            (0..8).for_each(|l| lanes[l] += a[l] * b[l]);
        }
    }
    let mut sum = T::default();
    for (a, b) in a[whole..].iter().zip(b[whole..].iter().step_by(step)) {
        sum += *a * *b;
    }
    lanes.into_iter().fold(sum, |s, l| s + l)
}
