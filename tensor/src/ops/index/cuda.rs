//! CUDA kernels. An index out of range sets the card's flag, and the bits of
//! its elements are all set: floats are NaN.

use super::lines;
use super::sort::{Keys, Sort};
use crate::cuda::{Arg, Grid, Issue, Source, View, word};
use crate::{DType, Layout, Result, Shape, Tensor};

/// An element type of each size, and the type of the indices.
pub(crate) static KERNELS: Source = Source {
    family: "index",
    path: "tensor/src/ops/index/kernel.cu",
    before: "",
    text: include_str!("kernel.cu"),
    after: "",
    types: &[
        &[DType::U8, DType::I64],
        &[DType::BF16, DType::I64],
        &[DType::F32, DType::I64],
        &[DType::I64, DType::I64],
        &[DType::U8, DType::I32],
        &[DType::BF16, DType::I32],
        &[DType::F32, DType::I32],
        &[DType::I64, DType::I32],
    ],
};

/// The type of the elements, and that of the indices or of their sorted keys.
pub(crate) static ADDS: Source = Source {
    family: "index-add",
    path: "tensor/src/ops/index/add.cu",
    before: "",
    text: include_str!("add.cu"),
    after: "",
    types: &[
        &[DType::F32, DType::I64],
        &[DType::F64, DType::I64],
        &[DType::BF16, DType::I64],
        &[DType::F16, DType::I64],
        &[DType::F32, DType::I32],
        &[DType::F64, DType::I32],
        &[DType::BF16, DType::I32],
        &[DType::F16, DType::I32],
    ],
};

/// Places of a line up to which a thread looks at all of them, and nothing is sorted.
const FEW: usize = 16;

/// `y` = the slices of `axis` of `x` at `indices`.
pub(super) fn select(
    lane: &mut Issue,
    x: &Tensor,
    axis: usize,
    indices: &Tensor,
    y: &mut Tensor,
) -> Result<()> {
    let n = y.numel();
    if n == 0 {
        return check(lane, indices, x.dims()[axis]);
    }
    let op = lane.op();
    let views = (View::new(op, x.layout())?, View::new(op, indices.layout())?);
    let inner: usize = x.dims()[axis + 1..].iter().product();
    let [fault, place] = lane.index_flag()?;
    let args = [
        lane.address(x),
        Arg::Struct(bytemuck::bytes_of(&views.0)),
        lane.address(indices),
        Arg::Struct(bytemuck::bytes_of(&views.1)),
        lane.address(y),
        Arg::Int(n as i64),
        Arg::Int(indices.numel() as i64),
        Arg::Int(inner as i64),
        Arg::Int(x.dims()[axis] as i64),
        fault,
        place,
    ];
    let types = [word(x.dtype()), indices.dtype()];
    lane.launch(&KERNELS, &types, "select", Grid::over(n), &args)
}

/// Looks at indices at which there is nothing to read or to add to.
fn check(lane: &mut Issue, indices: &Tensor, extent: usize) -> Result<()> {
    let n = indices.numel();
    if n == 0 {
        return Ok(());
    }
    let view = View::new(lane.op(), indices.layout())?;
    let [fault, place] = lane.index_flag()?;
    let args = [
        lane.address(indices),
        Arg::Struct(bytemuck::bytes_of(&view)),
        Arg::Int(n as i64),
        Arg::Int(extent as i64),
        fault,
        place,
    ];
    let types = [DType::U8, indices.dtype()];
    lane.launch(&KERNELS, &types, "check", Grid::over(n), &args)
}

/// `y[place] = x[line of place + index · stride]`.
pub(super) fn gather(
    lane: &mut Issue,
    x: &Tensor,
    axis: usize,
    indices: &Tensor,
    y: &mut Tensor,
) -> Result<()> {
    let n = y.numel();
    if n == 0 {
        return Ok(());
    }
    let op = lane.op();
    let lines = lines(op, x.layout(), axis, indices.shape())?;
    let views = (View::new(op, &lines)?, View::new(op, indices.layout())?);
    let [fault, place] = lane.index_flag()?;
    let args = [
        lane.address(x),
        Arg::Struct(bytemuck::bytes_of(&views.0)),
        Arg::Int(x.layout().strides()[axis] as i64),
        lane.address(indices),
        Arg::Struct(bytemuck::bytes_of(&views.1)),
        lane.address(y),
        Arg::Int(n as i64),
        Arg::Int(x.dims()[axis] as i64),
        fault,
        place,
    ];
    let types = [word(x.dtype()), indices.dtype()];
    lane.launch(&KERNELS, &types, "gather", Grid::over(n), &args)
}

