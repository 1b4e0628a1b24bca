//! Weight gradient: for each weight, a sum over all pixels of all images.
//!
//! A lane is an output channel, so the output's gradient is brought to channels innermost. A
//! register tile holds the weights of a few blocks of channels at a few rows of taps; for each
//! pixel it reads the blocks of the gradient once, and one scalar of the padded input per tap.
//!
//! The batch is cut into chunks by its size alone, each with its own sums, which are added in
//! order: so the result does not depend on the number of threads.
#![allow(unsafe_code)]

use super::super::super::geometry::Geometry;
use super::lanes::{Lanes, tiles};
use super::pack::{Padded, channels_last, end_of, with_scratch};
use crate::cpu::pieces::parallel_pieces;
use crate::cpu::prefetch::Ahead;
use crate::cpu::scratch::{Buffer, NoMemory, Outcome, room};
use crate::cpu::share::Shared;

/// Images of a chunk, at least: enough work to be worth its own sums.
const CHUNK: usize = 8;
/// Chunks of a batch, at most.
const CHUNKS: usize = 16;
/// Elements of scratch that the images between two visits of a register tile may take: 512 KiB.
const CACHED: usize = 1 << 17;

/// What is summed over what.
struct Plan {
    source: Padded,
    /// Where each row of taps starts in a padded image: (channel, kernel row) for kernels three
    /// wide, single taps otherwise. Rounded up to whole tiles by repeating the first.
    rows: Vec<usize>,
    /// Neighbouring taps of a row: 3 or 1.
    run: usize,
    /// Source elements from output row to output row, and from column to column.
    steps: [usize; 2],
    out: [usize; 2],
    /// Output channels of a group, rounded up to whole blocks.
    width: usize,
}

/// Rows of taps are rounded up to a multiple of this, which every tile divides.
const ROWS: usize = 8;

impl Plan {
    fn new(g: &Geometry, lanes: usize) -> Result<Plan, NoMemory> {
        let source = Padded::input(g, 1);
        let run = if g.ker[1] == 3 && g.dil[1] == 1 { 3 } else { 1 };
        let count = g.cig() * g.ker[0] * g.ker[1].div_ceil(run);
        let mut rows = room(count.next_multiple_of(ROWS))?;
        for c in 0..g.cig() {
            for u in 0..g.ker[0] {
                for v in (0..g.ker[1]).step_by(run) {
                    rows.push(c * source.plane() + source.at(u * g.dil[0], v * g.dil[1]));
                }
            }
        }
        rows.resize(rows.len().next_multiple_of(ROWS), 0);
        Ok(Plan {
            source,
            rows,
            run,
            steps: [g.stride[0] * source.pitch(), g.stride[1]],
            out: g.out,
            width: g.cog().next_multiple_of(lanes),
        })
    }

    /// How often a batch visits an image with a tile: at least this.
    fn visits<V: Lanes>(&self) -> usize {
        self.rows.len() / ROWS * tiles::<V>(self.width).count()
    }

    /// Elements of the sums of one group.
    fn sums(&self) -> usize {
        self.rows.len() * self.run * self.width
    }
}

