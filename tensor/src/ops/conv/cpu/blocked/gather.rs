//! Forward pass and input gradient: both gather, for each pixel of the result, the channels of
//! the source at a list of taps.
//!
//! A lane is a channel of the result. A register tile holds a run of pixels of one row for a few
//! blocks of channels; for each tap it reads the tap's weights for these channels, and one scalar
//! of the source per pixel. Zeros around the source's planes make all pixels alike, and the
//! column order of [`Padded`] makes all strides alike.
//!
//! Where rows are short, a tile takes the same row of several images, so that it still fills the
//! registers. Where three taps of a row stand side by side, each scalar is read once for the
//! three. Finished rows leave for their planes while they are in the first-level cache, and the
//! stores drain behind the next rows' arithmetic.
//!
//! The gradient of a strided convolution splits its result into classes of pixels, by their
//! remainders modulo the stride: each class has its own taps, and no product with zero is made.
#![allow(unsafe_code)]

use super::lanes::{Lanes, tiles};
use super::pack::{end_of, planes, with_scratch};
use super::plan::{Class, Plan};
use super::tile::{tile, tile_of_runs};
use crate::cpu::pieces::parallel_pieces;
use crate::cpu::prefetch::Ahead;
use crate::cpu::scratch::{Buffer, NoMemory, Outcome};
use crate::cpu::share::Shared;

/// Elements of finished rows that wait for their way to the planes: 8 KiB.
const WAITING: usize = 1 << 11;

/// Computes the pass of a plan.
///
/// # Safety
/// The processor has the features of `V`.
pub(super) unsafe fn run<V: Lanes>(
    plan: &Plan,
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
) -> Result<(), NoMemory> {
    let width = plan.to.next_multiple_of(V::LANES);
    let taps: usize = plan.classes.iter().map(|c| c.source.len()).sum();
    let pixels = plan.size[0] * plan.size[1];
    let macs = (plan.to * pixels).saturating_mul(taps) / plan.classes.len().max(1);
    let out = Shared::new(out);
    with_scratch(|[packed, biases]: &mut [Buffer; 2]| {
        let packed = packed.slice(plan.groups * taps * width)?;
        let biases = biases.slice(plan.groups * width)?;
        // SAFETY: the caller's promise.
        unsafe { V::run(|| pack_weights::<V>(plan, w, packed)) };
        biases.fill(0.0);
        for (to, from) in biases
            .chunks_mut(width)
            .zip(bias.unwrap_or(&[]).chunks(plan.to))
        {
            to[..plan.to].copy_from_slice(from);
        }
        let (packed, biases) = (&*packed, &*biases);
        let batch = plan
            .classes
            .iter()
            .map(|c| together::<V>(plan, c))
            .max()
            .unwrap_or(1);
        // Batches never straddle groups of channels: groups are outermost.
        let batches = plan.n.div_ceil(batch);
        let grain = ((1 << 18) / macs.saturating_mul(batch).max(1)).max(1);
        let outcome = Outcome::default();
        parallel_pieces(0..batches * plan.groups, grain, |_, range| {
            let part = |[padded, result]: &mut [Buffer; 2]| {
                let lens = (plan.from * plan.source.plane(), pixels * width);
                let source = padded.slice(batch * lens.0)?;
                let result = result.slice(batch * lens.1)?;
                source.fill(0.0);
                for at in range {
                    let (group, first) = (at / batches, at % batches * batch);
                    let images = first..(first + batch).min(plan.n);
                    let job = Job {
                        plan,
                        lens,
                        images: batch,
                        packed: &packed[group * taps * width..][..taps * width],
                        bias: &biases[group * width..][..width],
                    };
                    // SAFETY: the images of a group are handed out once; the features are the
                    // caller's promise.
                    unsafe {
                        V::run(
                            #[inline(always)]
                            || {
                                job.batch::<V>(
                                    (group, images),
                                    x,
                                    (&mut *source, &mut *result),
                                    &out,
                                )
                            },
                        );
                    }
                }
                Ok(())
            };
            outcome.of(|| with_scratch(part));
        });
        outcome.result()
    })
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
                let lanes = blocks * V::LANES;
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

/// One batch of images of one group.
struct Job<'a> {
    plan: &'a Plan,
    /// Elements of one image in padded scratch and in the result.
    lens: (usize, usize),
    images: usize,
    packed: &'a [f32],
    bias: &'a [f32],
}

/// One tile of channel blocks over some rows of a class.
struct Tile<'a> {
    class: &'a Class,
    w: &'a [f32],
    bias: &'a [f32],
    /// The source of the next batch, a bit of it with each row.
    ahead: &'a Ahead<'a, f32>,
    /// First channel, and channels of the result.
    first: usize,
    width: usize,
    rows: std::ops::Range<usize>,
}

