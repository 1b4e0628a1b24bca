//! The gradient of the weight: one product over all images of a piece or, for groups of few channels,
//! sums over slices of the outputs.

use super::super::geometry::Geometry;
use super::parts::{self, Images, LIMIT};
use super::{KERNELS, fill, int, is_direct, largest, longs, lower};
use crate::cuda::{Arg, Gemm, Grid, Issue, Matrix};
use crate::{Result, Tensor};

/// Taps of a block: `TAPS` of the kernels.
const TAPS: usize = 16;
/// Blocks from which on the card is busy.
const MANY_BLOCKS: usize = 1024;
/// Outputs of a slice of a direct sum, at least.
const SLICE: usize = 8 * 1024;

/// The gradient with respect to `w`; with `add`, onto what is there, in the type of computation.
pub(in super::super) fn weight_grad(
    lane: &mut Issue,
    g: &Geometry,
    x: &Tensor,
    dy: &Tensor,
    dw: &mut Tensor,
    add: bool,
) -> Result<()> {
    if dw.numel() == 0 || g.n == 0 && add {
        return Ok(());
    }
    if g.n == 0 {
        return fill(lane, None, dw);
    }
    if is_direct(g) {
        return direct_weight_grad(lane, g, x, dy, dw, add);
    }
    let (dtype, wide) = (x.dtype(), x.dtype().compute());
    let (sides, gradients) = (parts::to_inputs(g), parts::identity(g.out));
    let (from, grad) = (Images::new(lane, x), Images::new(lane, dy));
    let (rows, k) = (g.ci * g.taps(), g.cig() * g.taps());
    let size = dtype.size();
    let pieces = parts::pieces(g.n, g.out_plane(), rows + g.co, size, LIMIT);
    let most = largest(&pieces);
    let (columns, copy) = (
        lane.scratch(rows * most * size)?,
        lane.scratch(g.co * most * size)?,
    );
    // The sums of several pieces wait as floats.
    let waits = pieces.len() > 1 && dw.dtype() != wide;
    let sums = match waits {
        true => lane.scratch(dw.numel() * wide.size())?,
        false => lane.address(dw),
    };
    for (i, piece) in pieces.iter().enumerate() {
        lower(lane, &from, &sides, rows, piece, columns, dtype)?;
        lower(lane, &grad, &gradients, g.co, piece, copy, dtype)?;
        let row = piece.images * piece.padded;
        let a = Matrix::new(copy, [row, 1], g.cog() * row);
        let b = Matrix::new(columns, [row, 1], k * row).t();
        let c = Matrix::dense(sums, g.cog(), k);
        lane.gemm(&Gemm {
            batch: g.groups,
            result: if waits { wide } else { dw.dtype() },
            add: add || i > 0,
            ..Gemm::new([g.cog(), k, row], dtype, [a, b, c])
        })?;
    }
    match waits {
        true => finish(lane, sums, 1, dw, false),
        false => Ok(()),
    }
}

/// The same for groups of few channels: sums over slices of the outputs, which are added in order.
fn direct_weight_grad(
    lane: &mut Issue,
    g: &Geometry,
    x: &Tensor,
    dy: &Tensor,
    dw: &Tensor,
    add: bool,
) -> Result<()> {
    let sides = parts::to_inputs(g);
    let (from, grad) = (Images::new(lane, x), Images::new(lane, dy));
    let cuts = g.taps().div_ceil(TAPS);
    let blocks = g.co * g.cig() * cuts;
    let n = g.n * g.out_plane();
    let slices = MANY_BLOCKS.div_ceil(blocks).min(n.div_ceil(SLICE));
    let length = n.div_ceil(slices);
    let slices = n.div_ceil(length);
    let sums = lane.scratch(slices * dw.numel() * dw.dtype().compute().size())?;
    let (places, grad_places) = (from.places(), grad.places());
    let args = [
        from.from(0),
        longs(&places),
        longs(&sides[0]),
        longs(&sides[1]),
        grad.from(0),
        longs(&grad_places),
        sums,
        int(n),
        int(length),
        int(g.cog()),
        int(g.cig()),
        int(cuts),
    ];
    let grid = Grid {
        blocks: [
            u32::try_from(blocks).unwrap_or(u32::MAX),
            u32::try_from(slices).unwrap_or(u32::MAX),
            1,
        ],
        threads: [256, 1, 1],
        strides: false,
    };
    lane.launch(&KERNELS, &[x.dtype()], "weight_partial", grid, &args)?;
    finish(lane, sums, slices, dw, add)
}

/// `dw` = the sum of `slices` arrays of its size, rounded; with `add`, and of what is there.
fn finish(lane: &mut Issue, sums: Arg<'_>, slices: usize, dw: &Tensor, add: bool) -> Result<()> {
    let n = dw.numel();
    let args = [sums, int(slices), lane.address(dw), int(n), int(add.into())];
    lane.launch(&KERNELS, &[dw.dtype()], "finish", Grid::over(n), &args)
}