/// The gradient with respect to `w`; with `add`, onto what is there.
///
/// # Safety
/// The processor has the features of `V`.
pub(super) unsafe fn run<V: Lanes>(
    g: &Geometry,
    x: &[f32],
    dy: &[f32],
    dw: &mut [f32],
    add: bool,
) -> Result<(), NoMemory> {
    let plan = Plan::new(g, V::LANES)?;
    let (cig, cog) = (g.cig(), g.cog());
    let (x_all, dy_all) = (x, dy);
    let (in_group, out_group) = (cig * g.in_plane(), cog * g.out_plane());
    // Many large sums would cost more memory than their additions save time.
    let most = ((1 << 24) / (plan.sums() * g.groups).max(1)).clamp(1, CHUNKS);
    let chunk = g.n.div_ceil(most).max(CHUNK);
    let items = g.n.div_ceil(chunk) * g.groups;
    with_scratch(|[sums]: &mut [Buffer; 1]| {
        let sums = sums.slice(items * plan.sums())?;
        let shared = Shared::new(sums);
        let outcome = Outcome::default();
        parallel_pieces(0..items, 1, |_, range| {
            let part = |[padded, last]: &mut [Buffer; 2]| {
                let (x_len, dy_len) = (cig * plan.source.plane(), g.out_plane() * plan.width);
                let batch = (CACHED / (x_len + dy_len).max(1)).clamp(1, chunk);
                let padded = padded.slice(batch * x_len)?;
                let last = last.slice(batch * dy_len)?;
                padded.fill(0.0);
                for item in range {
                    let (chunk_at, group) = (item / g.groups * chunk, item % g.groups);
                    let end = (chunk_at + chunk).min(g.n);
                    // SAFETY: each item is handed out once and has sums of its own.
                    let sums =
                        unsafe { shared.range(item * plan.sums()..(item + 1) * plan.sums()) };
                    sums.fill(0.0);
                    for first in (chunk_at..end).step_by(batch) {
                        let images = first..(first + batch).min(end);
                        // SAFETY: the features are the caller's promise.
                        unsafe {
                            V::run(
                                #[inline(always)]
                                || {
                                    for (i, n) in images.clone().enumerate() {
                                        let at = n * g.groups + group;
                                        let x = &x[at * in_group..][..in_group];
                                        let dy = &dy[at * out_group..][..out_group];
                                        plan.source.fill::<V>(x, cig, &mut padded[i * x_len..]);
                                        let last = &mut last[i * dy_len..][..dy_len];
                                        let shape = (cog, g.out_plane());
                                        channels_last::<V>(dy, shape, last, plan.width);
                                    }
                                    let more = if g.groups == 1 {
                                        (images.end + batch).min(end)
                                    } else {
                                        images.end
                                    };
                                    let next = images.end..more;
                                    let steps = plan.visits::<V>() * images.len();
                                    let ahead = [
                                        Ahead::new(
                                            &x_all[next.start * in_group..next.end * in_group],
                                            steps,
                                        ),
                                        Ahead::new(
                                            &dy_all[next.start * out_group..next.end * out_group],
                                            steps,
                                        ),
                                    ];
                                    let (x, dy) = ((&*padded, x_len), (&*last, dy_len));
                                    add_images::<V>(&plan, images.len(), x, dy, &ahead, sums);
                                },
                            );
                        }
                    }
                }
                Ok(())
            };
            outcome.of(|| with_scratch(part));
        });
        outcome.result()?;
        let sums = &mut *sums;
        // SAFETY: the features are the caller's promise.
        unsafe {
            V::run(
                #[inline(always)]
                || {
                    let (total, others) = sums.split_at_mut(plan.sums() * g.groups);
                    for chunk in others.chunks_exact(total.len().max(1)) {
                        total.iter_mut().zip(chunk).for_each(|(t, c)| *t += c);
                    }
                    let shape = (cog, cig * g.taps());
                    let groups = total.chunks_exact(plan.sums().max(1));
                    for (sums, dw) in groups.zip(dw.chunks_exact_mut(cog * cig * g.taps())) {
                        match add {
                            true => unpack::<V>(&plan, sums, dw, shape, |old, sum| old + sum),
                            false => unpack::<V>(&plan, sums, dw, shape, |_, sum| sum),
                        }
                    }
                },
            );
        }
        Ok(())
    })
}

/// Adds the products of `images` images to the sums.
///
/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn add_images<V: Lanes>(
    plan: &Plan,
    images: usize,
    (x, x_len): (&[f32], usize),
    (dy, dy_len): (&[f32], usize),
    ahead: &[Ahead<'_, f32>; 2],
    sums: &mut [f32],
) {
    let ([oh, ow], [down, right]) = (plan.out, plan.steps);
    let first = plan.rows.iter().max().copied().unwrap_or(0);
    let last = [(images.max(1) - 1, x_len), (oh - 1, down), (ow - 1, right)];
    assert!(images == 0 || end_of(first + plan.run, last).is_some_and(|end| end <= x.len()));
    assert!(end_of(0, [(images, dy_len)]).is_some_and(|end| end <= dy.len()));
    let pixels = end_of(0, [(oh, ow)]);
    assert!(pixels.is_some_and(|n| end_of(0, [(n, plan.width)]).is_some_and(|end| end <= dy_len)));
    assert!(sums.len() == plan.sums());
    for (first, blocks) in tiles::<V>(plan.width) {
        let sums = &mut sums[plan.rows.len() * plan.run * first..];
        let job = Job {
            plan,
            images,
            x: x.as_ptr(),
            x_len,
            dy: dy[first..].as_ptr(),
            dy_len,
            ahead,
        };
        // SAFETY: the assertions bound what the tiles read: every row of taps, at every pixel of
        // every image; `sums` starts at this tile's.
        unsafe {
            match (plan.run, blocks, V::ACCUMULATORS >= 28) {
                (3, 2, true) => job.rows::<V, 4, 3, 2>(sums),
                (3, 1, true) => job.rows::<V, 8, 3, 1>(sums),
                (1, 2, true) => job.rows::<V, 8, 1, 2>(sums),
                (1, 1, true) => job.rows::<V, 8, 1, 1>(sums),
                (3, 2, false) => job.rows::<V, 2, 3, 2>(sums),
                (3, 1, false) => job.rows::<V, 4, 3, 1>(sums),
                (_, 2, _) => job.rows::<V, 4, 1, 2>(sums),
                _ => job.rows::<V, 8, 1, 1>(sums),
            }
        }
    }
}

/// One tile of channel blocks over some images.
struct Job<'a, 'b> {
    plan: &'a Plan,
    images: usize,
    x: *const f32,
    x_len: usize,
    dy: *const f32,
    dy_len: usize,
    /// Input and gradient of the next batch, a bit of it with each image.
    ahead: &'a [Ahead<'b, f32>; 2],
}

