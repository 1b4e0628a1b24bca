//! Parameters of many shapes, gradients that are other ones on each rank and in each step, and a step.

use crate::model::values;
use phalanx_autograd::{Gradients, Param};
use phalanx_comm::ProcessGroup;
use phalanx_parallel::{Average, GradReducer, ReduceConfig, Result};
use phalanx_tensor::{DType, Device, Rng, Tensor};
use std::sync::Arc;

/// Shapes with a scalar, with no elements at all, and with one that travels alone in [`small`] buckets.
pub const SHAPES: [&[usize]; 7] = [&[3, 5], &[], &[70], &[0, 4], &[9, 40], &[2, 3, 4], &[1]];

/// The index of the parameter of [`SHAPES`] that travels alone in [`small`] buckets.
pub const ALONE: usize = 4;

/// Several buckets for [`SHAPES`] in `f32`, one of them of one gradient.
pub fn small() -> ReduceConfig {
    ReduceConfig {
        first_bucket_bytes: Some(64),
        bucket_cap_bytes: Some(300),
        in_place_bytes: Some(1000),
        ..ReduceConfig::default()
    }
}

/// Named parameters of a type.
pub fn params(dtype: DType, device: Device) -> Vec<(String, Param)> {
    let param = |(i, shape): (usize, &&[usize])| {
        let value = Tensor::zeros(*shape, dtype, device).unwrap();
        (format!("p{i}"), Param::new(value))
    };
    SHAPES.iter().enumerate().map(param).collect()
}

pub fn reducer(group: &Arc<dyn ProcessGroup>, config: ReduceConfig) -> Result<GradReducer> {
    let params = params(DType::F32, Device::cpu(group.rank()));
    GradReducer::new(params, Arc::clone(group), config)
}

/// The gradient of parameter `i` on a rank in a step.
pub fn gradient(i: usize, rank: usize, step: usize, dtype: DType, device: Device) -> Tensor {
    let mut rng = Rng::new((1000 * step + 10 * i + rank) as u64);
    let wide = Tensor::randn(SHAPES[i], dtype.compute(), device, &mut rng).unwrap();
    wide.cast(dtype).unwrap()
}

/// One step of the reducer, in which this rank gives the gradients of `order`, in that order.
pub fn step(
    reducer: &GradReducer,
    order: &[usize],
    step: usize,
    average: &Average,
) -> Result<Gradients> {
    let (rank, params) = (reducer.group().rank(), reducer.parameters());
    let mut reduction = reducer.begin(order.iter().map(|&i| &params[i].1), average)?;
    for &i in order {
        let dtype = params[i].1.dtype();
        let gradient = gradient(i, rank, step, dtype, params[i].1.device());
        reduction.ready(&params[i].1, gradient)?;
    }
    reduction.finish()
}

/// What a single process makes of it: the sum over the ranks of `weight(rank)` times the gradient, for the
/// ranks that have one; `None` where none has.
pub fn single(
    i: usize,
    step: usize,
    dtype: DType,
    ranks: usize,
    weight: impl Fn(usize) -> Option<f64>,
) -> Option<Vec<f64>> {
    let mut sum: Option<Vec<f64>> = None;
    for rank in 0..ranks {
        let Some(weight) = weight(rank) else { continue };
        let gradient = values(&gradient(i, rank, step, dtype, Device::cpu(0)));
        let sum = sum.get_or_insert_with(|| vec![0.0; gradient.len()]);
        let pairs = sum.iter_mut().zip(gradient);
        pairs.for_each(|(sum, g)| *sum += weight * g);
    }
    sum
}

/// All parameters, in an order that is another one for each seed.
pub fn shuffled(seed: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..SHAPES.len()).collect();
    let mut state = seed as u64;
    for i in (1..order.len()).rev() {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        order.swap(i, (state >> 33) as usize % (i + 1));
    }
    order
}