impl Job<'_> {
    /// Pads the source, computes the result row by row and writes its planes.
    ///
    /// # Safety
    /// As [`Lanes`]; nobody else writes these images.
    #[inline(always)]
    unsafe fn batch<V: Lanes>(
        &self,
        (group, images): (usize, std::ops::Range<usize>),
        x: &[f32],
        (source, result): (&mut [f32], &mut [f32]),
        out: &Shared<'_, f32>,
    ) {
        let (plan, width) = (self.plan, self.bias.len());
        let [rows, cols] = plan.size;
        let x_len = plan.source.size[0] * plan.source.size[1] * plan.from;
        let image = |n: usize| &x[(n * plan.groups + group) * x_len..][..x_len];
        let direct = plan.source.is_identity() && self.images == 1;
        for (i, n) in images
            .clone()
            .enumerate()
            .take(if direct { 0 } else { self.images })
        {
            // SAFETY: the caller's promise, here and below.
            unsafe {
                plan.source
                    .fill::<V>(image(n), plan.from, &mut source[i * self.lens.0..])
            };
        }
        let source = if direct {
            image(images.start)
        } else {
            &*source
        };
        let step = plan.classes.iter().map(|c| c.step[0]).max().unwrap_or(1);
        let block = (WAITING / (cols * width * self.images))
            .max(1)
            .next_multiple_of(step);
        let next = if plan.groups == 1 {
            images.end..(images.end + images.len()).min(plan.n)
        } else {
            0..0
        };
        let ahead = &Ahead::new(&x[next.start * x_len..next.end * x_len], self.steps::<V>());
        let mut sent = 0;
        for start in (0..rows).step_by(block) {
            let end = (start + block).min(rows);
            let mut at = 0;
            for class in &plan.classes {
                for (first, blocks) in tiles::<V>(plan.to) {
                    let len = class.source.len() * blocks * V::LANES;
                    let tile = Tile {
                        class,
                        w: &self.packed[at..at + len],
                        bias: &self.bias[first..],
                        ahead,
                        first,
                        width,
                        rows: class.rows_before(start)..class.rows_before(end),
                    };
                    at += len;
                    // SAFETY: the caller's promise.
                    unsafe { self.sweep::<V>(&tile, blocks, source, result) };
                }
            }
            // All whole blocks of pixels so far; at the end, the last ones once more.
            let ready = if end == rows {
                end * cols
            } else {
                end * cols / V::LANES * V::LANES
            };
            for (i, n) in images.clone().enumerate() {
                let len = plan.to * rows * cols;
                let to = (n * plan.groups + group) * len;
                // SAFETY: nobody else writes this image, by the caller's promise.
                unsafe {
                    let to = out.range(to..to + len);
                    let from = &result[i * self.lens.1..][..self.lens.1];
                    planes::<V>(from, width, to, (plan.to, rows * cols), sent..ready);
                }
            }
            sent = ready;
        }
    }

    /// How often a batch visits a row of a class with a tile of channels.
    fn steps<V: Lanes>(&self) -> usize {
        let rows: usize = self.plan.classes.iter().map(|c| c.size[0]).sum();
        rows * tiles::<V>(self.plan.to).count()
    }

    /// The rows of a tile, `S` images by `P` pixels by `B` blocks at a time, taps in runs of `K`.
    ///
    /// # Safety
    /// As [`Lanes`]; `P` is at most the columns of the class or 1.
    #[inline(always)]
    unsafe fn rows<V: Lanes, const S: usize, const P: usize, const B: usize, const K: usize>(
        &self,
        t: &Tile<'_>,
        x: &[f32],
        result: &mut [f32],
    ) {
        let c = t.class;
        if t.rows.is_empty() || c.size[1] == 0 {
            return;
        }
        let cols = self.plan.size[1];
        let pixel = |row: usize, col: usize| {
            (c.first[0] + row * c.step[0]) * cols + c.first[1] + col * c.step[1]
        };
        let ([down, across], [row, col]) = (c.step, [t.rows.end - 1, c.size[1] - 1]);
        let last = end_of(c.first[0], [(row, down)]).zip(end_of(c.first[1], [(col, across)]));
        let last = last.and_then(|(row, col)| end_of(col, [(row, cols)]));
        let tap_end = c.source.iter().max().map(|tap| {
            let end = end_of(*tap, [(c.size[1], 1), (row, c.source_row)]);
            end.unwrap_or(usize::MAX)
        });
        assert!(self.images.is_multiple_of(S) && last.is_some());
        let within = |end: Option<usize>, len: usize| end.is_some_and(|end| end <= len);
        assert!(tap_end.is_none_or(|end| end <= self.lens.0));
        assert!(within(end_of(0, [(self.images, self.lens.0)]), x.len()));
        let result_end = last.and_then(|last| end_of(t.first + B * V::LANES, [(last, t.width)]));
        assert!(within(result_end, self.lens.1));
        assert!(within(
            end_of(0, [(self.images, self.lens.1)]),
            result.len()
        ));
        assert!(t.w.len() == c.source.len() * B * V::LANES && c.source.len().is_multiple_of(K));
        assert!(t.bias.len() >= B * V::LANES);
        for row in t.rows.clone() {
            t.ahead.step();
            for col in (0..c.size[1]).step_by(P) {
                // The last tile of a row overlaps the one before, and computes the same bits.
                let col = col.min(c.size[1] - P);
                for image in (0..self.images).step_by(S) {
                    let from = image * self.lens.0 + row * c.source_row + col;
                    let to = image * self.lens.1 + pixel(row, col) * t.width + t.first;
                    // SAFETY: in bounds by the assertions.
                    unsafe {
                        let from = (x.as_ptr().add(from), self.lens.0);
                        let to = (
                            result.as_mut_ptr().add(to),
                            self.lens.1,
                            c.step[1] * t.width,
                        );
                        let (w, bias) = (t.w.as_ptr(), t.bias.as_ptr());
                        if B == 1 && K == 3 {
                            tile_of_runs::<V, S, P>(from, &c.source, w, bias, to);
                        } else {
                            tile::<V, S, P, B>(from, &c.source, w, bias, to);
                        }
                    }
                }
            }
        }
    }
}

