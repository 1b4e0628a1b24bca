//! CUDA kernels of the cross-entropy. A target that is no class sets the card's flag for indices; its
//! loss and its row of the gradient are NaN.

use super::{EXPONENTIALS, count, width};
use crate::cuda::{Arg, BLOCK, FLOATS, Grid, Issue, Rows, Source, View, Walk};
use crate::ops::softmax::{CrossEntropyConfig, Reduction};
use crate::{Result, Shape, Tensor};

pub(crate) static KERNELS: Source = Source {
    family: "cross-entropy",
    path: "tensor/src/ops/softmax/cuda/cross_entropy.cu",
    before: EXPONENTIALS,
    text: include_str!("cross_entropy.cu"),
    after: "",
    types: FLOATS,
};

/// Blocks that compute losses, at most: another block sums their parts.
const MOST_PARTS: usize = 4096;

/// One block.
const ONE: Grid = Grid {
    blocks: [1, 1, 1],
    threads: [BLOCK, 1, 1],
    strides: false,
};

/// `Terms` of the kernels.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Terms {
    on: f64,
    off: f64,
    classes: i64,
    ignore: i64,
    weight: u64,
    weight_step: i64,
    all_weights: u64,
}

/// `Targets` of the kernels.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Targets {
    targets: u64,
    view: View,
    fault: u64,
    op: i64,
}

/// Logits as rows of classes, targets and weights of the classes.
type Operands<'a> = (&'a Tensor, &'a Tensor, Option<&'a Tensor>);

/// What both passes read beside the logits. Under smoothed labels this sums the weights.
fn prepare(
    lane: &mut Issue,
    config: &CrossEntropyConfig,
    (logits, targets, weight): Operands<'_>,
) -> Result<(Terms, Targets)> {
    let classes = width(logits);
    let smoothing = config.label_smoothing;
    let mut terms = Terms {
        on: 1.0 - smoothing,
        off: smoothing / classes.max(1) as f64,
        classes: classes as i64,
        ignore: config.ignore_index,
        weight: 0,
        weight_step: 0,
        all_weights: 0,
    };
    let [fault, op] = lane.index_flag()?;
    let targets = Targets {
        targets: lane.address(targets).bits(),
        view: View::new(lane.op(), targets.layout())?,
        fault: fault.bits(),
        op: op.bits() as i64,
    };
    if let Some(weight) = weight {
        terms.weight = lane.address(weight).bits();
        terms.weight_step = weight.layout().strides()[0] as i64;
        if smoothing > 0.0 {
            let sum = lane.scratch(size_of::<f64>())?;
            terms.all_weights = sum.bits();
            let args = [
                lane.address(weight),
                Arg::Int(terms.weight_step),
                Arg::Int(terms.classes),
                sum,
            ];
            lane.launch(&KERNELS, &[weight.dtype()], "sum_weights", ONE, &args)?;
        }
    }
    Ok((terms, targets))
}

/// Fills in the loss, the total weight, and for each row what the backward pass reads.
pub(crate) fn cross_entropy(
    lane: &mut Issue,
    config: &CrossEntropyConfig,
    operands: Operands<'_>,
    (loss, saved, total_weight): (&mut Tensor, &mut Tensor, &mut Tensor),
) -> Result<()> {
    let (x, targets, _) = operands;
    let types = [x.dtype()];
    let rows = targets.numel();
    let walk = Walk::cut(&[x], 1, Some(MOST_PARTS));
    let parts = if rows == 0 {
        0
    } else {
        walk.grid.blocks[0] as usize
    };
    let partial = lane.scratch(parts * 2 * size_of::<f64>())?;
    if rows > 0 {
        let (terms, targets) = prepare(lane, config, operands)?;
        let x_rows = Rows::new(lane.op(), x, 1)?;
        let losses = match config.reduction {
            Reduction::None => lane.address(loss),
            Reduction::Mean | Reduction::Sum => Arg::Address(0),
        };
        let args = [
            lane.address(x),
            Arg::Struct(bytemuck::bytes_of(&x_rows)),
            Arg::Struct(bytemuck::bytes_of(&targets)),
            Arg::Struct(bytemuck::bytes_of(&terms)),
            lane.address(saved),
            losses,
            partial,
            Arg::Int(rows as i64),
            Arg::Int(width(x) as i64),
        ];
        let name = match walk.wide {
            true => "cross_entropy_wide",
            false => "cross_entropy_single",
        };
        lane.launch(&KERNELS, &types, name, walk.grid, &args)?;
    }
    let args = [
        partial,
        Arg::Int(parts as i64),
        Arg::Small(i32::from(config.reduction == Reduction::Mean)),
        match config.reduction {
            Reduction::None => Arg::Address(0),
            Reduction::Mean | Reduction::Sum => lane.address(loss),
        },
        lane.address(total_weight),
    ];
    lane.launch(&KERNELS, &types, "cross_entropy_total", ONE, &args)
}

/// The gradient of the logits.
pub(crate) fn cross_entropy_backward(
    lane: &mut Issue,
    config: &CrossEntropyConfig,
    operands: Operands<'_>,
    (grad, saved, total_weight): (&Tensor, &Tensor, &Tensor),
    dx: &mut Tensor,
) -> Result<()> {
    let (x, targets, _) = operands;
    if targets.numel() == 0 {
        return Ok(());
    }
    let op = lane.op();
    let (terms, of_targets) = prepare(lane, config, operands)?;
    let walk = Walk::cut(&[x, dx], 1, None);
    let x_rows = Rows::new(op, x, 1)?;
    let grad_view = match (config.reduction, grad.layout().reshape(&Shape::default())) {
        // One gradient for all rows.
        (Reduction::Mean | Reduction::Sum, Some(one)) => {
            View::new(op, &one.broadcast_to(op, targets.shape())?)?
        }
        _ => View::new(op, grad.layout())?,
    };
    let strides = saved.layout().strides();
    let args = [
        lane.address(grad),
        Arg::Struct(bytemuck::bytes_of(&grad_view)),
        Arg::Small(i32::from(config.reduction == Reduction::Mean)),
        lane.address(total_weight),
        lane.address(x),
        Arg::Struct(bytemuck::bytes_of(&x_rows)),
        lane.address(saved),
        Arg::Int(strides[0] as i64),
        Arg::Int(strides[1] as i64),
        Arg::Struct(bytemuck::bytes_of(&of_targets)),
        Arg::Struct(bytemuck::bytes_of(&terms)),
        lane.address(dx),
        Arg::Int(count(x) as i64),
        Arg::Int(width(x) as i64),
    ];
    let name = match walk.wide {
        true => "cross_entropy_backward_wide",
        false => "cross_entropy_backward_single",
    };
    lane.launch(&KERNELS, &[x.dtype()], name, walk.grid, &args)
}
