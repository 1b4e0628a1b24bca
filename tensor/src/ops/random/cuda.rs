//! CUDA kernels: a thread makes the numbers of a block of words, wherever it runs.

use super::Rng;
use crate::cpu::scratch::room;
use crate::cuda::{Arg, FLOATS, Grid, Issue, Source, View, is_wide};
use crate::storage::{self, Target, across};
use crate::{DType, Result, Tensor};
use smallvec::SmallVec;

pub(crate) static KERNELS: Source = Source {
    family: "random",
    path: "tensor/src/ops/random/kernel.cu",
    before: PHILOX,
    text: include_str!("kernel.cu"),
    after: "",
    types: FLOATS,
};

pub(crate) static INTEGERS: Source = Source {
    family: "random-integers",
    path: "tensor/src/ops/random/integers.cu",
    before: PHILOX,
    text: include_str!("integers.cu"),
    after: "",
    types: &[&[]],
};

const PHILOX: &str = concat!(
    "#line 1 \"tensor/src/ops/random/philox.cu\"\n",
    include_str!("philox.cu")
);

/// A kernel that fills a tensor, and the words that each element takes.
struct Fill<'a> {
    source: &'static Source,
    types: &'a [DType],
    name: &'static str,
    words: usize,
}

impl Fill<'_> {
    /// Launches it on the next words of the stream.
    fn launch(
        &self,
        lane: &mut Issue,
        numbers: &[Arg<'_>],
        out: &mut Tensor,
        rng: &mut Rng,
    ) -> Result<()> {
        let n = out.numel();
        let blocks = (n * self.words).div_ceil(4);
        if n > 0 {
            let mut args: SmallVec<[Arg<'_>; 6]> = SmallVec::new();
            args.extend([Arg::Int(rng.key as i64), Arg::Int(rng.next as i64)]);
            args.extend_from_slice(numbers);
            args.extend([lane.address(out), Arg::Int(n as i64)]);
            lane.launch(
                self.source,
                self.types,
                self.name,
                Grid::over(blocks),
                &args,
            )?;
        }
        rng.reserve(blocks);
        Ok(())
    }
}

fn floats(lane: &mut Issue, name: &'static str, out: &mut Tensor, rng: &mut Rng) -> Result<()> {
    let fill = Fill {
        source: &KERNELS,
        types: &[out.dtype()],
        name,
        words: if out.dtype().size() == 8 { 2 } else { 1 },
    };
    fill.launch(lane, &[], out, rng)
}

pub(super) fn rand(lane: &mut Issue, out: &mut Tensor, rng: &mut Rng) -> Result<()> {
    floats(lane, "rand", out, rng)
}

pub(super) fn randn(lane: &mut Issue, out: &mut Tensor, rng: &mut Rng) -> Result<()> {
    floats(lane, "randn", out, rng)
}

pub(super) fn randint(
    lane: &mut Issue,
    low: i64,
    high: i64,
    out: &mut Tensor,
    rng: &mut Rng,
) -> Result<()> {
    let range = [Arg::Int(low), Arg::Int(high.wrapping_sub(low))];
    let fill = Fill {
        source: &INTEGERS,
        types: &[],
        name: "randint",
        words: 2,
    };
    fill.launch(lane, &range, out, rng)
}

pub(super) fn bernoulli(lane: &mut Issue, p: f64, out: &mut Tensor, rng: &mut Rng) -> Result<()> {
    // Of 2³² words, those below it: all of them, where p is 1.
    let threshold = Arg::Int((p * 2f64.powi(32)).round() as i64);
    let fill = Fill {
        source: &INTEGERS,
        types: &[],
        name: "bernoulli",
        words: 1,
    };
    fill.launch(lane, &[threshold], out, rng)
}

/// On the host, and copied: each place of the permutation depends on the draws before.
pub(super) fn randperm(op: &'static str, out: &mut Tensor, rng: &mut Rng) -> Result<()> {
    let mut order: Vec<i64> = room(out.numel()).map_err(|e| e.on(op, out.device()))?;
    order.extend(0..out.numel() as i64);
    let mut next = rng.clone();
    next.shuffle(&mut order);
    let order = storage::Source::Host(bytemuck::cast_slice(&order));
    across(op, order, Target::Tensor(out, 0))?;
    *rng = next;
    Ok(())
}

/// `out = x · scale` where `mask` is not 0, else 0.
pub(super) fn scale_kept(
    lane: &mut Issue,
    x: &Tensor,
    mask: &Tensor,
    scale: f64,
    out: &mut Tensor,
) -> Result<()> {
    let n = out.numel();
    if n == 0 {
        return Ok(());
    }
    let types = [out.dtype()];
    let chunk = 16 / x.dtype().size();
    let layout = mask.layout();
    let no_gaps = layout.is_contiguous() && layout.offset().is_multiple_of(chunk);
    if is_wide(x, x.rank()) && no_gaps {
        let args = [
            lane.address(x),
            lane.address(mask),
            Arg::Real(scale),
            lane.address(out),
            Arg::Int(n as i64),
        ];
        let grid = Grid::over(n / chunk);
        return lane.launch(&KERNELS, &types, "scale_kept_wide", grid, &args);
    }
    let op = lane.op();
    let views = (View::new(op, x.layout())?, View::new(op, layout)?);
    let args = [
        lane.address(x),
        Arg::Struct(bytemuck::bytes_of(&views.0)),
        lane.address(mask),
        Arg::Struct(bytemuck::bytes_of(&views.1)),
        Arg::Real(scale),
        lane.address(out),
        Arg::Int(n as i64),
    ];
    lane.launch(&KERNELS, &types, "scale_kept", Grid::over(n), &args)
}