/// The shapes of register tiles, as (images, pixels), for whether there are 32 registers, a number
/// of blocks of channels, and the class's runs of taps, of which the tile takes so many together: as
/// many accumulators as the registers hold. The last shape serves every row.
macro_rules! shapes {
    ($($wide:literal $blocks:literal $run:tt $taps:literal: $(($s:literal, $p:literal))*;)*) => {
        fn shapes_of<V: Lanes>(blocks: usize, run: usize) -> &'static [(usize, usize)] {
            match (V::ACCUMULATORS >= 28, blocks, run) {
                $(($wide, $blocks, $run) => &[$(($s, $p)),*],)*
                _ => unreachable!("a tile has one or two blocks"),
            }
        }

        impl Job<'_> {
            /// All rows of a tile, with the shape that suits the class.
            ///
            /// # Safety
            /// As [`Lanes`].
            #[inline(always)]
            unsafe fn sweep<V: Lanes>(
                &self,
                t: &Tile<'_>,
                blocks: usize,
                x: &[f32],
                result: &mut [f32],
            ) {
                let shape = shape_of::<V>(t.class, blocks);
                // SAFETY: the caller's promise; the shape fits a row.
                unsafe {
                    match (V::ACCUMULATORS >= 28, blocks, t.class.run, shape) {
                        $($(($wide, $blocks, $run, ($s, $p)) => {
                            self.rows::<V, $s, $p, $blocks, $taps>(t, x, result)
                        })*)*
                        _ => unreachable!("the shape comes from the table"),
                    }
                }
            }
        }
    };
}
shapes! {
    // Side by side in threes: beside 24 sums, three weights and a window of three scalars.
    true 1 3 3: (1, 24) (1, 20) (1, 16) (1, 14) (1, 10) (2, 8) (2, 7) (4, 5) (4, 4) (4, 2) (4, 1);
    true 1 _ 1: (1, 28) (1, 20) (1, 16) (2, 14) (2, 10) (2, 8) (4, 7) (4, 5) (4, 4) (4, 2) (4, 1);
    true 2 _ 1: (1, 14) (1, 12) (1, 10) (1, 8) (2, 7) (2, 5) (2, 4) (4, 3) (4, 2) (4, 1);
    false 1 _ 1: (1, 12) (1, 8) (2, 6) (2, 4) (4, 2) (4, 1);
    false 2 _ 1: (1, 6) (1, 4) (2, 3) (2, 2) (4, 1);
}

/// Of the shapes that fit a row, the one that computes the fewest pixels twice; then the widest.
fn shape_of<V: Lanes>(class: &Class, blocks: usize) -> (usize, usize) {
    let (shapes, cols) = (shapes_of::<V>(blocks, class.run), class.size[1]);
    let fits = (0..shapes.len()).filter(|&i| shapes[i].1 <= cols);
    let best = fits.min_by_key(|&i| (cols.div_ceil(shapes[i].1) * shapes[i].1, i));
    shapes[best.unwrap_or(shapes.len() - 1)]
}

/// How many images the tiles of a class take together.
fn together<V: Lanes>(plan: &Plan, class: &Class) -> usize {
    let images = tiles::<V>(plan.to).map(|(_, blocks)| shape_of::<V>(class, blocks).0);
    images.max().unwrap_or(1)
}
