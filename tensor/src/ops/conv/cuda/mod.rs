//! Convolutions on cards.
//!
//! Windows are lowered to the columns of a matrix, piece by piece, and the products of matrices go to
//! cuBLASLt. The gradient of the input at stride 1 is such a convolution of the gradient; at other
//! strides the product comes first, and each pixel then sums what the windows that cover it hold. That
//! of the weight is one product over all images of a piece. Half types keep all sums in `f32` and are
//! rounded once. Groups of few channels, as those of depthwise convolutions, are summed directly.

mod input;
mod parts;
mod weight;

use super::geometry::Geometry;
use crate::cuda::{Arg, FLOATS, Gemm, Grid, Issue, Matrix, Source};
use crate::{DType, Result, Tensor};
use parts::{Images, LIMIT, Piece, Sides, Weights};
pub(super) use weight::weight_grad;

pub(crate) static KERNELS: Source = Source {
    family: "conv",
    path: "tensor/src/ops/conv/kernel.cu",
    before: "",
    text: include_str!("../kernel.cu"),
    after: "",
    types: FLOATS,
};

/// Weights of a group and a tap from which on a group is a product of matrices.
const MANY_WEIGHTS: usize = 256;
/// Outputs of a thread, one below the other: `RUN` of the kernels.
const RUN: usize = 4;

fn is_direct(g: &Geometry) -> bool {
    g.groups > 1 && g.cig() * g.cog() < MANY_WEIGHTS
}

/// A struct of `long long`s.
fn longs<T: bytemuck::Pod>(v: &T) -> Arg<'_> {
    Arg::Struct(bytemuck::bytes_of(v))
}

fn int(n: usize) -> Arg<'static> {
    Arg::Int(n as i64)
}

/// `y = x ⋆ w + bias`.
pub(super) fn forward(
    lane: &mut Issue,
    g: &Geometry,
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    y: &mut Tensor,
) -> Result<()> {
    if y.numel() == 0 {
        return Ok(());
    }
    let sum = Sum {
        groups: g.groups,
        rows: g.cog(),
        depth: g.cig(),
        sides: parts::to_inputs(g),
        weights: parts::by_output(g, w),
    };
    if is_direct(g) {
        return sum.direct(lane, x, w, bias, y);
    }
    let product = sum.prepare(lane, x, w, y)?;
    let fills = bias.is_some() || g.cig() == 0;
    if fills {
        fill(lane, bias, y)?;
    }
    match g.cig() {
        0 => Ok(()),
        _ => product.run(lane, fills),
    }
}

/// The gradient with respect to `x`.
pub(super) fn input_grad(
    lane: &mut Issue,
    g: &Geometry,
    dy: &Tensor,
    w: &Tensor,
    dx: &mut Tensor,
) -> Result<()> {
    if dx.numel() == 0 {
        return Ok(());
    }
    let sum = Sum {
        groups: g.groups,
        rows: g.cig(),
        depth: g.cog(),
        sides: parts::to_outputs(g),
        weights: parts::by_input(g, w),
    };
    if g.cog() == 0 {
        fill(lane, None, dx)
    } else if is_direct(g) {
        sum.direct(lane, dy, w, None, dx)
    } else if g.stride == [1, 1] {
        sum.prepare(lane, dy, w, dx)?.run(lane, false)
    } else {
        input::strided(lane, g, &sum, dy, w, dx)
    }
}

/// Every element of `y` becomes its channel's bias, or 0.
fn fill(lane: &mut Issue, bias: Option<&Tensor>, y: &Tensor) -> Result<()> {
    let (n, dims) = (y.numel(), y.dims());
    let (bias, step) = bias_of(lane, bias);
    let args = [
        bias,
        step,
        lane.address(y),
        int(n),
        int(dims[2] * dims[3]),
        int(dims[1]),
    ];
    lane.launch(&KERNELS, &[y.dtype()], "fill", Grid::over(n), &args)
}

fn bias_of(lane: &Issue, bias: Option<&Tensor>) -> (Arg<'static>, Arg<'static>) {
    match bias {
        Some(bias) => (lane.address(bias), int(bias.layout().strides()[0])),
        None => (Arg::Address(0), int(0)),
    }
}

