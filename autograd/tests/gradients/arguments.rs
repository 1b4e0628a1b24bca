//! Random arguments for the operations.

use crate::util::{TestRng, device, tensor_of};
use phalanx_tensor::{DType, Tensor};

/// A random view of a random shape.
pub fn any(rng: &mut TestRng, range: (f64, f64)) -> Tensor {
    let shape = rng.shape(4, 4);
    rng.tensor(&shape, DType::F64, range)
}

/// A random view of at least `min` axes without empty ones.
pub fn axes(rng: &mut TestRng, min: usize, max: usize) -> Tensor {
    let shape = extents(rng, min, max);
    rng.tensor(&shape, DType::F64, (-2.0, 2.0))
}

pub fn extents(rng: &mut TestRng, min: usize, max: usize) -> Vec<usize> {
    let rank = min + rng.below(max - min + 1);
    (0..rank).map(|_| 1 + rng.below(4)).collect()
}

/// Values that are all different, also after rounding to a half type, transposed now and then.
pub fn distinct(rng: &mut TestRng, shape: &[usize]) -> Tensor {
    let n: usize = shape.iter().product();
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, rng.below(i + 1));
    }
    let values: Vec<f64> = order.iter().map(|&i| i as f64 * 0.125 - 2.0).collect();
    if shape.len() >= 2 && rng.below(2) == 0 {
        let mut turned = shape.to_vec();
        turned.reverse();
        let back: Vec<isize> = (0..shape.len() as isize).rev().collect();
        return tensor_of(&values, &turned, DType::F64)
            .permute(&back)
            .unwrap();
    }
    tensor_of(&values, shape, DType::F64)
}

/// An axis of a tensor, counted from either end.
pub fn axis(rng: &mut TestRng, rank: usize) -> isize {
    let axis = rng.below(rank) as isize;
    if rng.below(2) == 0 {
        axis
    } else {
        axis - rank as isize
    }
}

/// Some different axes, counted from either end.
pub fn some_axes(rng: &mut TestRng, rank: usize) -> Vec<isize> {
    let mut axes = Vec::new();
    for i in 0..rank as isize {
        match rng.below(4) {
            0 => axes.push(i),
            1 => axes.push(i - rank as isize),
            _ => {}
        }
    }
    axes
}

pub fn indices(rng: &mut TestRng, shape: &[usize], below: usize) -> Tensor {
    let n = shape.iter().product();
    let at: Vec<i64> = (0..n).map(|_| rng.below(below) as i64).collect();
    Tensor::from_vec(at, shape, device()).unwrap()
}
