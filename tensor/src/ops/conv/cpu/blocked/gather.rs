//! Forward pass and input gradient: both gather, for each pixel of the result, the channels of
//! the source at a list of taps.
//!
//! A lane is a channel of the result. A register tile holds a run of pixels of one row for a few
//! blocks of channels; for each tap it reads the tap's weights for these channels, and one scalar
//! of the source per pixel. Zeros around the source's planes make all pixels alike, and the
//! column order of [`Padded`] makes all strides alike.
//!
//! The gradient of a strided convolution splits its result into classes of pixels, by their
//! remainders modulo the stride: each class has its own taps, and no product with zero is made.
#![allow(unsafe_code)]

use super::super::super::geometry::Geometry;
use super::lanes::Lanes;
use super::pack::{Padded, Scratch, planes, with_scratch};
use crate::cpu::parallel_for;
use crate::cpu::share::Shared;

/// One gathering pass: who reads what.
struct Plan {
    n: usize,
    groups: usize,
    /// Channels of one group in the source and in the result.
    from: usize,
    to: usize,
    /// Pixels of one plane of the result.
    plane: usize,
    source: Padded,
    /// Where channel `l` of the result stands in the weights of a group: `l · lane`.
    lane: usize,
    /// Elements of the weights of a group.
    weights: usize,
    classes: Vec<Class>,
}

/// Pixels of the result that read the same taps.
struct Class {
    /// For each tap, where it reads in the source relative to the pixel's base, and where its
    /// weight stands for channel 0 of the result.
    source: Vec<usize>,
    weight: Vec<usize>,
    /// Rows and columns of this class.
    rows: usize,
    cols: usize,
    /// Source elements from row to row.
    source_row: usize,
    /// Pixel of the result for row 0, column 0; pixels from row to row and from column to column.
    first: usize,
    row: usize,
    col: usize,
}

impl Plan {
    fn forward(g: &Geometry) -> Plan {
        let reach = |d: usize| (g.out[d].max(1) - 1) * g.stride[d] + g.dil[d] * (g.ker[d] - 1) + 1;
        let source = Padded {
            size: g.inp,
            before: g.pad,
            rows: reach(0),
            cols: reach(1),
            phases: g.stride[1],
        };
        let (mut from, mut weight) = (Vec::new(), Vec::new());
        for c in 0..g.cig() {
            for u in 0..g.ker[0] {
                for v in 0..g.ker[1] {
                    from.push(c * source.plane() + source.at(u * g.dil[0], v * g.dil[1]));
                    weight.push((c * g.ker[0] + u) * g.ker[1] + v);
                }
            }
        }
        let all = Class {
            source: from,
            weight,
            rows: g.out[0],
            cols: g.out[1],
            source_row: g.stride[0] * source.pitch(),
            first: 0,
            row: g.out[1],
            col: 1,
        };
        Plan {
            n: g.n,
            groups: g.groups,
            from: g.cig(),
            to: g.cog(),
            plane: g.out_plane(),
            source,
            lane: g.cig() * g.taps(),
            weights: g.cog() * g.cig() * g.taps(),
            classes: vec![all],
        }
    }