impl Job<'_, '_> {
    /// All rows of taps, `R` at a time.
    ///
    /// # Safety
    /// As [`tile`](Job::tile), for every row.
    #[inline(always)]
    unsafe fn rows<V: Lanes, const R: usize, const K: usize, const B: usize>(
        &self,
        sums: &mut [f32],
    ) {
        const { assert!(ROWS.is_multiple_of(R)) };
        let tiles = sums.chunks_exact_mut(R * K * B * V::LANES);
        for (rows, sums) in self.plan.rows.chunks_exact(R).zip(tiles) {
            // SAFETY: the caller's promise.
            unsafe { self.tile::<V, R, K, B>(rows, sums.as_mut_ptr()) };
        }
    }

    /// `R` rows of `K` taps by `B` blocks, over all pixels of all images.
    ///
    /// # Safety
    /// As [`Lanes`]; `rows` are `R` starts of rows, valid at every pixel of every image for `K`
    /// taps, `dy` for `B` blocks at every pixel, `sums` for the tile.
    #[allow(clippy::needless_range_loop)] // plain loops unroll; iterators keep the sums in memory
    #[inline(always)]
    unsafe fn tile<V: Lanes, const R: usize, const K: usize, const B: usize>(
        &self,
        rows: &[usize],
        sums: *mut f32,
    ) {
        let ([oh, ow], [down, right], width) = (self.plan.out, self.plan.steps, self.plan.width);
        // SAFETY: the caller's promise.
        unsafe {
            let mut acc = [[[V::splat(0.0); B]; K]; R];
            let slot = |r: usize, k: usize, b: usize| sums.add(((r * K + k) * B + b) * V::LANES);
            for r in 0..R {
                for k in 0..K {
                    for b in 0..B {
                        acc[r][k][b] = V::load(slot(r, k, b));
                    }
                }
            }
            for image in 0..self.images {
                self.ahead.iter().for_each(Ahead::step);
                let mut dy = self.dy.add(image * self.dy_len);
                for i in 0..oh {
                    let start = self.x.add(image * self.x_len + i * down);
                    let x: [*const f32; R] = std::array::from_fn(|r| start.add(rows[r]));
                    let mut at = 0;
                    // Two pixels at a time where taps overlap: four scalars a row instead of six.
                    let pairs = if K == 3 && B == 1 && right == 1 {
                        ow / 2
                    } else {
                        0
                    };
                    for _ in 0..pairs {
                        let grad = [V::load(dy), V::load(dy.add(width))];
                        dy = dy.add(2 * width);
                        for r in 0..R {
                            let x = x[r].add(at);
                            let (x0, x1) = (V::splat(*x), V::splat(*x.add(1)));
                            let (x2, x3) = (V::splat(*x.add(2)), V::splat(*x.add(3)));
                            let [a0, a1, a2] = [acc[r][0][0], acc[r][1 % K][0], acc[r][2 % K][0]];
                            acc[r][0][0] = V::fma(x1, grad[1], V::fma(x0, grad[0], a0));
                            acc[r][1 % K][0] = V::fma(x2, grad[1], V::fma(x1, grad[0], a1));
                            acc[r][2 % K][0] = V::fma(x3, grad[1], V::fma(x2, grad[0], a2));
                        }
                        at += 2;
                    }
                    for _ in 2 * pairs..ow {
                        let mut grad = [V::splat(0.0); B];
                        for b in 0..B {
                            grad[b] = V::load(dy.add(b * V::LANES));
                        }
                        dy = dy.add(width);
                        for r in 0..R {
                            for k in 0..K {
                                let x = V::splat(*x[r].add(at + k));
                                for b in 0..B {
                                    acc[r][k][b] = V::fma(x, grad[b], acc[r][k][b]);
                                }
                            }
                        }
                        at += right;
                    }
                }
            }
            for r in 0..R {
                for k in 0..K {
                    for b in 0..B {
                        V::store(slot(r, k, b), acc[r][k][b]);
                    }
                }
            }
        }
    }
}

/// `dw[channel][tap]` from the sums of a group and what was there.
#[inline(always)]
fn unpack<V: Lanes>(
    plan: &Plan,
    sums: &[f32],
    dw: &mut [f32],
    (channels, taps): (usize, usize),
    new: impl Fn(f32, f32) -> f32,
) {
    for (first, blocks) in tiles::<V>(plan.width) {
        let lanes = blocks * V::LANES;
        let sums = &sums[plan.rows.len() * plan.run * first..];
        for (l, dw) in dw[first * taps..]
            .chunks_exact_mut(taps)
            .take(channels.min(first + lanes) - first)
            .enumerate()
        {
            for (tap, v) in dw.iter_mut().enumerate() {
                *v = new(*v, sums[tap * lanes + l]);
            }
        }
    }
}
