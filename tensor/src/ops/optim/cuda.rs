//! CUDA kernels: one launch for all parameters of a batch that have the same types, one pass over all
//! arrays of a parameter.
//!
//! A kernel finds its tensors in a table in the card's memory, which lies there from one step to the
//! next while nothing moves. What changes from step to step, learning rates and numbers of steps, is
//! an argument of the launch, or is in the card's memory itself.

use super::adam::{AdamFactors, corrections};
use super::batch::{Item, Lists, Number};
use super::{AdamConfig, Factor, SgdConfig};
use crate::cuda::{Arg, Grid, Issue, Source};
use crate::ops::Scalar;
use crate::{DType, Result, Tensor};
use bytemuck::{Pod, Zeroable};
use smallvec::SmallVec;

/// A parameter's type and its gradient's.
const PAIRS: &[&[DType]] = &[
    &[DType::F32, DType::F32],
    &[DType::F64, DType::F64],
    &[DType::BF16, DType::BF16],
    &[DType::BF16, DType::F32],
    &[DType::F16, DType::F16],
    &[DType::F16, DType::F32],
];

pub(crate) static KERNELS: Source = Source {
    family: "optim",
    path: "tensor/src/ops/optim/kernel.cu",
    before: "",
    text: include_str!("kernel.cu"),
    after: "",
    types: PAIRS,
};

/// Elements of a tensor that a block takes at a time: `CHUNK` of the kernels.
const CHUNK: usize = 4096;
/// Blocks that sum squares, at most; fixed, since it fixes the order of summation.
const SUMS: usize = 1024;
/// Different numbers in one launch, at most: `GROUPS` of the kernels.
const GROUPS: usize = 16;
const BLOCK: u32 = 256;

/// One tensor of the table, with those that go along with it: `Row` of the kernels.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Row {
    /// 0 for none.
    places: [u64; 4],
    len: i64,
    /// Its numbers' place in the launch's list.
    group: i64,
}

/// Numbers of a step of SGD: `SgdNumbers` of the kernels.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
struct SgdNumbers {
    lr: f64,
    /// The address of the learning rate's factor; 0 for 1.
    lr_scale: u64,
    decay: f64,
    momentum: f64,
    fresh: f64,
    is_first: i32,
    nesterov: i32,
}

/// Numbers of a step of Adam: `AdamNumbers` of the kernels.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
struct AdamNumbers {
    lr: f64,
    /// The address of the learning rate's factor; 0 for 1.
    lr_scale: u64,
    coupled: f64,
    decoupled: f64,
    betas: [f64; 2],
    fresh1: f64,
    fresh2: f64,
    eps: f64,
    /// The corrections of the bias, where the host knows the number of the step.
    corrections: [f64; 2],
    /// The address of the number of the step; 0 where the host knows it.
    step: u64,
}

/// A launch in the making: tensors of the same types, and the different numbers that they have.
struct Plan<N> {
    types: [DType; 2],
    rows: Vec<Row>,
    /// The first chunk of each row.
    starts: Vec<i64>,
    chunks: usize,
    numbers: SmallVec<[N; 1]>,
}

impl<N: Pod + PartialEq> Plan<N> {
    /// Adds a tensor of `len` elements to the plan for its types and numbers.
    fn add(plans: &mut Vec<Plan<N>>, types: [DType; 2], places: [u64; 4], len: usize, n: N) {
        if len == 0 {
            return;
        }
        let group_in = |plan: &Plan<N>| {
            let known = plan.numbers.iter().position(|other| *other == n);
            known.or((plan.numbers.len() < GROUPS).then_some(plan.numbers.len()))
        };
        let found = plans.iter().enumerate().find_map(|(at, plan)| {
            let group = (plan.types == types).then(|| group_in(plan)).flatten();
            Some((at, group?))
        });
        let (at, group) = found.unwrap_or_else(|| {
            plans.push(Plan {
                types,
                rows: Vec::new(),
                starts: Vec::new(),
                chunks: 0,
                numbers: SmallVec::new(),
            });
            (plans.len() - 1, 0)
        });
        let plan = &mut plans[at];
        if group == plan.numbers.len() {
            plan.numbers.push(n);
        }
        plan.rows.push(Row {
            places,
            len: len as i64,
            group: group as i64,
        });
        plan.starts.push(plan.chunks as i64);
        plan.chunks += len.div_ceil(CHUNK);
    }