/// A sum over windows: each of the `rows` channels of a group sums `depth` channels under all taps.
struct Sum {
    groups: usize,
    rows: usize,
    depth: usize,
    sides: Sides,
    weights: Weights,
}

impl Sum {
    fn taps(&self) -> usize {
        (self.sides[0].taps * self.sides[1].taps) as usize
    }

    /// Outputs of a plane.
    fn pixels(&self) -> usize {
        (self.sides[0].out * self.sides[1].out) as usize
    }

    /// Columns that are lowered for one output pixel.
    fn columns(&self) -> usize {
        self.groups * self.depth * self.taps()
    }

    /// Without a product.
    fn direct(
        &self,
        lane: &mut Issue,
        x: &Tensor,
        w: &Tensor,
        bias: Option<&Tensor>,
        y: &Tensor,
    ) -> Result<()> {
        let from = Images::new(lane, x);
        let [down, across] = &self.sides;
        let planes = y.dims()[0] * y.dims()[1];
        let n = planes * (down.out as usize).div_ceil(RUN) * across.out as usize;
        let (bias, step) = bias_of(lane, bias);
        let places = from.places();
        let args = [
            from.from(0),
            longs(&places),
            longs(down),
            longs(across),
            lane.address(w),
            longs(&self.weights),
            bias,
            step,
            lane.address(y),
            int(n),
            int(self.groups),
            int(self.rows),
            int(self.depth),
        ];
        lane.launch(&KERNELS, &[y.dtype()], "direct", Grid::over(n), &args)
    }

    /// The weights as a row-major matrix for each group: as they lie, or in scratch memory.
    fn matrices(&self, lane: &mut Issue, w: &Tensor) -> Result<Packed> {
        let depth = self.depth as i64;
        let [t0, t1] = self.sides.map(|s| s.taps);
        let dense = [
            self.rows as i64 * depth * t0 * t1,
            depth * t0 * t1,
            t0 * t1,
            t1,
            1,
        ];
        let from = lane.address(w);
        let at = match self.weights == dense {
            true => from,
            false => lane.scratch(w.numel() * w.dtype().size())?,
        };
        Ok(Packed {
            from: (self.weights != dense).then_some(from),
            at,
        })
    }

    /// Fills scratch memory with the weights, where they do not lie as a product wants them.
    fn pack(&self, lane: &mut Issue, packed: &Packed, dtype: DType) -> Result<()> {
        let Some(from) = packed.from else {
            return Ok(());
        };
        let n = self.groups * self.rows * self.depth * self.taps();
        let args = [
            from,
            longs(&self.weights),
            packed.at,
            int(n),
            int(self.rows),
            int(self.depth),
            Arg::Int(self.sides[0].taps),
            Arg::Int(self.sides[1].taps),
        ];
        lane.launch(&KERNELS, &[dtype], "pack", Grid::over(n), &args)
    }

    /// Asks for the memory of a product that computes the sum, from `x` to `y`.
    fn prepare(&self, lane: &mut Issue, x: &Tensor, w: &Tensor, y: &Tensor) -> Result<Product<'_>> {
        let from = Images::new(lane, x);
        let (images, size) = (x.dims()[0], x.dtype().size());
        let lowered = !(parts::is_identity(&self.sides) && from.is_matrix());
        let limit = match lowered {
            true => LIMIT,
            false => usize::MAX,
        };
        let pieces = parts::pieces(images, self.pixels(), self.columns(), size, limit);
        let columns = match lowered && self.depth > 0 {
            true => Some(lane.scratch(largest(&pieces) * self.columns() * size)?),
            false => None,
        };
        Ok(Product {
            sum: self,
            weights: self.matrices(lane, w)?,
            from,
            pieces,
            columns,
            to: lane.address(y),
            dtype: y.dtype(),
        })
    }

    /// Lowers a piece of what `from` holds.
    fn lower(
        &self,
        lane: &mut Issue,
        from: &Images,
        piece: &Piece,
        columns: Arg<'_>,
        dtype: DType,
    ) -> Result<()> {
        lower(
            lane,
            from,
            &self.sides,
            self.columns(),
            piece,
            columns,
            dtype,
        )
    }
}

