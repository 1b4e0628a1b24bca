//! Kernels of layer normalisation. A row is read once and stays in cache for its passes.

use crate::cpu::math::Real;
use crate::cpu::pieces::{Rows, parallel_pieces};
use crate::cpu::rows::{LANES, rows_per_grain, sum_of, total};
use crate::cpu::simd::multiversion;
use crate::cpu::vector::Aligned;
use crate::cpu::vectorize;
use crate::cpu::working::{Wide, on_real, slice_if, working, working_if};
use crate::{Result, Shape, Tensor};

/// Rows of a block: the parameters' gradients are summed block by block, so that the sums do not
/// depend on the threads.
fn block_rows(rows: usize) -> usize {
    rows.div_ceil(32).max(64)
}

/// Normalises rows of `width` and keeps their statistics `(mean, rstd)`. The variance is the mean square
/// distance from the mean, so a mean far from zero costs no digits.
pub(crate) fn forward(
    op: &'static str,
    x: &Tensor,
    width: usize,
    (weight, bias): (Option<&Tensor>, Option<&Tensor>),
    eps: f64,
    (mean, rstd): (&mut Tensor, &mut Tensor),
    out: &mut Tensor,
) -> Result<()> {
    let (w, b) = (working_if(op, weight)?, working_if(op, bias)?);
    let (x, mut out) = (working(op, x)?, Wide::new(op, out)?);
    on_real!(x, T => {
        let affine = (slice_if::<T>(&w)?, slice_if(&b)?);
        let stats = (mean.make_mut()?, rstd.make_mut()?);
        run_forward(x.as_slice()?, width, affine, eps, stats, out.slice()?);
    });
    out.round()
}

fn run_forward<R: Real>(
    x: &[R],
    width: usize,
    affine: (Option<&[R]>, Option<&[R]>),
    eps: f64,
    (mean, rstd): (&mut [R], &mut [R]),
    out: &mut [R],
) {
    let eps = R::from_f64(eps);
    let (x, out) = (Rows { data: x, width }, Rows { data: out, width });
    let work = (x, mean, rstd, out);
    parallel_pieces(work, rows_per_grain(width), |_, (x, mean, rstd, out)| {
        forward_rows(x.data, width, affine, eps, mean, rstd, out.data);
    });
}

multiversion! {
    fn forward_rows[R: Real](
        x: &[R],
        width: usize,
        affine: (Option<&[R]>, Option<&[R]>),
        eps: R,
        mean: &mut [R],
        rstd: &mut [R],
        out: &mut [R],
    ) {
        let n = R::from_f64(width as f64);
        let rows = x.chunks_exact(width).zip(out.chunks_exact_mut(width));
        for ((x, out), (mean, rstd)) in rows.zip(mean.iter_mut().zip(rstd)) {
            let m = sum_of(x, R::ZERO, |v| v) / n;
            let square = sum_of(x, m, |v| (v - m) * (v - m)) / n;
            let r = R::ONE / (square + eps).sqrt();
            (*mean, *rstd) = (m, r);
            let pairs = out.iter_mut().zip(x);
            match affine {
                (Some(w), Some(b)) => {
                    for ((out, x), (w, b)) in pairs.zip(w.iter().zip(b)) {
                        *out = (*x - m) * r * *w + *b;
                    }
                }
                (Some(w), None) => {
                    pairs.zip(w).for_each(|((out, x), w)| *out = (*x - m) * r * *w);
                }
                (None, Some(b)) => {
                    pairs.zip(b).for_each(|((out, x), b)| *out = (*x - m) * r + *b);
                }
                (None, None) => pairs.for_each(|(out, x)| *out = (*x - m) * r),
            }
        }
    }
}

/// The input's gradient and, under a weight, the weight's and the bias's.
pub(crate) fn backward(
    op: &'static str,
    width: usize,
    (dy, x, w, (mean, rstd)): (&Tensor, &Tensor, Option<&Tensor>, (&Tensor, &Tensor)),
    dx: &mut Tensor,
    params: Option<(&mut Tensor, &mut Tensor)>,
) -> Result<()> {
    let w = working_if(op, w)?;
    let (dy, x) = (working(op, dy)?, working(op, x)?);
    let (mean, rstd) = (mean.contiguous_for(op)?, rstd.contiguous_for(op)?);
    let mut dx = Wide::new(op, dx)?;
    let mut params = match params {
        Some((dw, db)) => Some((Wide::new(op, dw)?, Wide::new(op, db)?)),
        None => None,
    };
    let rows = mean.numel();
    let partial = match params {
        Some(_) => Shape::from([rows.div_ceil(block_rows(rows)), 2, width]),
        None => Shape::from(0),
    };
    let mut partial = Tensor::allocate(op, partial, x.dtype(), x.device())?;
    on_real!(x, T => {
        let (w, stats) = (slice_if::<T>(&w)?, (mean.as_slice()?, rstd.as_slice()?));
        let partial = partial.make_mut()?;
        run_backward(dy.as_slice()?, x.as_slice()?, width, w, stats, dx.slice()?, partial);
        if let Some((dw, db)) = &mut params {
            sum_blocks(partial, dw.slice::<T>()?, db.slice()?);
        }
    });
    if let Some((dw, db)) = params {
        dw.round()?;
        db.round()?;
    }
    dx.round()
}