    /// The table as the kernels read it: the first chunk of each row, and then the rows.
    fn table(&self) -> Vec<u8> {
        let parts: [&[u8]; 2] = [
            bytemuck::cast_slice(&self.starts),
            bytemuck::cast_slice(&self.rows),
        ];
        parts.concat()
    }

    /// Gets everything for the kernel `name`, with `blocks` blocks. Behind the table it takes `more`,
    /// and then the numbers, where it has some.
    fn launch(
        &self,
        lane: &mut Issue,
        name: &'static str,
        blocks: usize,
        more: &[Arg<'static>],
    ) -> Result<Launch> {
        lane.prepare(&KERNELS, &self.types, name)?;
        let table = lane.table(&KERNELS, &self.types, &self.table())?;
        let mut args = SmallVec::from_slice(&[table, Arg::Int(self.rows.len() as i64)]);
        args.extend_from_slice(more);
        let mut numbers = vec![N::zeroed(); if size_of::<N>() == 0 { 0 } else { GROUPS }];
        numbers
            .iter_mut()
            .zip(&self.numbers)
            .for_each(|(to, n)| *to = *n);
        Ok(Launch {
            types: self.types,
            name,
            blocks,
            args,
            numbers: bytemuck::cast_slice(&numbers).into(),
        })
    }
}

/// A launch that is ready.
#[derive(Debug)]
pub(super) struct Launch {
    types: [DType; 2],
    name: &'static str,
    blocks: usize,
    args: SmallVec<[Arg<'static>; 4]>,
    /// The last argument; empty for none.
    numbers: Vec<u8>,
}

/// Launches what is ready.
pub(super) fn launch(lane: &mut Issue, launches: &[Launch]) -> Result<()> {
    launches.iter().try_for_each(|launch| {
        let mut args: SmallVec<[Arg<'_>; 5]> = launch.args.iter().copied().collect();
        if !launch.numbers.is_empty() {
            args.push(Arg::Struct(&launch.numbers));
        }
        let grid = Grid {
            blocks: [launch.blocks as u32, 1, 1],
            threads: [BLOCK, 1, 1],
            strides: false,
        };
        lane.launch(&KERNELS, &launch.types, launch.name, grid, &args)
    })
}

/// The address of a tensor among the operands; 0 for none.
fn place(lane: &Issue, tensor: Option<&Tensor>) -> u64 {
    match tensor.map(|tensor| lane.address(tensor)) {
        Some(Arg::Address(place)) => place,
        _ => 0,
    }
}

/// A number: what the host knows of it, and the address of the rest.
fn number(lane: &Issue, number: Number, numbers: &[Tensor], unknown: f64) -> (f64, u64) {
    match number.of(numbers) {
        Scalar::Host(value) => (value, 0),
        Scalar::Device(tensor) => (unknown, place(lane, Some(tensor))),
    }
}

/// One step of SGD for each parameter of a batch.
pub(super) fn sgd(
    lane: &mut Issue,
    (params, grads, momenta, numbers): Lists<'_, '_>,
    items: &[Item<'_, SgdConfig>],
) -> Result<Vec<Launch>> {
    let (mut plans, mut momenta) = (Vec::new(), momenta.iter());
    for ((param, grad), item) in params.iter().zip(grads).zip(items) {
        let momentum = match item.states {
            0 => None,
            _ => momenta.next(),
        };
        let places = [Some(&**param), Some(*grad), momentum.map(|m| &**m), None];
        let places = places.map(|tensor| place(lane, tensor));
        let config = item.config;
        let (lr_scale, at) = number(lane, item.lr_scale, numbers, 1.0);
        let numbers = SgdNumbers {
            lr: config.lr * lr_scale,
            lr_scale: at,
            decay: config.weight_decay,
            momentum: config.momentum,
            fresh: 1.0 - config.dampening,
            is_first: i32::from(item.is_first),
            nesterov: i32::from(config.nesterov),
        };
        let types = [param.dtype(), grad.dtype()];
        Plan::add(&mut plans, types, places, param.numel(), numbers);
    }
    let plans = plans.iter();
    plans
        .map(|plan| plan.launch(lane, "sgd", plan.chunks, &[]))
        .collect()
}

/// The numbers of one parameter's step of Adam, which most often are the next one's, too.
fn adam_numbers(lane: &Issue, item: &Item<'_, AdamConfig>, numbers: &[Tensor]) -> AdamNumbers {
    let (config, factors) = (item.config, AdamFactors::new(item.config));
    let (lr_scale, lr_scale_at) = number(lane, item.lr_scale, numbers, 1.0);
    let (step, step_at) = number(lane, item.step, numbers, 1.0);
    AdamNumbers {
        lr: config.lr * lr_scale,
        lr_scale: lr_scale_at,
        coupled: factors.coupled,
        decoupled: factors.decoupled,
        betas: config.betas,
        fresh1: factors.fresh1,
        fresh2: factors.fresh2,
        eps: factors.eps,
        corrections: corrections(config, step),
        step: step_at,
    }
}

/// One step of Adam for each parameter of a batch.
pub(super) fn adam(
    lane: &mut Issue,
    (params, grads, moments, numbers): Lists<'_, '_>,
    items: &[Item<'_, AdamConfig>],
) -> Result<Vec<Launch>> {
    let (mut plans, mut last) = (Vec::new(), None);
    let (moments, _) = moments.as_chunks::<2>();
    for (((param, grad), [m, v]), item) in params.iter().zip(grads).zip(moments).zip(items) {
        let places = [&**param, *grad, &**m, &**v].map(|tensor| place(lane, Some(tensor)));
        let key = (item.lr_scale, item.step);
        let same = |(config, known, _): &(&AdamConfig, _, _)| {
            std::ptr::eq(*config, item.config) && *known == key
        };
        let numbers = match last.filter(same) {
            Some((_, _, numbers)) => numbers,
            None => adam_numbers(lane, item, numbers),
        };
        last = Some((item.config, key, numbers));
        let types = [param.dtype(), grad.dtype()];
        Plan::add(&mut plans, types, places, param.numel(), numbers);
    }
    let plans = plans.iter();
    plans
        .map(|plan| plan.launch(lane, "adam", plan.chunks, &[]))
        .collect()
}

/// Multiplies by the factor for which `of` stands.
pub(super) fn scale(
    lane: &mut Issue,
    tensors: &[&mut Tensor],
    of: Scalar<'_>,
    factor: Factor,
) -> Result<Vec<Launch>> {
    let [number, place] = match of {
        Scalar::Host(value) => [Arg::Real(value), Arg::Address(0)],
        Scalar::Device(tensor) => [Arg::Real(1.0), lane.address(tensor)],
    };
    let max_norm = match factor {
        Factor::Number => Arg::Real(-1.0),
        Factor::UpTo(max_norm) => Arg::Real(max_norm),
    };
    let factor = [number, place, max_norm];
    let plans = plans(lane, tensors.iter().map(|tensor| &**tensor));
    let plans = plans.iter();
    plans
        .map(|plan| plan.launch(lane, "scale", plan.chunks, &factor))
        .collect()
}

/// Plans for tensors without numbers.
fn plans<'a>(lane: &Issue, tensors: impl Iterator<Item = &'a Tensor>) -> Vec<Plan<()>> {
    let mut plans = Vec::new();
    for tensor in tensors {
        let places = [place(lane, Some(tensor)), 0, 0, 0];
        Plan::add(&mut plans, [tensor.dtype(); 2], places, tensor.numel(), ());
    }
    plans
}

/// `sum` = the sum of the squares of contiguous tensors, or its root, taken chunk by chunk: the same bits
/// at every call. Each block adds up its chunks, and one block adds up those sums.
pub(super) fn square_sum(
    lane: &mut Issue,
    tensors: &[&Tensor],
    sum: &mut Tensor,
    is_root: bool,
) -> Result<()> {
    let plans = plans(lane, tensors.iter().copied());
    let blocks = |plan: &Plan<()>| plan.chunks.min(SUMS);
    let count: usize = plans.iter().map(blocks).sum();
    let Arg::Address(sums) = lane.scratch(count * size_of::<f64>())? else {
        unreachable!("scratch memory has an address");
    };
    let (mut launches, mut done) = (Vec::new(), 0);
    for plan in &plans {
        let to = Arg::Address(sums + (done * size_of::<f64>()) as u64);
        let more = [Arg::Int(plan.chunks as i64), to];
        launches.push(plan.launch(lane, "squares", blocks(plan), &more)?);
        done += blocks(plan);
    }
    let types = [DType::F64; 2];
    lane.prepare(&KERNELS, &types, "total")?;
    launch(lane, &launches)?;
    let args = [
        Arg::Address(sums),
        Arg::Int(count as i64),
        lane.address(sum),
        Arg::Small(is_root.into()),
    ];
    let grid = Grid {
        blocks: [1; 3],
        threads: [BLOCK, 1, 1],
        strides: false,
    };
    lane.launch(&KERNELS, &types, "total", grid, &args)
}