    fn input_grad(g: &Geometry) -> Plan {
        // Pixel `first + stride·a` of the input meets tap `k` at output `a + shift`.
        let taps = |d: usize, first: usize| -> Vec<(usize, isize)> {
            let s = g.stride[d] as isize;
            (0..g.ker[d])
                .map(|k| (k, (first + g.pad[d]) as isize - (k * g.dil[d]) as isize))
                .filter(|(_, at)| at.rem_euclid(s) == 0)
                .map(|(k, at)| (k, at / s))
                .collect()
        };
        let count = |d: usize, first: usize| g.inp[d].saturating_sub(first).div_ceil(g.stride[d]);
        let (mut before, mut reach) = ([0; 2], [0; 2]);
        for d in 0..2 {
            for first in 0..g.stride[d].min(g.inp[d]) {
                for (_, shift) in taps(d, first) {
                    before[d] = before[d].max((-shift).max(0) as usize);
                    reach[d] = reach[d].max((count(d, first) as isize + shift).max(0) as usize);
                }
            }
        }
        let source = Padded {
            size: g.out,
            before,
            rows: before[0] + reach[0],
            cols: before[1] + reach[1],
            phases: 1,
        };
        let mut classes = Vec::new();
        for first_row in 0..g.stride[0].min(g.inp[0]) {
            for first_col in 0..g.stride[1].min(g.inp[1]) {
                let (mut from, mut weight) = (Vec::new(), Vec::new());
                for c in 0..g.cog() {
                    for &(u, down) in &taps(0, first_row) {
                        for &(v, right) in &taps(1, first_col) {
                            let row = (before[0] as isize + down) as usize;
                            let col = (before[1] as isize + right) as usize;
                            from.push(c * source.plane() + source.at(row, col));
                            weight.push((c * g.cig() * g.ker[0] + u) * g.ker[1] + v);
                        }
                    }
                }
                classes.push(Class {
                    source: from,
                    weight,
                    rows: count(0, first_row),
                    cols: count(1, first_col),
                    source_row: source.pitch(),
                    first: first_row * g.inp[1] + first_col,
                    row: g.stride[0] * g.inp[1],
                    col: g.stride[1],
                });
            }
        }
        Plan {
            n: g.n,
            groups: g.groups,
            from: g.cog(),
            to: g.cig(),
            plane: g.in_plane(),
            source,
            lane: g.taps(),
            weights: g.cog() * g.cig() * g.taps(),
            classes,
        }
    }
}

/// `out = x ⋆ w + bias`.
///
/// # Safety
/// The processor has the features of `V`.
pub(super) unsafe fn forward<V: Lanes>(
    g: &Geometry,
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    // SAFETY: the caller's promise.
    unsafe { run::<V>(&Plan::forward(g), x, w, bias, out) }
}

/// The gradient with respect to `x`.
///
/// # Safety
/// The processor has the features of `V`.
pub(super) unsafe fn input_grad<V: Lanes>(g: &Geometry, dy: &[f32], w: &[f32], dx: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe { run::<V>(&Plan::input_grad(g), dy, w, None, dx) }
}

unsafe fn run<V: Lanes>(plan: &Plan, x: &[f32], w: &[f32], bias: Option<&[f32]>, out: &mut [f32]) {
    let width = plan.to.next_multiple_of(V::LEN);
    let taps: usize = plan.classes.iter().map(|c| c.source.len()).sum();
    let macs =
        plan.to * plan.from * plan.plane * taps / plan.from.max(1) / plan.classes.len().max(1);
    let out = Shared::new(out);
    with_scratch(|[packed, biases]: &mut [Scratch; 2]| {
        let packed = packed.get(plan.groups * taps * width);
        let biases = biases.get(plan.groups * width);
        // SAFETY: the caller's promise.
        unsafe { V::run(|| pack_weights::<V>(plan, w, packed)) };
        biases.fill(0.0);
        for (to, from) in biases
            .chunks_mut(width.max(1))
            .zip(bias.unwrap_or(&[]).chunks(plan.to))
        {
            to[..plan.to].copy_from_slice(from);
        }
        let (packed, biases) = (&*packed, &*biases);
        let items = plan.n * plan.groups;
        parallel_for(items, ((1 << 18) / macs.max(1)).max(1), |items| {
            with_scratch(|[padded, result]: &mut [Scratch; 2]| {
                let source = padded.get(plan.from * plan.source.plane());
                let result = result.get(plan.plane * width);
                source.fill(0.0);
                for item in items {
                    let group = item % plan.groups;
                    let size = plan.source.size[0] * plan.source.size[1] * plan.from;
                    let x = &x[item * size..][..size];
                    let packed = &packed[group * taps * width..][..taps * width];
                    let bias = &biases[group * width..][..width];
                    let pixels = plan.to * plan.plane;
                    // SAFETY: each item is handed out once, and has a range of its own; the
                    // features are the caller's promise.
                    unsafe {
                        let out = out.range(item * pixels..(item + 1) * pixels);
                        V::run(
                            #[inline(always)]
                            || {
                                let x = if plan.source.is_identity() {
                                    x
                                } else {
                                    plan.source.fill::<V>(x, plan.from, source);
                                    &*source
                                };
                                image::<V>(plan, x, packed, bias, result);
                                planes::<V>(result, width, out, (plan.to, plan.plane));
                            },
                        );
                    }
                }
            });
        });
    });
}