/// As [`backward`]: under a weight, the sums of each block of rows for the weight's and the bias's
/// gradient. `partial` is `[blocks, 2, width]`, or empty.
fn run_backward<R: Real>(
    dy: &[R],
    x: &[R],
    width: usize,
    w: Option<&[R]>,
    (mean, rstd): (&[R], &[R]),
    dx: &mut [R],
    partial: &mut [R],
) {
    if mean.is_empty() {
        return; // a block of rows that nobody has may be beyond all counting
    }
    let block = block_rows(mean.len());
    let width_of_block = block * width;
    let (dy, x) = (blocks_of(dy, width_of_block), blocks_of(x, width_of_block));
    let dx = blocks_of(dx, width_of_block);
    match w {
        None => parallel_pieces((dy, x, dx), 1, |first, (dy, x, dx)| {
            let stats = (&mean[first * block..], &rstd[first * block..]);
            backward_rows(dy.data, x.data, w, stats, dx.data, &mut [], width);
        }),
        Some(_) => {
            let partial = blocks_of(partial, 2 * width);
            parallel_pieces((dy, x, dx, partial), 1, |first, (dy, x, dx, partial)| {
                let inputs = dy
                    .data
                    .chunks(width_of_block)
                    .zip(x.data.chunks(width_of_block));
                let outputs = dx.data.chunks_mut(width_of_block);
                let outputs = outputs.zip(partial.data.chunks_exact_mut(2 * width));
                for (k, ((dy, x), (dx, partial))) in (first..).zip(inputs.zip(outputs)) {
                    partial.fill(R::ZERO);
                    let stats = (&mean[k * block..], &rstd[k * block..]);
                    backward_rows(dy, x, w, stats, dx, partial, width);
                }
            });
        }
    }
}

multiversion! {
    fn backward_rows[R: Real](
        dy: &[R],
        x: &[R],
        w: Option<&[R]>,
        stats: (&[R], &[R]),
        dx: &mut [R],
        partial: &mut [R],
        width: usize,
    ) {
        let (dw, db) = partial.split_at_mut(partial.len() / 2);
        let rows = dy.chunks_exact(width).zip(x.chunks_exact(width));
        let rows = rows.zip(dx.chunks_exact_mut(width));
        for (((dy, x), dx), (&mean, &rstd)) in rows.zip(stats.0.iter().zip(stats.1)) {
            row_backward(dy, x, w, (mean, rstd), dx, dw, db);
        }
    }
}

fn blocks_of<S>(data: S, width: usize) -> Rows<S> {
    Rows { data, width }
}

/// With `x̂ = (x − mean) · rstd` and `g = dy · w`:
/// `dx = rstd · (g − (Σg + x̂ · Σ g x̂) / width)`, `dw += dy · x̂`, `db += dy`.
#[inline(always)]
fn row_backward<R: Real>(
    dy: &[R],
    x: &[R],
    w: Option<&[R]>,
    (mean, rstd): (R, R),
    dx: &mut [R],
    dw: &mut [R],
    db: &mut [R],
) {
    let width = dy.len();
    let Aligned(sums) = &mut Aligned([[R::ZERO; LANES]; 2]);
    // `dx` holds g between the passes. The whole vectors have a length that the compiler knows.
    let whole = width - width % LANES;
    let (inputs, stats) = ((dy, x, w), (mean, rstd));
    for start in (0..whole).step_by(LANES) {
        part_backward(start, LANES, inputs, stats, (dx, dw, db), sums);
    }
    part_backward(whole, width - whole, inputs, stats, (dx, dw, db), sums);
    let share = R::from_f64(1.0 / width as f64);
    let plain = total(sums[0]) * share;
    let along = total(sums[1]) * share;
    for (dx, x) in dx.iter_mut().zip(x) {
        *dx = rstd * (*dx - plain - (*x - mean) * rstd * along);
    }
}

/// The first pass over the `len` elements from `start` on: g, and the two sums in lanes.
#[inline(always)]
fn part_backward<R: Real>(
    start: usize,
    len: usize,
    (dy, x, w): (&[R], &[R], Option<&[R]>),
    (mean, rstd): (R, R),
    (dx, dw, db): (&mut [R], &mut [R], &mut [R]),
    [plain, along]: &mut [[R; LANES]; 2],
) {
    let (dy, x, dx) = (
        &dy[start..][..len],
        &x[start..][..len],
        &mut dx[start..][..len],
    );
    let Some(w) = w else {
        for i in 0..len {
            plain[i] += dy[i];
            along[i] += dy[i] * ((x[i] - mean) * rstd);
        }
        return dx.copy_from_slice(dy);
    };
    let (w, dw, db) = (
        &w[start..][..len],
        &mut dw[start..][..len],
        &mut db[start..][..len],
    );
    for i in 0..len {
        let normal = (x[i] - mean) * rstd;
        let g = dy[i] * w[i];
        dw[i] += dy[i] * normal;
        db[i] += dy[i];
        plain[i] += g;
        along[i] += g * normal;
        dx[i] = g;
    }
}

/// Sums the blocks' parts of the parameters' gradients, in order.
fn sum_blocks<R: Real>(partial: &[R], dw: &mut [R], db: &mut [R]) {
    let width = dw.len();
    dw.fill(R::ZERO);
    db.fill(R::ZERO);
    vectorize(
        #[inline(always)]
        || {
            for block in partial.chunks_exact(2 * width) {
                let (w, b) = block.split_at(width);
                dw.iter_mut().zip(w).for_each(|(sum, v)| *sum += *v);
                db.iter_mut().zip(b).for_each(|(sum, v)| *sum += *v);
            }
        },
    );
}
