//! What a gathering pass reads: the padded source, and for each class of the result's pixels the
//! taps and their weights.

use super::super::super::geometry::Geometry;
use super::pack::Padded;

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

impl Plan {
    /// The pass of the forward convolution.
    pub(super) fn forward(g: &Geometry) -> Plan {
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
            run: run_of(&from),
            source: from,
            weight,
            size: g.out,
            source_row: g.stride[0] * source.pitch(),
            first: [0, 0],
            step: [1, 1],
        };
        Plan {
            n: g.n,
            groups: g.groups,
            from: g.cig(),
            to: g.cog(),
            size: g.out,
            source,
            lane: g.cig() * g.taps(),
            weights: g.cog() * g.cig() * g.taps(),
            classes: vec![all],
        }
    }

    /// The pass of the input gradient.
    pub(super) fn input_grad(g: &Geometry) -> Plan {
        // Pixel `first + stride·a` of the input meets tap `k` at output `a + shift`.
        let taps = |d: usize, first: usize| -> Vec<(usize, isize)> {
            let s = g.stride[d] as isize;
            // Backwards, so that neighbours follow each other in ascending order.
            (0..g.ker[d])
                .rev()
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
                    run: run_of(&from),
                    source: from,
                    weight,
                    size: [count(0, first_row), count(1, first_col)],
                    source_row: source.pitch(),
                    first: [first_row, first_col],
                    step: g.stride,
                });
            }
        }
        Plan {
            n: g.n,
            groups: g.groups,
            from: g.cog(),
            to: g.cig(),
            size: g.inp,
            source,
            lane: g.taps(),
            weights: g.cog() * g.cig() * g.taps(),
            classes,
        }
    }
}