/// The weights in the order of use: for each group, class and tile of channel blocks, for each tap
/// the weights of the tile's channels, zeros beyond the last.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn pack_weights<V: Lanes>(plan: &Plan, w: &[f32], packed: &mut [f32]) {
    let mut at = 0;
    for group in 0..plan.groups {
        let w = &w[group * plan.weights..][..plan.weights];
        for class in &plan.classes {
            for (first, blocks) in tiles::<V>(plan.to) {
                let lanes = blocks * V::LEN;
                for &tap in &class.weight {
                    let to = &mut packed[at..at + lanes];
                    let valid = (plan.to - first).min(lanes);
                    for (l, v) in to[..valid].iter_mut().enumerate() {
                        *v = w[(first + l) * plan.lane + tap];
                    }
                    to[valid..].fill(0.0);
                    at += lanes;
                }
            }
        }
    }
}

/// The tiles of channel blocks: first channel, number of blocks (4, 2 or 1).
fn tiles<V: Lanes>(channels: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut first = 0;
    std::iter::from_fn(move || {
        let left = channels.saturating_sub(first).div_ceil(V::LEN);
        let blocks = match left {
            0 => return None,
            4.. if V::ACCUMULATORS >= 16 => 4,
            2.. => 2,
            _ => 1,
        };
        first += blocks * V::LEN;
        Some((first - blocks * V::LEN, blocks))
    })
}

/// One image of one group: `result[pixel·width + channel]`.
///
/// # Safety
/// As [`Lanes`]; `x` is padded as the plan says, `packed` is the group's.
#[inline(always)]
unsafe fn image<V: Lanes>(
    plan: &Plan,
    x: &[f32],
    packed: &[f32],
    bias: &[f32],
    result: &mut [f32],
) {
    let mut at = 0;
    for class in &plan.classes {
        for (first, blocks) in tiles::<V>(plan.to) {
            let len = class.source.len() * blocks * V::LEN;
            let job = Job {
                class,
                x,
                w: &packed[at..at + len],
                bias: &bias[first..],
                first,
                width: bias.len(),
            };
            at += len;
            // SAFETY: the caller's promise.
            unsafe {
                match blocks {
                    4 => sweep4::<V>(&job, result),
                    2 => sweep2::<V>(&job, result),
                    _ => sweep1::<V>(&job, result),
                }
            }
        }
    }
}

/// One tile of channel blocks over all pixels of a class.
struct Job<'a> {
    class: &'a Class,
    x: &'a [f32],
    w: &'a [f32],
    bias: &'a [f32],
    first: usize,
    width: usize,
}

/// Of the tile widths that fit the row, the one that computes the fewest pixels twice.
fn tile_width(cols: usize, widths: &[usize]) -> usize {
    let cost = |p: &usize| (cols.div_ceil(*p) * p, usize::MAX - p);
    widths
        .iter()
        .copied()
        .filter(|&p| p <= cols)
        .min_by_key(cost)
        .unwrap_or(1)
}

