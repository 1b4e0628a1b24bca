//! Pooling on the CPU, plane by plane.

use super::windows::Windows;
use crate::cpu::math::Real;
use crate::cpu::pieces::{Rows, parallel_pieces, parallel_planes};
use crate::cpu::vectorize;
use crate::cpu::working::{Wide, on_real, working};
use crate::ops::index::cpu::expect_within;
use crate::ops::window::Axis;
use crate::{Result, Tensor};
use std::ops::Range;

impl Axis {
    /// The pixels of window `o`, as `(first, step, count)`.
    #[inline(always)]
    fn pixels(&self, o: usize) -> (usize, usize, usize) {
        let (start, d) = (o * self.stride, self.dilation);
        let skip = self.pad.saturating_sub(start).div_ceil(d).min(self.kernel);
        let first = start + skip * d - self.pad.min(start + skip * d);
        let room = self.inp.saturating_sub(first).div_ceil(d);
        (first, d, room.min(self.kernel - skip))
    }
}

impl Windows {
    fn inp(&self) -> [usize; 2] {
        match self {
            Windows::Fixed { axes, .. } => [axes[0].inp, axes[1].inp],
            Windows::Parts { inp, .. } => *inp,
        }
    }

    fn out(&self) -> [usize; 2] {
        match self {
            Windows::Fixed { axes, .. } => [axes[0].out, axes[1].out],
            Windows::Parts { out, .. } => *out,
        }
    }

    /// The pixels of window `o` along axis `d` (its dilation is 1), and what that axis
    /// contributes to the divisor of the mean.
    #[inline(always)]
    fn run(&self, d: usize, o: usize) -> (Range<usize>, usize) {
        match self {
            Windows::Fixed { axes, count_pad } => {
                let a = &axes[d];
                let (first, _, count) = a.pixels(o);
                let padded = a.kernel.min(a.inp + 2 * a.pad - o * a.stride);
                (
                    first..first + count,
                    if *count_pad { padded } else { count },
                )
            }
            Windows::Parts { inp, out } => {
                let (n, parts) = (inp[d], out[d]);
                let range = o * n / parts..((o + 1) * n).div_ceil(parts);
                (range.clone(), range.len())
            }
        }
    }

    /// Calls `f(output, rows, columns, 1 / divisor)` for each window.
    #[inline(always)]
    fn for_each(&self, mut f: impl FnMut(usize, Range<usize>, Range<usize>, f64)) {
        let [oh, ow] = self.out();
        if ow == 0 {
            return; // there may be as many rows of nothing as one likes
        }
        for i in 0..oh {
            let (rows, down) = self.run(0, i);
            for j in 0..ow {
                let (cols, across) = self.run(1, j);
                f(
                    i * ow + j,
                    rows.clone(),
                    cols,
                    1.0 / (down * across).max(1) as f64,
                );
            }
        }
    }
}

/// Planes that make a thread's least share.
fn grain(plane: usize) -> usize {
    ((1 << 14) / plane.max(1)).max(1)
}

/// The maximum of each window, and where it stands in its plane.
pub(super) fn max(
    op: &'static str,
    w: &Windows,
    x: &Tensor,
    out: &mut Tensor,
    at: &mut Tensor,
) -> Result<()> {
    let (x, mut out) = (working(op, x)?, Wide::new(op, out)?);
    on_real!(x, T => run_max::<T>(w, x.as_slice()?, out.slice()?, at.make_mut()?));
    out.round()
}

fn run_max<T: Real>(w: &Windows, x: &[T], out: &mut [T], at: &mut [i64]) {
    let Windows::Fixed {
        axes: [down, across],
        ..
    } = *w
    else {
        unreachable!("the maximum is taken over fixed windows");
    };
    let (inp, outs) = (down.inp * across.inp, down.out * across.out);
    if outs == 0 {
        return;
    }
    let width = outs;
    let planes = (Rows { data: out, width }, Rows { data: at, width });
    parallel_pieces(planes, grain(inp), |first, (out, at)| {
        let planes = out
            .data
            .chunks_exact_mut(outs)
            .zip(at.data.chunks_exact_mut(outs));
        for (p, (out, at)) in planes.enumerate() {
            let x = &x[(first + p) * inp..][..inp];
            vectorize(
                #[inline(always)]
                || {
                    for i in 0..down.out {
                        let (i0, di, rows) = down.pixels(i);
                        for j in 0..across.out {
                            let (j0, dj, cols) = across.pixels(j);
                            let (mut best, mut best_at) = (T::from_f64(f64::NEG_INFINITY), -1);
                            for r in 0..rows {
                                let row = (i0 + r * di) * across.inp + j0;
                                if cols == 0 {
                                    break; // as above
                                }
                                for c in 0..cols {
                                    let (v, here) = (x[row + c * dj], row + c * dj);
                                    // The first pixel, a larger one, or the first NaN.
                                    #[allow(clippy::eq_op)]
                                    if best_at < 0 || v > best || (v != v && best == best) {
                                        (best, best_at) = (v, here as i64);
                                    }
                                }
                            }
                            out[i * across.out + j] = best;
                            at[i * across.out + j] = best_at;
                        }
                    }
                },
            );
        }
    });
}

