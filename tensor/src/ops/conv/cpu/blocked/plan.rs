//! What a gathering pass reads: the padded source, and for each class of the result's pixels the
//! taps and their weights.

use super::super::super::geometry::Geometry;
use super::pack::Padded;
use crate::cpu::scratch::{NoMemory, room};

/// One gathering pass: who reads what.
pub(super) struct Plan {
    pub n: usize,
    pub groups: usize,
    /// Channels of one group in the source and in the result.
    pub from: usize,
    pub to: usize,
    /// Rows and columns of the result.
    pub size: [usize; 2],
    pub source: Padded,
    /// Where channel `l` of the result stands in the weights of a group: `l · lane`.
    pub lane: usize,
    /// Elements of the weights of a group.
    pub weights: usize,
    pub classes: Vec<Class>,
}

/// Pixels of the result that read the same taps: every `step`-th in each direction.
pub(super) struct Class {
    /// For each tap, where it reads in the source relative to the pixel's base, and where its
    /// weight stands for channel 0 of the result.
    pub source: Vec<usize>,
    pub weight: Vec<usize>,
    /// Neighbouring taps in runs of this length: 3 or 1.
    pub run: usize,
    /// Rows and columns of this class.
    pub size: [usize; 2],
    /// Source elements from row to row.
    pub source_row: usize,
    /// The first pixel of the result, and the distance to the next.
    pub first: [usize; 2],
    pub step: [usize; 2],
}

impl Class {
    /// The rows of this class among the first `rows` of the result.
    pub(super) fn rows_before(&self, rows: usize) -> usize {
        rows.saturating_sub(self.first[0])
            .div_ceil(self.step[0])
            .min(self.size[0])
    }
}

/// 3 where the offsets come in runs of three neighbours, else 1.
fn run_of(offsets: &[usize]) -> usize {
    let run = |t: &[usize]| t[1] == t[0] + 1 && t[2] == t[0] + 2;
    if offsets.len().is_multiple_of(3) && offsets.chunks_exact(3).all(run) {
        3
    } else {
        1
    }
}

/// The taps that the pixels `first + stride·a` of the input meet along dimension `d`, each at
/// output `a + shift`: as `(tap, shift)`, backwards, so that neighbours ascend.
fn taps(g: &Geometry, d: usize, first: usize) -> impl Iterator<Item = (usize, isize)> {
    let (s, pad, dil) = (g.stride[d] as isize, g.pad[d], g.dil[d]);
    (0..g.ker[d])
        .rev()
        .map(move |k| (k, (first + pad) as isize - (k * dil) as isize))
        .filter(move |(_, at)| at.rem_euclid(s) == 0)
        .map(move |(k, at)| (k, at / s))
}

/// How many of the pixels `first + stride·a` the input has along dimension `d`.
fn count(g: &Geometry, d: usize, first: usize) -> usize {
    g.inp[d].saturating_sub(first).div_ceil(g.stride[d])
}

/// Classes of pixels beyond which an input gradient is not cut into them.
const CLASSES: usize = 1 << 10;

/// Whether the input gradient has few enough classes of pixels that their lists cost nothing beside
/// the pixels.
pub(super) fn few_classes(g: &Geometry) -> bool {
    let [rows, cols] = [0, 1].map(|d| g.stride[d].min(g.inp[d]));
    rows.saturating_mul(cols) <= CLASSES
}

impl Padded {
    /// The padded input, its columns in `phases`.
    pub(super) fn input(g: &Geometry, phases: usize) -> Padded {
        let reach = |d: usize| (g.out[d] - 1) * g.stride[d] + g.dil[d] * (g.ker[d] - 1) + 1;
        Padded {
            size: g.inp,
            before: g.pad,
            rows: reach(0),
            cols: reach(1),
            phases,
        }
    }