/// Elements of a row of columns, at most.
fn largest(pieces: &[Piece]) -> usize {
    pieces
        .iter()
        .map(|p| p.images * p.padded)
        .max()
        .unwrap_or(0)
}

/// Writes `rows` columns of the windows of a piece.
fn lower(
    lane: &mut Issue,
    from: &Images,
    sides: &Sides,
    rows: usize,
    piece: &Piece,
    columns: Arg<'_>,
    dtype: DType,
) -> Result<()> {
    let n = rows * piece.images * piece.padded / (16 / dtype.size());
    let places = from.places();
    let args = [
        from.from(piece.image),
        longs(&places),
        longs(&sides[0]),
        longs(&sides[1]),
        columns,
        int(n),
        int(piece.images),
        int(piece.pixel),
        int(piece.pixels),
        int(piece.padded),
    ];
    lane.launch(&KERNELS, &[dtype], "lower", Grid::over(n), &args)
}

/// Weights, and where they lay before they were packed.
struct Packed {
    from: Option<Arg<'static>>,
    at: Arg<'static>,
}

/// A sum as products of matrices, whose memory is there.
struct Product<'a> {
    sum: &'a Sum,
    weights: Packed,
    from: Images,
    pieces: Vec<Piece>,
    /// Room for the columns of a piece; `None` where the planes are columns as they lie.
    columns: Option<Arg<'static>>,
    to: Arg<'static>,
    dtype: DType,
}

impl Product<'_> {
    /// Issues it; with `add`, onto what is in the result.
    fn run(&self, lane: &mut Issue, add: bool) -> Result<()> {
        let (sum, dtype) = (self.sum, self.dtype);
        sum.pack(lane, &self.weights, dtype)?;
        let (rows, k, pixels) = (sum.rows, sum.depth * sum.taps(), sum.pixels());
        let channels = sum.groups * rows;
        let weights = Matrix::dense(self.weights.at, rows, k);
        for piece in &self.pieces {
            let (b, b_apart) = match self.columns {
                Some(columns) => {
                    sum.lower(lane, &self.from, piece, columns, dtype)?;
                    let row = piece.images * piece.padded;
                    (Matrix::new(columns, [row, 1], 0), [piece.padded, k * row])
                }
                None => {
                    let [image, row, _, _] = self.from.strides;
                    let at = self.from.from(piece.image);
                    (Matrix::new(at, [row, 1], 0), [image, k * row])
                }
            };
            let c = Matrix::new(self.to, [pixels, 1], 0);
            let c = c.further(piece.image * channels * pixels + piece.pixel, dtype);
            let gemm = Gemm {
                add,
                ..Gemm::new([rows, piece.pixels, k], dtype, [weights, b, c])
            };
            let apart = [[0, rows * k], b_apart, [channels * pixels, rows * pixels]];
            by_group(lane, &gemm, apart, [piece.images, sum.groups])?;
        }
        Ok(())
    }
}

/// A product for each image and group, in as few calls as may be; each operand's elements from image to
/// image and from group to group.
fn by_group(
    lane: &mut Issue,
    gemm: &Gemm,
    apart: [[usize; 2]; 3],
    [images, groups]: [usize; 2],
) -> Result<()> {
    // The library repeats along one of both, a loop along the other.
    let inner = usize::from(images < groups);
    let [batch, calls] = match inner {
        0 => [images, groups],
        _ => [groups, images],
    };
    let [a, b, c] = apart.map(|apart| (apart[inner], apart[1 - inner]));
    for i in 0..calls {
        lane.gemm(&Gemm {
            batch,
            a: gemm.a.apart(a.0).further(i * a.1, gemm.dtype),
            b: gemm.b.apart(b.0).further(i * b.1, gemm.dtype),
            c: gemm.c.apart(c.0).further(i * c.1, gemm.result),
            ..*gemm
        })?;
    }
    Ok(())
}