/// Adds the slices of `source` to the slices of `axis` of `sum` at `indices`, in order.
pub(super) fn add(
    lane: &mut Issue,
    source: &Tensor,
    axis: usize,
    indices: &Tensor,
    sum: &mut Tensor,
) -> Result<()> {
    let (n, count, extent) = (source.numel(), indices.numel(), sum.dims()[axis]);
    if n == 0 {
        return check(lane, indices, extent);
    }
    let op = lane.op();
    let (outer, rest) = sum.dims().split_at(axis);
    let (outer, inner): (usize, usize) = (outer.iter().product(), rest[1..].iter().product());
    if count > FEW {
        // The list is sorted once for all groups and all elements of a slice.
        let sort = Sort::new(lane, count, extent)?;
        let keys = Keys {
            indices,
            layout: indices.layout(),
            lines: &Layout::contiguous(op, [1].into())?.broadcast_to(op, indices.shape())?,
            along: 1,
            extent,
            or_none: false,
            none: extent,
        };
        let sums = Sums {
            sum: lane.address(sum),
            count,
            inner,
            extent,
        };
        return add_sorted(lane, source, &sort, &keys, &sums);
    }
    // Each index stands for a slice in each group.
    let mut slices: Shape = [outer].into();
    indices
        .dims()
        .iter()
        .for_each(|&extent| slices.push(extent));
    let mut layout = indices.layout().at_origin().unsqueeze(-1)?;
    slices.push(inner);
    layout = layout.broadcast_to(op, &slices)?;
    let lines = Layout::contiguous(op, [outer, extent, inner].into())?;
    let lines = lines.narrow(1, 0, 1)?;
    let lines = lines.broadcast_to(op, &[outer, count, inner].into())?;
    add_few(
        lane,
        source,
        (indices, &layout),
        sum,
        &lines,
        [count, inner, inner, extent],
    )
}

/// `sum[line of place + index · stride] += source[place]`, in the order of the places.
pub(super) fn scatter_add(
    lane: &mut Issue,
    source: &Tensor,
    axis: usize,
    indices: &Tensor,
    sum: &mut Tensor,
) -> Result<()> {
    let (n, extent, length) = (indices.numel(), sum.dims()[axis], indices.dims()[axis]);
    if n == 0 {
        return Ok(());
    }
    let op = lane.op();
    let lines = lines(op, sum.layout(), axis, indices.shape())?.at_origin();
    let along = sum.layout().strides()[axis];
    if length > FEW {
        let all = sum.numel();
        let sort = Sort::new(lane, n, all)?;
        let keys = Keys {
            indices,
            layout: indices.layout(),
            lines: &lines,
            along,
            extent,
            or_none: false,
            none: all,
        };
        let sums = Sums {
            sum: lane.address(sum),
            count: n,
            inner: 1,
            extent: all,
        };
        return add_sorted(lane, source, &sort, &keys, &sums);
    }
    let inner = indices.dims()[axis + 1..].iter().product();
    let layout = indices.layout();
    add_few(
        lane,
        source,
        (indices, layout),
        sum,
        &lines,
        [length, inner, along, extent],
    )
}

/// Adds without a sort: lines of `length` places `inner` apart in row-major order, indices below
/// `extent` that stand for steps of `along`.
fn add_few(
    lane: &mut Issue,
    source: &Tensor,
    (indices, layout): (&Tensor, &Layout),
    sum: &mut Tensor,
    lines: &Layout,
    [length, inner, along, extent]: [usize; 4],
) -> Result<()> {
    let (op, n) = (lane.op(), source.numel());
    let view = View::new(op, source.layout())?;
    let (indices_view, lines) = (View::new(op, layout)?, View::new(op, lines)?);
    let [fault, place] = lane.index_flag()?;
    let args = [
        lane.address(source),
        Arg::Struct(bytemuck::bytes_of(&view)),
        lane.address(indices),
        Arg::Struct(bytemuck::bytes_of(&indices_view)),
        lane.address(sum),
        Arg::Struct(bytemuck::bytes_of(&lines)),
        Arg::Int(along as i64),
        Arg::Int(n as i64),
        Arg::Int(length as i64),
        Arg::Int(inner as i64),
        Arg::Int(extent as i64),
        fault,
        place,
    ];
    let types = [source.dtype(), indices.dtype()];
    lane.launch(&ADDS, &types, "add_few", Grid::over(n), &args)
}

/// Where sorted elements are added up: `extent` slices of `inner` elements in each group, and `count`
/// keys for the places of each group.
#[derive(Debug)]
pub(crate) struct Sums {
    /// In the type in which the elements add up.
    pub(crate) sum: Arg<'static>,
    pub(crate) count: usize,
    pub(crate) inner: usize,
    pub(crate) extent: usize,
}

/// Adds each slice of `source` to that for which its key stands, in the order of the places.
pub(crate) fn add_sorted(
    lane: &mut Issue,
    source: &Tensor,
    sort: &Sort,
    keys: &Keys<'_>,
    sums: &Sums,
) -> Result<()> {
    let view = View::new(lane.op(), source.layout())?;
    let sorted = sort.run(lane, keys)?;
    let n = source.numel();
    let args = [
        lane.address(source),
        Arg::Struct(bytemuck::bytes_of(&view)),
        sorted.keys,
        sorted.places,
        sums.sum,
        Arg::Int(n as i64),
        Arg::Int(sums.count as i64),
        Arg::Int(sums.inner as i64),
        Arg::Int(sums.extent as i64),
    ];
    let types = [source.dtype(), sort.key];
    lane.launch(&ADDS, &types, "add_sorted", Grid::over(n), &args)
}