    /// The padded gradient of the output.
    pub(super) fn output_grad(g: &Geometry) -> Padded {
        let (mut before, mut reach) = ([0; 2], [0; 2]);
        for d in 0..2 {
            for first in 0..g.stride[d].min(g.inp[d]) {
                for (_, shift) in taps(g, d, first) {
                    before[d] = before[d].max((-shift).max(0) as usize);
                    reach[d] = reach[d].max((count(g, d, first) as isize + shift).max(0) as usize);
                }
            }
        }
        Padded {
            size: g.out,
            before,
            rows: before[0] + reach[0],
            cols: before[1] + reach[1],
            phases: 1,
        }
    }

    /// Whether a padded plane takes no more than some 16 times what the convolution's planes do
    /// themselves: with far more zeros than pixels it costs memory that the arguments do not show,
    /// and the planar kernels skip them. And whether the planes of `channels` channels, of the few
    /// images that a tile takes together, can be addressed: where planes have no pixels, no tensor
    /// shows that they can. (All other scratch is a few times the weights or the result, which are
    /// in memory.)
    pub(super) fn is_modest(&self, g: &Geometry, channels: usize) -> bool {
        let pixels = g.in_plane().saturating_add(g.out_plane());
        let image = channels.checked_mul(self.plane());
        self.plane() <= pixels.saturating_mul(16).saturating_add(1 << 12)
            && image.is_some_and(|len| len <= isize::MAX as usize / size_of::<[f32; 64]>())
    }
}

impl Plan {
    /// The pass of the forward convolution.
    pub(super) fn forward(g: &Geometry) -> Result<Plan, NoMemory> {
        let source = Padded::input(g, g.stride[1]);
        let taps = g.cig() * g.taps();
        let (mut from, mut weight) = (room(taps)?, room(taps)?);
        for c in 0..g.cig() {
            for u in 0..g.ker[0] {
                for v in 0..g.ker[1] {
                    from.push(c * source.plane() + source.at(u * g.dil[0], v * g.dil[1]));
                    weight.push((c * g.ker[0] + u) * g.ker[1] + v);
                }
            }
        }
        let all = Class {
            run: run_of(&from),
            source: from,
            weight,
            size: g.out,
            source_row: g.stride[0] * source.pitch(),
            first: [0, 0],
            step: [1, 1],
        };
        Ok(Plan {
            n: g.n,
            groups: g.groups,
            from: g.cig(),
            to: g.cog(),
            size: g.out,
            source,
            lane: g.cig() * g.taps(),
            weights: g.cog() * g.cig() * g.taps(),
            classes: vec![all],
        })
    }

    /// The pass of the input gradient.
    pub(super) fn input_grad(g: &Geometry) -> Result<Plan, NoMemory> {
        let source = Padded::output_grad(g);
        let before = source.before;
        let mut classes = room(g.stride[0].min(g.inp[0]) * g.stride[1].min(g.inp[1]))?;
        for first_row in 0..g.stride[0].min(g.inp[0]) {
            for first_col in 0..g.stride[1].min(g.inp[1]) {
                let met = taps(g, 0, first_row).count() * taps(g, 1, first_col).count() * g.cog();
                let (mut from, mut weight) = (room(met)?, room(met)?);
                for c in 0..g.cog() {
                    for (u, down) in taps(g, 0, first_row) {
                        for (v, right) in taps(g, 1, first_col) {
                            let row = (before[0] as isize + down) as usize;
                            let col = (before[1] as isize + right) as usize;
                            from.push(c * source.plane() + source.at(row, col));
                            weight.push((c * g.cig() * g.ker[0] + u) * g.ker[1] + v);
                        }
                    }
                }
                classes.push(Class {
                    run: run_of(&from),
                    source: from,
                    weight,
                    size: [count(g, 0, first_row), count(g, 1, first_col)],
                    source_row: source.pitch(),
                    first: [first_row, first_col],
                    step: g.stride,
                });
            }
        }
        Ok(Plan {
            n: g.n,
            groups: g.groups,
            from: g.cog(),
            to: g.cig(),
            size: g.inp,
            source,
            lane: g.taps(),
            weights: g.cog() * g.cig() * g.taps(),
            classes,
        })
    }
}