/// Adds each gradient to the pixel whose value was taken.
pub(super) fn max_backward(
    op: &'static str,
    dy: &Tensor,
    at: &Tensor,
    dx: &mut Tensor,
) -> Result<()> {
    let plane = |t: &Tensor| t.dims()[2].saturating_mul(t.dims()[3]);
    let (inp, outs, at) = (plane(dx), plane(dy), at.contiguous_for(op)?);
    expect_within(op, &at, inp, Some(-1))?;
    let (dy, mut dx) = (working(op, dy)?, Wide::new(op, dx)?);
    on_real!(dy, T => {
        run_max_backward::<T>(inp, outs, dy.as_slice()?, at.as_slice()?, dx.slice()?);
    });
    dx.round()
}

fn run_max_backward<T: Real>(inp: usize, outs: usize, dy: &[T], at: &[i64], dx: &mut [T]) {
    parallel_planes(dx, inp, grain(inp), |p, dx| {
        dx.fill(T::default());
        let range = p * outs..(p + 1) * outs;
        for (dy, &at) in dy[range.clone()].iter().zip(&at[range]) {
            if at >= 0 {
                dx[at as usize] += *dy;
            }
        }
    });
}

/// The mean of each window.
pub(super) fn average(op: &'static str, w: &Windows, x: &Tensor, out: &mut Tensor) -> Result<()> {
    let (x, mut out) = (working(op, x)?, Wide::new(op, out)?);
    on_real!(x, T => run_average::<T>(w, x.as_slice()?, out.slice()?));
    out.round()
}

fn run_average<T: Real>(w: &Windows, x: &[T], out: &mut [T]) {
    let ([ih, iw], [oh, ow]) = (w.inp(), w.out());
    parallel_planes(out, oh * ow, grain(ih * iw), |p, out| {
        let x = &x[p * ih * iw..][..ih * iw];
        vectorize(
            #[inline(always)]
            || {
                w.for_each(|o, rows, cols, scale| {
                    let sum = if cols.len() == iw {
                        sum(&x[rows.start * iw..rows.end * iw])
                    } else {
                        rows.map(|r| sum(&x[r * iw..][cols.clone()]))
                            .fold(T::default(), |a, b| a + b)
                    };
                    out[o] = sum * T::from_f64(scale);
                });
            },
        );
    });
}

/// Spreads each gradient evenly over its window.
pub(super) fn average_backward(
    op: &'static str,
    w: &Windows,
    dy: &Tensor,
    dx: &mut Tensor,
) -> Result<()> {
    let (dy, mut dx) = (working(op, dy)?, Wide::new(op, dx)?);
    on_real!(dy, T => run_average_backward::<T>(w, dy.as_slice()?, dx.slice()?));
    dx.round()
}

fn run_average_backward<T: Real>(w: &Windows, dy: &[T], dx: &mut [T]) {
    let ([ih, iw], [oh, ow]) = (w.inp(), w.out());
    parallel_planes(dx, ih * iw, grain(ih * iw), |p, dx| {
        let dy = &dy[p * oh * ow..][..oh * ow];
        vectorize(
            #[inline(always)]
            || {
                dx.fill(T::default());
                w.for_each(|o, rows, cols, scale| {
                    let share = dy[o] * T::from_f64(scale);
                    for r in rows {
                        dx[r * iw..][cols.clone()]
                            .iter_mut()
                            .for_each(|d| *d += share);
                    }
                });
            },
        );
    });
}

/// The sum of a run, in sixteen partial sums.
#[inline(always)]
fn sum<T: Real>(x: &[T]) -> T {
    let (chunks, rest) = x.as_chunks::<16>();
    let mut lanes = [T::default(); 16];
    for chunk in chunks {
        (0..16).for_each(|l| lanes[l] += chunk[l]);
    }
    rest.iter().chain(&lanes).fold(T::default(), |a, &b| a + b)
}