/// Picks the widest register tile that suits the rows of the job.
macro_rules! sweeps {
    ($($name:ident, $blocks:literal: $wide:tt or $narrow:tt;)*) => {$(
        #[inline(always)]
        unsafe fn $name<V: Lanes>(job: &Job<'_>, result: &mut [f32]) {
            // SAFETY: the caller's promise.
            unsafe {
                if V::ACCUMULATORS >= 28 {
                    sweeps!(@ $blocks, job, result, $wide)
                } else {
                    sweeps!(@ $blocks, job, result, $narrow)
                }
            }
        }
    )*};
    (@ $blocks:literal, $job:ident, $result:ident, [$($p:literal)*]) => {
        match tile_width($job.class.cols, &[$($p),*]) {
            $($p => sweep::<V, $p, $blocks>($job, $result),)*
            _ => sweep::<V, 1, $blocks>($job, $result),
        }
    };
}
sweeps! {
    sweep1, 1: [28 20 16 14 12 10 8 7 6 5 4 3 2] or [12 8 6 4 3 2];
    sweep2, 2: [14 12 10 8 7 6 5 4 3 2] or [6 5 4 3 2];
    sweep4, 4: [7 6 5 4 3 2] or [];
}

/// All pixels of a class, in tiles of `P` pixels by `B` blocks.
///
/// # Safety
/// As [`Lanes`]; the job's class lies inside `x` and `result`, and `P` is at most its columns or 1.
#[inline(always)]
unsafe fn sweep<V: Lanes, const P: usize, const B: usize>(job: &Job<'_>, result: &mut [f32]) {
    let c = job.class;
    if c.rows == 0 || c.cols == 0 {
        return;
    }
    let last = c.first + (c.rows - 1) * c.row + (c.cols - 1) * c.col;
    assert!(result.len() >= last * job.width + job.first + B * V::LEN);
    let reach = c
        .source
        .iter()
        .max()
        .map_or(0, |s| s + (c.rows - 1) * c.source_row + c.cols);
    assert!(job.x.len() >= reach && job.w.len() == c.source.len() * B * V::LEN);
    assert!(job.bias.len() >= B * V::LEN);
    for r in 0..c.rows {
        for col in (0..c.cols).step_by(P) {
            // The last tile of a row overlaps the one before, and computes the same bits again.
            let col = col.min(c.cols - P);
            let pixel = c.first + r * c.row + col * c.col;
            // SAFETY: in bounds by the assertions.
            unsafe {
                let x = job.x.as_ptr().add(r * c.source_row + col);
                let to = result.as_mut_ptr().add(pixel * job.width + job.first);
                tile::<V, P, B>(
                    x,
                    &c.source,
                    job.w.as_ptr(),
                    job.bias.as_ptr(),
                    (to, c.col * job.width),
                );
            }
        }
    }
}

/// `P` pixels by `B` blocks, all taps.
///
/// # Safety
/// As [`Lanes`]; `x` is valid at each tap for `P` elements, `w` for `B` blocks per tap, `bias` for
/// `B` blocks, `to` for `B` blocks at each of `P` pixels.
#[inline(always)]
unsafe fn tile<V: Lanes, const P: usize, const B: usize>(
    x: *const f32,
    taps: &[usize],
    mut w: *const f32,
    bias: *const f32,
    (to, pixel): (*mut f32, usize),
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = [[V::zero(); B]; P];
        for a in &mut acc {
            for (b, a) in a.iter_mut().enumerate() {
                *a = V::load(bias.add(b * V::LEN));
            }
        }
        for &tap in taps {
            let mut weights = [V::zero(); B];
            for (b, weight) in weights.iter_mut().enumerate() {
                *weight = V::load(w.add(b * V::LEN));
            }
            w = w.add(B * V::LEN);
            let x = x.add(tap);
            for (p, a) in acc.iter_mut().enumerate() {
                let x = V::splat(*x.add(p));
                for (a, weight) in a.iter_mut().zip(weights) {
                    *a = a.fma(x, weight);
                }
            }
        }
        for (p, a) in acc.iter().enumerate() {
            for (b, a) in a.iter().enumerate() {
                a.store(to.add(p * pixel + b * V::LEN));
            }
        }
    }
}
