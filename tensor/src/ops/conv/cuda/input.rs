//! The gradient of the input where windows are apart: a product of matrices, and then for each pixel
//! the sum of what the windows that cover it hold for it.

use super::super::geometry::Geometry;
use super::parts::{self, Images, LIMIT, Piece};
use super::{KERNELS, Sum, by_group, int, longs, lower};
use crate::cuda::{Arg, Gemm, Grid, Issue, Matrix};
use crate::{Result, Tensor};

/// The gradient of the input where windows are apart: the product of weights and gradients first, as
/// floats, then for each pixel the sum of what its windows hold for it.
pub(super) fn strided(
    lane: &mut Issue,
    g: &Geometry,
    sum: &Sum,
    dy: &Tensor,
    w: &Tensor,
    dx: &mut Tensor,
) -> Result<()> {
    let (dtype, wide, taps) = (dx.dtype(), dx.dtype().compute(), g.taps());
    let (pixels, outputs) = (g.in_plane(), g.out_plane());
    // The weights of a group as they lie in the forward operation: its rows are output channels.
    let forward = Sum {
        groups: g.groups,
        rows: g.cog(),
        depth: g.cig(),
        sides: parts::to_inputs(g),
        weights: parts::by_output(g, w),
    };
    let from = Images::new(lane, dy);
    // Channels of a group, and images, of one piece. Neither is empty: the result has elements, and windows have taps and
    // outputs.
    let channel = taps * outputs * wide.size();
    let channels = (LIMIT / channel).clamp(1, g.cig());
    let image = channel * g.ci;
    let images = (LIMIT / image).clamp(1, g.n);
    let whole = image <= LIMIT;
    let columns = match whole {
        true => image * images,
        false => channel * channels,
    };
    let columns = lane.scratch(columns)?;
    let gradients = parts::identity(g.out);
    let copied = !from.is_matrix();
    let padded = outputs.next_multiple_of(16 / dtype.size());
    let copy = match copied {
        true => Some(lane.scratch(g.co * images * padded * dtype.size())?),
        false => None,
    };
    let weights = forward.matrices(lane, w)?;
    forward.pack(lane, &weights, dtype)?;
    let k = g.cig() * taps;
    let a = Matrix::new(weights.at, [1, k], 0);
    for first in (0..g.n).step_by(images) {
        let count = images.min(g.n - first);
        let (b, b_apart) = match copy {
            Some(copy) => {
                let piece = Piece {
                    image: first,
                    images: count,
                    pixel: 0,
                    pixels: outputs,
                    padded,
                };
                lower(lane, &from, &gradients, g.co, &piece, copy, dtype)?;
                let row = count * padded;
                (Matrix::new(copy, [row, 1], 0), [padded, g.cog() * row])
            }
            None => {
                let [image, row, _, _] = from.strides;
                let b = Matrix::new(from.from(first), [row, 1], 0);
                (b, [image, g.cog() * row])
            }
        };
        let c = Matrix::dense(columns, k, outputs);
        let product = |m, a, b, c| Gemm {
            result: wide,
            ..Gemm::new([m, outputs, g.cog()], dtype, [a, b, c])
        };
        if whole {
            let apart = [
                [0, g.cog() * k],
                b_apart,
                [g.ci * taps * outputs, k * outputs],
            ];
            by_group(lane, &product(k, a, b, c), apart, [count, g.groups])?;
            let at = first * g.ci * pixels;
            raise(lane, sum, columns, dx, at, [count, g.ci])?;
            continue;
        }
        // One image has more than fits: some channels at a time.
        for group in 0..g.groups {
            let b = b.further(group * b_apart[1], dtype);
            for channel in (0..g.cig()).step_by(channels) {
                let some = channels.min(g.cig() - channel);
                let a = a.further(group * g.cog() * k + channel * taps, dtype);
                lane.gemm(&product(some * taps, a, b, c))?;
                let at = (first * g.ci + group * g.cig() + channel) * pixels;
                raise(lane, sum, columns, dx, at, [1, some])?;
            }
        }
    }
    Ok(())
}

/// Sums the columns of some images and channels of `dx`, from its element `at` on.
fn raise(
    lane: &mut Issue,
    sum: &Sum,
    columns: Arg<'_>,
    dx: &Tensor,
    at: usize,
    [images, channels]: [usize; 2],
) -> Result<()> {
    let n = images * channels * sum.pixels();
    let to = lane.address(dx).bits() + (at * dx.dtype().size()) as u64;
    let args = [
        columns,
        longs(&sum.sides[0]),
        longs(&sum.sides[1]),
        Arg::Address(to),
        int(n),
        int(channels),
        int(sum.groups * sum.rows * sum.pixels()),
    ];
    lane.launch(&KERNELS, &[dx.dtype()], "raise", Grid::over(n), &args)
}
